"""Text for a person, who may be gone: a closed pipe, a closed terminal or a full disk ends no work."""

import os
import sys
from contextlib import suppress
from typing import Literal

Name = Literal["stdout", "stderr"]


def tell(name: Name, text: str) -> bool:
    """Write and flush a text; False where it is lost."""
    stream = getattr(sys, name)  # None where the process was started without one
    if stream is None:
        return False
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):  # ValueError: it was closed
        return False
    return True


def let_go() -> None:
    """Give up what could not be written, before Python ends with an error about it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not tell(name, ""):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
