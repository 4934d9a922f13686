"""Where the bytes of a member come from when they are read into a batch: from memory, or straight from a tar."""

from collections.abc import Sequence
from typing import Any, Protocol

from inpaint_data.errors import CacheError

Buffers = Sequence[Any]  # that are written into: memoryviews or bytearrays


class Content(Protocol):
    """The bytes of one member."""

    @property
    def size(self) -> int:
        """How many there are."""

    def into(self, start: int, buffers: Buffers) -> None:
        """Fill buffers, one after another, with the bytes from `start` on. Raises CacheError if there are too few."""

    def whole(self) -> bytes:
        """All of them."""


class Held:
    """Bytes in memory."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def into(self, start: int, buffers: Buffers) -> None:
        for buffer in buffers:
            part = self.data[start : start + len(buffer)]
            if len(part) < len(buffer):
                raise CacheError(f"{len(self.data)} bytes are fewer than its header says")
            buffer[:] = part
            start += len(buffer)

    def whole(self) -> bytes:
        return bytes(self.data)
