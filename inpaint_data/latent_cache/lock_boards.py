"""Where locks lie: small files of which one is made only if there is none, in a folder or in a store."""

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from inpaint_data.durable import TEMPORARY
from inpaint_data.errors import CacheError, ShardError
from inpaint_data.shards.store_writing import files_in, put_bytes, put_if_absent, remove
from inpaint_data.shards.stores import read_if_there, stored_now, within

GONE = 1e9  # seconds: the age of what is not there


class Board(Protocol):
    """Locks by name. `str()` of it is the cache's folder or URL."""

    def create(self, name: str, data: bytes) -> bool:
        """Make a lock; False if there is one. Raises CacheError where none can be made."""

    def read(self, name: str) -> bytes | None:
        """Its content, None if it is gone."""

    def touch(self, name: str, data: bytes) -> None:
        """Give a sign of life of a lock that has this content."""

    def state(self, name: str) -> object:
        """What a sign of life changes; None once the lock is gone."""

    def age(self, name: str) -> float:
        """Seconds since the last sign, by the clock of where it lies, since those of two machines may differ."""

    def remove(self, name: str, data: bytes | None) -> None:
        """Take away a dead one's lock that has this content, and no newer one of its name."""

    def give_back(self, name: str, data: bytes) -> None:
        """Remove a lock of one's own, if it still is."""

    def names(self, prefix: str) -> list[str]:
        """The locks whose names begin so, sorted."""


class FolderBoard:
    """Locks in a folder, which machines may share."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __str__(self) -> str:
        return str(self._root)

    def create(self, name: str, data: bytes) -> bool:
        # A hard link would do it whole, but exFAT and some shares have none.
        path = self._root / name
        try:
            file = path.open("xb")
        except FileExistsError:
            return False
        except OSError as error:
            raise _unwritable(path, error) from None
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            with suppress(OSError):
                path.unlink()
            if isinstance(error, OSError):
                raise _unwritable(path, error) from None
            raise
        return self.read(name) == data  # else it was taken for torn, and is another's by now

    def read(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            return b""

    def touch(self, name: str, data: bytes) -> None:  # noqa: ARG002 - a file can be touched as it is
        with suppress(OSError):  # the folder may be away for a while; the next beat tries again
            os.utime(self._root / name)

    def state(self, name: str) -> object:
        path = self._root / name
        try:
            # Read first: a client of NFS asks its server again when a file is opened.
            return path.read_bytes(), path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        except OSError:
            return b"", 0

    def age(self, name: str) -> float:
        try:
            return self._now() - (self._root / name).stat().st_mtime
        except FileNotFoundError:
            return GONE

    def _now(self) -> float:
        probe = self._temporary("", "now")
        try:
            with probe.open("x") as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:  # whoever may only look has this machine's clock
            return time.time()
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def remove(self, name: str, data: bytes | None) -> None:
        path, aside = self._root / name, self._temporary(name, "old")
        with suppress(FileNotFoundError):  # another process was quicker
            os.rename(path, aside)
            if self.read(aside.name) == data:
                aside.unlink()
            else:  # a new lock, made between the look and the rename
                os.rename(aside, path)

    def give_back(self, name: str, data: bytes) -> None:
        if self.read(name) == data:
            (self._root / name).unlink()

    def names(self, prefix: str) -> list[str]:
        return sorted(path.name for path in self._root.glob(f"{prefix}*"))

    def _temporary(self, name: str, purpose: str) -> Path:
        """A name beside a lock, which the next run takes for a dead process's leftover should this one be killed."""
        return self._root / f".{purpose}{name}.{uuid.uuid4().hex}.{os.getpid()}{TEMPORARY}"


class StoreBoard:
    """Locks in a store that makes an object only if there is none of its name, as S3, Google and Azure do."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __str__(self) -> str:
        return self._url

    def create(self, name: str, data: bytes) -> bool:
        try:
            return put_if_absent(within(self._url, name), data)
        except NotImplementedError:
            raise CacheError(
                f"{self._url}: its store, or this version of its fsspec package, cannot keep two jobs apart, since it "
                "writes over what is there; write the cache to a folder and copy it there, or update the package"
            ) from None

    def read(self, name: str) -> bytes | None:
        return read_if_there(within(self._url, name))

    def touch(self, name: str, data: bytes) -> None:
        if self.read(name) == data:  # else it was taken for dead
            put_bytes(within(self._url, name), data)

    def state(self, name: str) -> object:
        content = self.read(name)
        return None if content is None else (content, stored_now(within(self._url, name)).modified)

    def age(self, name: str) -> float:
        try:
            sign = stored_now(within(self._url, name)).modified
        except ShardError:
            return GONE
        return GONE if sign is None else self._now() - sign

    def _now(self) -> float:
        url = within(self._url, f".now-{uuid.uuid4().hex}")
        try:
            put_bytes(url, b"")
            return stored_now(url).modified or time.time()
        except ShardError:  # as above
            return time.time()
        finally:
            with suppress(ShardError):
                remove(url)

    def remove(self, name: str, data: bytes | None) -> None:
        # No store takes away one content alone. Two who find one dead lock at once may both hold the cache for a
        # moment; whoever's lock is gone then ends before it commits anything.
        if self.read(name) == data:
            remove(within(self._url, name))

    def give_back(self, name: str, data: bytes) -> None:
        self.remove(name, data)

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in files_in(self._url) if name.startswith(prefix))


def _unwritable(path: Path, error: OSError) -> CacheError:
    return CacheError(f"{path}: {error.strerror}; the folder must be writable")


def board_of(root: Path | str) -> Board:
    """The board of a cache: of a folder, or of a URL."""
    return StoreBoard(root) if isinstance(root, str) else FolderBoard(root)
