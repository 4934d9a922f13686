"""How a file appears whole and durable under its name, or not at all."""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp"
# The longest name that file systems take is 255 bytes, and while it is written a file has a dot, the number of its
# process and TEMPORARY around its own.
MAX_NAME_BYTES = 255 - len(f"..{2**31}{TEMPORARY}")
_OF_A_PROCESS = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.tmp")


class NewFile:
    """A file under a temporary name beside its own, hashed while it is written.

    `write` as often as needed, then `sync`, then `publish`; `drop` at any time leaves no trace of it. The temporary
    name has the number of the process, so that several may write files of one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
        self.size, self.sha256 = 0, hashlib.sha256()
        self._file = self.temporary.open("wb")

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def sync(self) -> None:
        """Close it, and see that its bytes are on the disk."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        """Give it its name, for good. An older file of that name is replaced."""
        os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)

    def drop(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path) -> Iterator[NewFile]:
    """A `NewFile` that is published when the block ends, and dropped where an error leaves it."""
    file = NewFile(path)
    try:
        yield file
        file.sync()
        file.publish()
    except BaseException:
        file.drop()
        raise


def write_file(path: Path, data: bytes) -> None:
    """Put `data` under `path`, or leave what was there."""
    with new_file(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """A rename is durable only when its folder is. Some shares and FUSE file systems cannot be asked for it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def name_of_leftover(name: str, ours: Callable[[str], bool] = lambda _: False) -> str | None:
    """The file that a dead process was about to write under this temporary name; None for any other name.

    Files of processes that still run, other than this one, are not left over: they are about to be renamed. Where a
    file is `ours`, no other process may write it now, so one that runs only has the number of the dead one.
    """
    match = _OF_A_PROCESS.fullmatch(name)
    if match is None:
        return None
    process = int(match["process"])
    alive = process != os.getpid() and is_running(process) and not ours(match["name"])
    return None if alive else match["name"]


def is_running(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
