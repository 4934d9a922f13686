"""Local copies of remote files, in a folder that stays within a limit."""

import hashlib
import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

from inpaint_data.durable import NewFile, is_running, name_of_leftover
from inpaint_data.errors import UsageError
from inpaint_data.shards.stores import open_stream, unreadable

SUFFIX = ".copy"
DEFAULT_BYTES = 100 * 10**9
_LEASE = re.compile(r"\.(?P<copy>.+)\.(?P<process>\d+)\.lease")


class Mirror:
    """A folder with a copy of each file that was asked for, as long as there is room.

    Files are named by their contents, so that a file that changed is another one. Processes may share the folder: a
    file is copied once, while the others wait, and no copy goes away while a process that asked for it runs. To make
    room, the copies that were unused the longest go; what does not fit is not copied.

    Made by `mirror_in`: a process has one for each folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"mirror: cannot write to {folder} ({error.strerror}); name another folder") from None

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
        """
        path = self.folder / f"{name}{SUFFIX}"
        if self._take(path, size):
            return path
        from filelock import FileLock  # only what lies elsewhere needs it

        with FileLock(self.folder / f".{name}.lock"):
            if self._take(path, size):
                return path
            file = self._reserve(path, size, limit)
            if file is None:
                return None
            try:
                with open_stream(url) as source:
                    while block := source.read(1 << 20):
                        file.write(block)
                if file.size != size or sha256 not in (None, file.sha256.hexdigest()):
                    raise OSError(f"its {file.size} bytes are not the {size} that were promised")
                file.sync()
                file.publish()
            except Exception as error:  # every file system of fsspec has errors of its own
                file.drop()
                raise unreadable(url, error) from error
            finally:
                with suppress(OSError):
                    (self.folder / f".{name}.lock").unlink()
        return path

    def _take(self, path: Path, size: int) -> bool:
        """True if the copy is there; then it stays as long as this process runs."""
        with suppress(OSError):  # a read-only mirror serves as well
            self._lease(path).touch()
        with suppress(OSError):
            if path.stat().st_size == size:
                with suppress(OSError):
                    os.utime(path)
                return True
        return False

    def _lease(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{os.getpid()}.lease")

    def _reserve(self, path: Path, size: int, limit: int) -> NewFile | None:
        """A file of that size to copy into; None where there is no room."""
        from filelock import FileLock  # as in copy

        with FileLock(self.folder / ".room.lock"):
            leased = self._leased()
            copies = {}
            for file_path in self.folder.iterdir():
                if name_of_leftover(file_path.name):
                    file_path.unlink(missing_ok=True)
                elif file_path.suffix in (SUFFIX, ".tmp"):
                    with suppress(OSError):
                        copies[file_path] = file_path.stat()
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

    def _leased(self) -> set[str]:
        """The copies that a running process asked for. Leases of dead ones are removed."""
        names = set()
        for lease in self.folder.glob(".*.lease"):
            match = _LEASE.fullmatch(lease.name)
            if match and is_running(int(match["process"])):
                names.add(match["copy"])
            else:
                lease.unlink(missing_ok=True)
        return names


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
