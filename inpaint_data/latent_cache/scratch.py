"""Memory that is used again from batch to batch: its pages are there already, and its parts need not be cut anew."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = Sequence[memoryview]
_KINDS = 16  # of parts that are kept; a cache has a few members, and its last batch may be smaller


class Scratch(threading.local):
    """Memory of each thread; what is in it lasts until more is asked of it."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._cut: dict[tuple[int, int], list[memoryview]] = {}

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array in it, from its first byte on."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if len(self._bytes) < size:
            self._bytes, self._cut = np.empty(size, np.uint8), {}
        return self._bytes[:size].view(dtype).reshape(shape)

    def rows(self, count: int, length: int) -> Rows:
        """So many parts of so many bytes, beside each other from its first byte on."""
        if (found := self._cut.get((count, length))) is None:
            if len(self._cut) >= _KINDS:
                self._cut.clear()
            found = self._cut[count, length] = rows_of(self.array((count, length), np.uint8))
        return found


def rows_of(array: npt.NDArray[Any]) -> list[memoryview]:
    """The bytes of each of its rows, to write into."""
    view, length = array.reshape(-1).view(np.uint8).data, array.nbytes // len(array)
    return [view[at : at + length] for at in range(0, len(array) * length, length)]
