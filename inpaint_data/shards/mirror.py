"""Local copies of remote files, in a folder that stays within a limit."""

import hashlib
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

from inpaint_data.durable import TEMPORARY, NewFile
from inpaint_data.errors import ShardError, UsageError
from inpaint_data.shards.streams import anew_if_replaced, open_stream

SUFFIX = ".copy"
ROOM = ".room.lock"  # of whoever looks what is there, and makes room
DEFAULT_BYTES = 100 * 10**9
_LEASE = re.compile(r"\.(?P<copy>.+)\.(?P<owner>\w+)\.lease")
_UNFINISHED = re.compile(rf"\.?(?P<copy>.+?)({re.escape(SUFFIX)})?\.\d+{re.escape(TEMPORARY)}")


class Mirror:
    """A folder with a copy of each file that was asked for, as long as there is room.

    Files are named by their contents, so that a file that changed is another one. Processes may share the folder: a
    file is copied once, while the others wait, and no copy goes away while a process that asked for it runs and has not
    let go of it. To make room, the copies that were unused the longest go; what does not fit is not copied.

    Who works in the folder holds locks of the operating system, which end with the process, however it ends: nothing
    is read from the names, times or bytes of files that a dead one left.

    Made by `mirror_in`: a process has one for each folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._owner, self._process = "", 0
        self._users: Counter[str] = Counter()  # of this process, that have not let go of a copy
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"mirror: cannot write to {folder} ({error.strerror}); name another folder") from None
        with suppress(OSError), self._locked(ROOM):  # a read-only mirror serves as well
            self._copies()

    def copy(self, url: str, name: str, size: int, limit: int, sha256: str | None = None) -> Path | None:
        """The local copy of `url`, or None where there is no room for it.

        Args:
            url: what to copy.
            name: what tells these contents from all others.
            size: in bytes.
            limit: bytes that all copies together may take.
            sha256: of the contents, to be checked once when they are copied.

        Raises:
            ShardError: it cannot be read, or is not what `size` and `sha256` say.
            UsageError: the folder cannot be written to, is full, or has no locks.
        """
        # Both may be what a stranger's sidecar says.
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,128}", name, re.ASCII):
            raise ShardError(f"{url}: {name!r} is not a name for a copy of it; its sidecar is damaged or forged")
        if type(size) is not int or size < 0:
            raise ShardError(f"{url}: {size!r} is not the size of a copy of it; its sidecar is damaged or forged")
        path = self.folder / f"{name}{SUFFIX}"
        try:
            if self._take(path, size):
                return path
            with self._locked(_lock_of(name)):
                if self._take(path, size):
                    return path
                copied = partial(self._copied, url, path, size, limit, sha256)
                self._users[path.name] += 1
                copy = None
                try:
                    copy = anew_if_replaced(copied) if sha256 else copied()  # else another file has another name
                finally:
                    if copy is None:
                        self.release(path)
                return copy
        except OSError as error:
            raise UsageError(
                f"mirror: cannot work in {self.folder} ({error.strerror}); free some space, or name another folder"
            ) from None

    def copied(self, name: str, size: int) -> Path | None:
        """The copy of that name, if it is there already; see `copy`."""
        path = self.folder / f"{name}{SUFFIX}"
        if self._take(path, size):
            return path
        self._users[path.name] += 1
        self.release(path)
        return None

    def release(self, path: Path) -> None:
        """Let go of a copy, once for each time that it was asked for: it stays until its room is needed."""
        with suppress(OSError):
            lease = self._lease(path)
            with self._locked(ROOM):
                self._users[path.name] -= 1
                if self._users[path.name] < 1:
                    del self._users[path.name]
                    lease.unlink(missing_ok=True)

    def _lease(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{self._own()}.lease")

    def _copied(self, url: str, path: Path, size: int, limit: int, sha256: str | None) -> Path | None:
        """Make the copy; None where there is no room for it."""
        file = self._reserve(path, size, limit)
        if file is None:
            return None
        try:
            with open_stream(url) as source:
                while file.size <= size and (block := source.read(1 << 20)):
                    file.write(block)
            if file.size != size or sha256 not in (None, file.sha256.hexdigest()):
                raise ShardError(f"{url}: its {file.size} bytes are not the {size} that were promised")
            file.sync()
            file.publish()
        except BaseException:
            file.drop()
            raise
        return path

    def _take(self, path: Path, size: int) -> bool:
        """True if the copy is there; then it stays as long as this process runs and does not release it."""
        try:
            lease = self._lease(path)
            with self._locked(ROOM):
                lease.touch()
                is_there = path.stat().st_size == size
                os.utime(path)
                self._users[path.name] += is_there
            return is_there
        except OSError:  # it is not there, or this is a read-only mirror, which serves as well
            with suppress(OSError):
                return path.stat().st_size == size
        return False

    def _own(self) -> str:
        """This process's name in the folder: that of a lock which it holds to its end."""
        if self._process != os.getpid():  # the first time, or forked since
            owner = uuid.uuid4().hex
            with self._locked(ROOM):
                descriptor = os.open(self.folder / f".{owner}.owner", os.O_RDWR | os.O_CREAT)
                flock(descriptor, wait=False)
            self._owner, self._process = owner, os.getpid()
            self._users.clear()
        return self._owner

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Waits for the lock of that name; only living processes hold one."""
        with (self.folder / name).open("a") as file:
            flock(file.fileno())
            try:
                yield
            finally:
                flock(file.fileno(), hold=False)  # closing is not enough where a child was forked meanwhile

    def _is_held(self, name: str) -> bool:
        """Whether a living process holds the lock of that name."""
        try:
            with (self.folder / name).open() as file:
                flock(file.fileno(), wait=False)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def _reserve(self, path: Path, size: int, limit: int) -> NewFile | None:
        """A file of that size to copy into; None where there is no room."""
        with self._locked(ROOM):
            leased, copies = self._leased(), self._copies(path.name)
            total = sum(status.st_size for status in copies.values())
            idle = [copy for copy in copies if copy.suffix == SUFFIX and copy.name not in leased]
            for copy in sorted(idle, key=lambda copy: copies[copy].st_mtime):
                if total + size <= limit:
                    break
                copy.unlink(missing_ok=True)
                total -= copies[copy].st_size
            if total + size > limit:
                return None
            file = NewFile(path)
            os.truncate(file.temporary, size)  # so that others count it
            return file

    def _copies(self, ours: str = "") -> dict[Path, os.stat_result]:
        """The copies, and those that are being made. What nobody makes any more is removed; of `ours` we know."""
        copies = {}
        for path in self.folder.iterdir():
            unfinished = _UNFINISHED.fullmatch(path.name)
            if unfinished and (
                f"{unfinished['copy']}{SUFFIX}" == ours or not self._is_held(_lock_of(unfinished["copy"]))
            ):
                path.unlink(missing_ok=True)
            elif unfinished or path.suffix == SUFFIX:
                with suppress(OSError):
                    copies[path] = path.stat()
        return copies

    def _leased(self) -> set[str]:
        """The copies that a running process asked for. Leases of dead ones are removed."""
        owners = {path.name[1:].removesuffix(".owner"): path for path in self.folder.glob(".*.owner")}
        living = {owner for owner, path in owners.items() if owner == self._owner or self._is_held(path.name)}
        names = set()
        for lease in self.folder.glob(".*.lease"):
            match = _LEASE.fullmatch(lease.name)
            if match and match["owner"] in living:
                names.add(match["copy"])
            else:
                lease.unlink(missing_ok=True)
        for owner in owners.keys() - living:
            owners[owner].unlink(missing_ok=True)
        return names


def flock(descriptor: int, wait: bool = True, hold: bool = True) -> None:
    """Take or let go of the operating system's lock of an open file; it ends with the process at the latest."""
    import fcntl  # only what lies elsewhere needs it; Windows has none

    fcntl.flock(descriptor, (fcntl.LOCK_EX if hold else fcntl.LOCK_UN) | (0 if wait else fcntl.LOCK_NB))


def _lock_of(name: str) -> str:
    """The lock of whoever makes the copy of that name. Some names share one, so that there are never many."""
    return f".{hashlib.sha256(name.encode()).hexdigest()[:2]}.lock"


def mirror_in(folder: str | Path | None) -> Mirror:
    """The process's mirror in that folder; None is the user's cache folder."""
    return _mirror(Path(os.path.abspath(default_folder() if folder is None else Path(folder).expanduser())))


@cache
def _mirror(folder: Path) -> Mirror:
    return Mirror(folder)


def default_folder() -> Path:
    """The folder of copies unless another is named: in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inpaint_data" / "mirror"


def name_of_contents(*parts: str) -> str:
    """A name for a copy, of what tells its contents from all others."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
