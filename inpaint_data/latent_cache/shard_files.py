"""The tars of a cache as they are read: a sample's members, each checked against the index."""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import RLock
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakSet

from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.contents import InFiles
from inpaint_data.latent_cache.format import tar_path
from inpaint_data.latent_cache.index import Place
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
        self.lock = RLock()
        _ALL.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}  # a worker process opens its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])  # type: ignore[misc]

    def number(self, path: Path, opened: Callable[[os.stat_result], None]) -> int:
        """Of a file, opened if it was not; `opened` looks at one that was. Who lets go of `lock` may find it closed.

        Raises:
            OSError: it cannot be opened.
        """
        number = self._numbers.get(path)
        if number is None:
            return self._open(path, opened)
        self._numbers.move_to_end(path)
        return number

    def _open(self, path: Path, opened: Callable[[os.stat_result], None]) -> int:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            opened(os.fstat(number))
        except BaseException:
            os.close(number)
            raise
        self._numbers[path] = number
        while len(self._numbers) > self.limit:
            os.close(self._numbers.popitem(last=False)[1])
        return number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for number in self._numbers.values():
            close(number)  # not by way of `os`, which is gone when a process ends


class Shard(NamedTuple):
    """A tar as the index has it; `size` and `sha256` are the file's."""

    name: str
    size: int
    sha256: str
    samples: int


_ALL: WeakSet[OpenFiles] = WeakSet()


def _unlock() -> None:
    """In a process that was forked while a thread, which it does not have, read a batch."""
    for files in list(_ALL):
        files.lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


class ShardFile:
    """One tar of a cache, here or in a store.

    A file that is open stays the one it was, whatever takes its place on the disk; one that is opened must have the
    size that its sidecar says, and is checked anew if it is another file than before.
    """

    def __init__(
        self,
        root: Path,
        shard: Shard,
        files: OpenFiles,
        check: Check,
        url: str | None,
        copies: Mirror | None,
        mirror_bytes: int,
    ) -> None:
        self.name = shard.name
        self._shard, self._path = shard, tar_path(root, Path(shard.name).stem)
        self._files, self._check = files, check
        self._url, self._copies, self._mirror_bytes = within(str(url), self.name), copies, mirror_bytes
        self._checked = bytearray(shard.samples)
        self._known: tuple[int, int] | None = None  # which file it was when it was last opened
        if copies is None:
            try:
                self._opened(self._path.stat())
            except OSError as error:
                raise CacheError(f"{self._path}: {error.strerror}; {FIX}") from None

    def _opened(self, status: os.stat_result) -> None:
        if status.st_size != self._shard.size:
            raise CacheError(f"{self._path}: {status.st_size} bytes, its sidecar says {self._shard.size}; {FIX}")
        known = (status.st_ino, status.st_mtime_ns)
        if known != self._known:
            self._checked = bytearray(self._shard.samples)
        self._known = known

    def has_read(self, row: int) -> bool:
        """Whether a sample needs no comparison with its checksums any more."""
        return self._check == "never" or (self._check == "first" and self._checked[row] == 1)

    def open(self) -> int | None:
        """The number of the open file; None of a remote one of which there is no copy. The caller holds the lock."""
        path = self._path if self._copies is None else self._copy()
        return None if path is None else self._files.number(path, self._opened)

    def members(self, row: int, places: Mapping[str, Place]) -> dict[str, bytes]:
        """The members of a sample at those places, checked as was asked for.

        Raises:
            CacheError: a member does not have its checksum, or the file ends before it.
            OSError, ShardError: the file cannot be read.
        """
        data = self._whole(places)
        if not self.has_read(row):
            for name, place in places.items():
                if Place.of(place.offset, data[name]) != place:
                    raise CacheError(f"{name} is not what was written, by its checksum")
            self._checked[row] = 1
        return data

    def _copy(self) -> Path | None:
        """The local copy of a remote one; None where there is no room for it."""
        assert self._copies is not None
        sha256, size = self._shard.sha256, self._shard.size
        return self._copies.copy(self._url, sha256, size, self._mirror_bytes, sha256)

    def _whole(self, places: Mapping[str, Place]) -> dict[str, bytes]:
        with self._files.lock:
            file = self.open()
            if file is not None:
                return {name: InFiles([file], [at.offset], [at.size]).whole(0) for name, at in places.items()}
        # One request for all of a sample, whose members lie side by side.
        first = min(place.offset for place in places.values())
        data = read_range(self._url, first, max(place.end for place in places.values()))
        return {name: data[place.offset - first : place.end - first] for name, place in places.items()}
