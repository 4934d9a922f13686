"""The outcome of a command."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """The text to print, and the exit code."""

    text: str = ""
    errors: str = ""  # to stderr
    code: int = 0
