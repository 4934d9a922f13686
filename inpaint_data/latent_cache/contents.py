"""Where the bytes of a member come from when they are read into a batch: from memory, or straight from tars."""

import os
from collections.abc import Sequence
from operator import add
from typing import Any, Protocol

import numpy as np

from inpaint_data.errors import CacheError
from inpaint_data.latent_cache.scratch import Rows, Scratch

Buffers = Sequence[Any]  # that are written into: memoryviews or bytearrays
_HEADS = Scratch()


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

    def fill(self, rows: Rows, head: bytes, starts: Sequence[int]) -> bool:
        """Fill a row of bytes of each sample, all as long, with those from its start on behind its header.

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

    def fill(self, rows: Rows, head: bytes, starts: Sequence[int]) -> bool:
        if not all(data.startswith(head) for data in self._data):
            return False
        for sample, (row, start) in enumerate(zip(rows, starts, strict=True)):
            self.into(sample, len(head) + start, (row,))
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

    def fill(self, rows: Rows, head: bytes, starts: Sequence[int]) -> bool:
        heads = _HEADS.rows(len(rows), len(head))
        if any(starts):
            self._read([0] * len(rows), list(zip(heads, strict=True)))
            self._read([len(head) + start for start in starts], list(zip(rows, strict=True)))
        else:
            self._read(starts, list(zip(heads, rows, strict=True)))
        return _HEADS.array((len(rows) * len(head),), np.uint8).tobytes() == head * len(rows)

    def _read(self, starts: Sequence[int], buffers: Sequence[Buffers]) -> None:
        """As `into` for every sample, all as much, without a line of Python for each."""
        begins = map(add, self._offsets, starts)
        counts = list(map(os.preadv, self._files, buffers, begins))
        if min(counts) < sum(map(len, buffers[0])):
            for sample, (start, of_sample) in enumerate(zip(starts, buffers, strict=True)):
                self.into(sample, start, of_sample)  # which says where it ends

    def whole(self, sample: int) -> bytes:
        data = bytearray(self.sizes[sample])
        self.into(sample, 0, (data,))
        return bytes(data)
