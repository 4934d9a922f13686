"""Local copies of remote files, in a folder that does not grow beyond a limit."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import fsspec

from inpaint_data.errors import UsageError
from inpaint_data.shards.tar import open_stream, unreadable

SUFFIX = ".copy"


class Mirror:
    """A folder with a copy of each file that was asked for, as long as there is room.

    Files are named by their contents, so that a file that changed is another one, and processes may share the folder.
    To make room, copies that other runs left go first, the longest unused before the others; a copy made by this
    process stays until its end, and what does not fit is not copied.

    Args:
        folder: where; made when it is missing.
        limit: bytes that all copies together may take.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self._mine: set[Path] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"mirror: cannot write to {folder} ({error.strerror}); name another folder") from None

    def copy(self, url: str, name: str, size: int, sha256: str | None = None) -> Path | None:
        """The local copy of `url`, or None where there is no room for it.

        Args:
            name: what tells these contents from all others.
            size: in bytes.
            sha256: of the contents, to be checked once when they are copied.

        Raises:
            ShardError: it cannot be read, or is not what `size` and `sha256` say.
        """
        path = self.folder / f"{name}{SUFFIX}"
        self._mine.add(path)
        if path.is_file() and path.stat().st_size == size:
            with suppress(OSError):  # a read-only mirror serves as well
                os.utime(path)
            return path
        if not self._make_room(size):
            return None
        temporary = self.folder / f"{name}.{os.getpid()}.tmp"
        digest, written = hashlib.sha256(), 0
        try:
            with open_stream(url) as source, temporary.open("wb") as target:
                while block := source.read(1 << 20):
                    digest.update(block)
                    written += target.write(block)
            if written != size or sha256 not in (None, digest.hexdigest()):
                raise OSError(f"its {written} bytes are not the {size} that were promised")
            os.replace(temporary, path)
        except Exception as error:  # every file system of fsspec has errors of its own
            with suppress(OSError):
                temporary.unlink()
            raise unreadable(url, error) from error
        return path

    def _make_room(self, size: int) -> bool:
        copies = {path: path.stat() for path in self.folder.glob(f"*{SUFFIX}")}
        taken = sum(found.st_size for found in copies.values())
        for path in sorted(copies.keys() - self._mine, key=lambda path: copies[path].st_mtime):
            if taken + size <= self.limit:
                break
            path.unlink(missing_ok=True)
            taken -= copies[path].st_size
        return taken + size <= self.limit


def default_folder() -> Path:
    """Where copies lie unless somebody says otherwise: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inpaint_data" / "mirror"


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes [start, end) of a remote file.

    Raises:
        ShardError: it cannot be read, or ends before.
    """
    try:
        files, path = fsspec.core.url_to_fs(url)
        data = bytes(files.cat_file(path, start=start, end=end))
        if len(data) != end - start:
            raise OSError(f"it ends at byte {start + len(data)}, before byte {end}")
    except Exception as error:  # as in Mirror.copy
        raise unreadable(url, error) from error
    return data
