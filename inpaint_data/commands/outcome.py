"""What a command gives back to whoever typed it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What is printed, and the exit code."""

    text: str = ""
    errors: str = ""  # to stderr
    code: int = 0
