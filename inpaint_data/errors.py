"""What can go wrong, each under one base: the message names the file, the key and the fix."""

import reprlib
from collections.abc import Sequence
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlevel = 2


def shortened(value: Any) -> str:
    """`repr` within a line, whatever a stranger's file holds: texts of megabytes, numbers of thousands of digits."""
    return _short.repr(value)


def one_line(text: str, limit: int = 2000) -> str:
    """A text that may hold a stranger's names, as one line that prints: other letters are written as Python does."""
    start = text[:limit]
    return start if start.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in start)


class InpaintDataError(Exception):
    """Base of every error this package raises on purpose. The command exits with `exit_code`."""

    exit_code = 1


class UsageError(InpaintDataError, ValueError):
    """The settings or arguments cannot work, whatever the data.

    `place` is where the setting stands in the tree of settings: ("pictures", "resolution"). Nothing where it is none.
    """

    exit_code = 2

    def __init__(self, message: str, place: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.place = tuple(place)


class VaeError(UsageError):
    """The named autoencoder cannot be loaded or cannot be used."""


class EncodeError(InpaintDataError):
    """The autoencoder gave NaN or infinity, in single precision too.

    `indexes` are the positions of the samples in the batch that was given.
    """

    def __init__(self, message: str, indexes: list[int]) -> None:
        super().__init__(message)
        self.indexes = indexes


class ShardError(InpaintDataError):
    """A shard cannot be read."""


class SampleError(InpaintDataError):
    """One sample cannot be used; the message is the reason, without the shard and the key."""


class FilteredError(SampleError):
    """One sample is left out on purpose; the message begins with the name of the filter."""


class CacheError(InpaintDataError):
    """A latent cache cannot be written, read or continued."""
