"""What can go wrong, each under one base: the message names the file, the key and the fix."""

from collections.abc import Sequence
from typing import Any

from inpaint_data.shown import shown

_FROM_A_WORKER = "Caught "  # how torch begins the traceback of which it makes a worker's error again


class InpaintDataError(Exception):
    """Base of every error this package raises on purpose: one line. The command exits with `exit_code`.

    `summary` is what was done in spite of it, whose `table()` the command prints; nothing of most errors.
    """

    exit_code = 1
    summary: Any = None

    def __init__(self, message: str) -> None:
        is_traceback = message.startswith(_FROM_A_WORKER) and "Traceback (most recent call last)" in message
        super().__init__("\n".join(map(shown, message.splitlines())) if is_traceback else shown(message))


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


class ReplacedError(ShardError):
    """A shard was replaced by another one while it was read; what was read of it is worth nothing."""


class SampleError(InpaintDataError):
    """One sample cannot be used; the message is the reason, without the shard and the key."""


class FilteredError(SampleError):
    """One sample is left out on purpose; the message begins with the name of the filter."""


class CacheError(InpaintDataError):
    """A latent cache cannot be written, read or continued."""
