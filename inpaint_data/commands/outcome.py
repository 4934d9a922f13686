"""What runs, and the outcome of a command."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

RUNNING: ContextVar[Sequence[str]] = ContextVar("words of the command line, the command's name first")


@dataclass(frozen=True)
class Outcome:
    """The text to print, and the exit code."""

    text: str = ""
    errors: str = ""  # to stderr
    code: int = 0
