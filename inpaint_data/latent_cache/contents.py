"""Where the bytes of a member come from when they are read into a batch: from memory, or straight from tars."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

from inpaint_data.errors import CacheError

Buffers = Sequence[Any]  # that are written into: memoryviews or bytearrays


class Content(Protocol):
    """The bytes of one member of several samples."""

    @property
    def sizes(self) -> Sequence[int]:
        """How many there are of each sample; -1 of one that does not have the member."""

    def into(self, sample: int, start: int, buffers: Buffers) -> None:
        """Fill buffers, one after another, with a sample's bytes from `start` on.

        Raises:
            CacheError: there are too few.
        """

    def fill(self, rows: memoryview, head: bytes, starts: Sequence[int]) -> bool:
        """Fill rows of bytes, beside each other, with those from its start on behind the header of each sample.

        False if one has another header. Raises CacheError as `into`.
        """

    def whole(self, sample: int) -> bytes:
        """All of a sample's."""


class Held:
    """Bytes in memory; None of a sample that does not have the member."""

    def __init__(self, data: Sequence[bytes | None]) -> None:
        self._data = [each or b"" for each in data]
        self.sizes = [-1 if each is None else len(each) for each in data]

    def into(self, sample: int, start: int, buffers: Buffers) -> None:
        data = self._data[sample]
        for buffer in buffers:
            part = data[start : start + len(buffer)]
            if len(part) < len(buffer):
                raise CacheError(f"{len(data)} bytes are fewer than its header says")
            buffer[:] = part
            start += len(buffer)

    def fill(self, rows: memoryview, head: bytes, starts: Sequence[int]) -> bool:
        length, at = len(rows) // len(starts), 0
        for sample, start in enumerate(starts):
            if not self._data[sample].startswith(head):
                return False
            self.into(sample, len(head) + start, (rows[at : at + length],))
            at += length
        return True

    def whole(self, sample: int) -> bytes:
        return self._data[sample]


class InFiles:
    """Bytes in files that are open, of each sample from an offset on."""

    def __init__(self, files: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> None:
        self._files, self._offsets, self.sizes = files, offsets, sizes

    def into(self, sample: int, start: int, buffers: Buffers) -> None:
        begin = self._offsets[sample] + start
        count = os.preadv(self._files[sample], buffers, begin)
        if count < sum(map(len, buffers)):
            raise CacheError(f"the tar ends at byte {begin + count}; it was cut while it was read")

    def fill(self, rows: memoryview, head: bytes, starts: Sequence[int]) -> bool:
        # As `into`, without a call for each: there are three in a sample, of which each takes some microseconds.
        length, at, preadv, own = len(rows) // len(starts), 0, os.preadv, bytearray(len(head))
        both = len(head) + length
        for sample, (file, offset, start) in enumerate(zip(self._files, self._offsets, starts, strict=True)):
            row = rows[at : at + length]
            if start:
                self.into(sample, 0, (own,))
                self.into(sample, len(head) + start, (row,))
            elif preadv(file, (own, row), offset) < both:
                self.into(sample, 0, (own, row))  # which says where it ends
            if own != head:
                return False
            at += length
        return True

    def whole(self, sample: int) -> bytes:
        data = bytearray(self.sizes[sample])
        self.into(sample, 0, (data,))
        return bytes(data)
