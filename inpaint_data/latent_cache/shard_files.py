"""The tars of a cache as they are read: one sample's members at a time, each checked against the index."""

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Literal, get_args

import numpy as np

from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.encodings import Content, read_npy_row
from inpaint_data.latent_cache.format import Sidecar, tar_path
from inpaint_data.latent_cache.index import Place
from inpaint_data.latent_cache.members import ARRAYS
from inpaint_data.shards.mirror import Mirror
from inpaint_data.shards.stores import within
from inpaint_data.shards.streams import read_range

Check = Literal["first", "always", "never"]  # when the bytes of a member are compared with its checksum
CHECKS: tuple[Check, ...] = get_args(Check)
OPEN_FILES = 64  # at a time; of a process's 1024, most often
FIX = "run `inpaint-data verify` to see what is wrong with the cache"


def check_when(check: str) -> None:
    """Raises UsageError if it is unknown."""
    if check not in CHECKS:
        raise UsageError(f"check: {check!r} is unknown; choose from {', '.join(CHECKS)}")


class OpenFiles:
    """Files that are read at any place, so many of them open at a time; the ones unused the longest are closed."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.limit = limit
        self._numbers: OrderedDict[Path, int] = OrderedDict()
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}  # a worker process opens its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])  # type: ignore[misc]

    def read(self, path: Path, start: int, end: int, opened: Callable[[os.stat_result], None]) -> bytes:
        """The bytes [start, end) of a file, fewer at its end. `opened` looks at a file that was just opened.

        Raises:
            OSError: it cannot be opened or read.
        """
        with self._lock:  # nobody closes it meanwhile
            number = self._numbers.pop(path, None)
            if number is None:
                number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                try:
                    opened(os.fstat(number))
                except BaseException:
                    os.close(number)
                    raise
            self._numbers[path] = number
            while len(self._numbers) > self.limit:
                os.close(self._numbers.popitem(last=False)[1])
            return os.pread(number, end - start, start)

    def __del__(self) -> None:
        for number in self._numbers.values():
            os.close(number)


class ShardFile:
    """One tar of a cache, here or in a store.

    A file that is open stays the one it was, whatever takes its place on the disk; one that is opened must have the
    size that its sidecar says, and is checked anew if it is another file than before.
    """

    def __init__(
        self,
        root: Path,
        sidecar: Sidecar,
        files: OpenFiles,
        check: Check,
        url: str | None,
        copies: Mirror | None,
        mirror_bytes: int,
    ) -> None:
        self.name, self.index, self.variants = sidecar.shard, sidecar.index, sidecar.variants
        self._path = tar_path(root, Path(sidecar.shard).stem)
        self._files, self._check = files, check
        self._url, self._copies, self._mirror_bytes = within(str(url), self.name), copies, mirror_bytes
        self._output = sidecar.output
        self._checked = np.zeros(len(sidecar.keys), bool)
        self._known: tuple[int, int] | None = None  # which file it was when it was last opened
        if copies is None:
            try:
                self._opened(self._path.stat())
            except OSError as error:
                raise CacheError(f"{self._path}: {error.strerror}; {FIX}") from None

    def _opened(self, status: os.stat_result) -> None:
        if status.st_size != self._output["size"]:
            raise CacheError(f"{self._path}: {status.st_size} bytes, its sidecar says {self._output['size']}; {FIX}")
        known = (status.st_ino, status.st_mtime_ns)
        if known != self._known:
            self._checked[:] = False
        self._known = known

    def members(self, names: Collection[str], row: int, variant: int) -> dict[str, Content]:
        """The members that the sample has of those named; of masks' arrays perhaps the variant's part alone.

        Raises:
            CacheError: a member does not have its checksum, or the file ends before it.
            OSError, ShardError: the file cannot be read.
        """
        places = self.index.of_row(row, names)
        path = self._path if self._copies is None else self._copy()
        if self._check == "always" or (self._check == "first" and not self._checked[row]):
            data = self._whole(path, places)
            for name, place in places.items():
                if Place.of(place.offset, data[name]) != place:
                    raise CacheError(f"{name} is not what was written, by its checksum")
            self._checked[row] = True
            return dict(data)
        per_variant = {name for name in places if name in ARRAYS and ARRAYS[name].per_variant}
        if path is None or not per_variant:
            return dict(self._whole(path, places))
        members: dict[str, Content] = dict(
            self._whole(path, {name: place for name, place in places.items() if name not in per_variant})
        )
        for name in per_variant:
            members[name] = self._row_of(path, places[name], variant)
        return members

    def _copy(self) -> Path | None:
        """The local copy of a remote one; None where there is no room for it."""
        assert self._copies is not None
        sha256, size = self._output["sha256"], self._output["size"]
        return self._copies.copy(self._url, sha256, size, self._mirror_bytes, sha256)

    def _whole(self, path: Path | None, places: Mapping[str, Place]) -> dict[str, bytes]:
        if path is not None:
            return {name: self._read(path, place.offset, place.end) for name, place in places.items()}
        # One request for all of a sample, whose members lie side by side.
        first = min(place.offset for place in places.values())
        data = read_range(self._url, first, max(place.end for place in places.values()))
        return {name: data[place.offset - first : place.end - first] for name, place in places.items()}

    def _row_of(self, path: Path, place: Place, variant: int) -> np.ndarray[Any, Any]:
        return read_npy_row(
            lambda start, end: self._read(path, place.offset + start, place.offset + end), place.size, variant
        )

    def _read(self, path: Path, start: int, end: int) -> bytes:
        data = self._files.read(path, start, end, self._opened)
        if len(data) < end - start:
            raise CacheError(f"{path} ends at byte {start + len(data)}; it was cut while it was read")
        return data
