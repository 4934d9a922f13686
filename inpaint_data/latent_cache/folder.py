"""Where a cache is written: a folder, or a store by way of a folder here that has what is small."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inpaint_data.durable import NewFile, sync_folder, write_file
from inpaint_data.errors import InpaintDataError, ShardError, UsageError
from inpaint_data.shards.mirror import default_folder
from inpaint_data.shards.store_writing import check_writable, files_in, files_that_start, put_bytes, put_file, remove
from inpaint_data.shards.stores import Stored, is_url, local_path, place_of, read_if_there, read_those_there, within
from inpaint_data.shards.streams import PIECE, open_stream
from inpaint_data.shown import shown

HELD = ".held"
_OWN = (".stamps-", "empty_prompt/")  # what a store's folder here has, beside the sidecars


class CacheFolder:
    """The files of a cache in a folder.

    Attributes:
        root: the folder.
        name: of the cache, for a person.
        place: the root; of a store its URL.
        pause: seconds between two signs of progress.
    """

    pause = 1.0

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)
        self.place: Path | str = root

    def look(self, names_alone: bool = False) -> None:
        """See what is there by now; of a store all that is small is brought here, or its names alone."""

    def check_writable(self) -> None:
        """Make the folder. Raises UsageError where it cannot be written to."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            NewFile(self.root / "writable").drop()
        except OSError as error:
            reason = f"cannot write to {self.root} ({error.strerror}); choose a folder you may write to"
            raise UsageError(f"out: {reason}", ("out",)) from None

    def is_there(self) -> bool:
        """Whether there is such a folder, and it can be read."""
        return self.root.is_dir() and os.access(self.root, os.R_OK | os.X_OK)

    def names(self) -> set[str]:
        """Of what lies in it."""
        return {path.name for path in self.root.iterdir()}

    def tar_size(self, name: str) -> int | None:
        """Bytes of a tar; None where there is none."""
        path = self.root / name
        with suppress(OSError):
            return path.stat().st_size if path.is_file() else None
        return None

    def is_there_now(self, name: str) -> bool:
        """Whether a file is there, though somebody else may just have written it."""
        return (self.root / name).exists()

    def write(self, name: str, data: bytes) -> None:
        """Put a small file under its name, whole; it may lie in a subfolder."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(self.root / name, data)

    def note(self, name: str, data: bytes) -> None:
        """Put a small file that nobody misses should it be torn or lost."""
        (self.root / name).write_bytes(data)

    def noted(self, start: str) -> dict[str, bytes]:
        """What was noted under names that begin so, by whichever process."""
        found = {}
        for path in sorted(self.root.glob(f"{start}*")):
            with suppress(OSError):
                found[path.name] = path.read_bytes()
        return found

    def clear(self, name: str) -> None:
        """Take away what was noted."""
        (self.root / name).unlink(missing_ok=True)

    def publish(self, file: NewFile) -> None:
        """Give a file that was written its name, for good."""
        file.publish()

    def remove(self, name: str) -> None:
        """Take a file away, for good; one that is not there is gone already."""
        if (self.root / name).exists():
            (self.root / name).unlink()
            sync_folder(self.root)

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """A tar to read.

        Raises:
            FileNotFoundError: there is none.
            ShardError: its store does not give it.
        """
        yield self.root / name


class StoreFolder(CacheFolder):
    """A cache in a store. `root` has its sidecars and its `cache.json`; a tar is here only while it is written or read.

    What is written lies in the store before the next file follows: a tar before its sidecar, all sidecars before
    `cache.json`.
    """

    pause = 30.0

    def __init__(self, url: str, root: Path) -> None:
        super().__init__(root)
        self.name, self.place, self.url = url, url, url
        self._files: dict[str, Stored] = {}
        self._brought: dict[str, Stored] = {}
        self._has_looked = False

    def look(self, names_alone: bool = False) -> None:
        self._files = files_in(self.url)
        self._has_looked = True
        if names_alone:
            return
        wanted = {name: stored for name, stored in self._files.items() if _is_wanted(name)}
        changed = [name for name, stored in wanted.items() if self._brought.get(name) != stored]
        self._brought = wanted
        for name, data in read_those_there(self.url, changed).items():
            super().write(name, data)
        here = {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}
        for name in filter(_is_wanted, here - self._files.keys()):
            (self.root / name).unlink()

    def is_there(self) -> bool:
        return bool(self._files)

    def check_writable(self) -> None:
        try:
            check_writable(self.url)
        except ShardError as error:
            raise UsageError(f"out: {error}", ("out",)) from None

    def names(self) -> set[str]:
        return {name.partition("/")[0] for name in self._files}

    def tar_size(self, name: str) -> int | None:
        return self._files[name].size if name in self._files else None

    def is_there_now(self, name: str) -> bool:
        return read_if_there(within(self.url, name)) is not None

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data)
        put_bytes(within(self.url, name), data)
        self._files[name] = Stored(len(data), None)

    def note(self, name: str, data: bytes) -> None:
        put_bytes(within(self.url, name), data)
        self._files[name] = Stored(len(data), None)

    def noted(self, start: str) -> dict[str, bytes]:
        return files_that_start(self.url, start)

    def clear(self, name: str) -> None:
        self.remove(name)

    def publish(self, file: NewFile) -> None:
        put_file(file.temporary, within(self.url, file.path.name))
        self._files[file.path.name] = Stored(file.size, None)
        file.drop()

    def remove(self, name: str) -> None:
        super().remove(name)
        if self._files.pop(name, None) is not None or not self._has_looked:
            remove(within(self.url, name))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        if name not in self._files:
            raise FileNotFoundError(name)
        path = self.root / name
        try:
            with open_stream(within(self.url, name)) as source, path.open("wb") as file:
                while piece := source.read(PIECE):
                    file.write(piece)
            yield path
        finally:
            path.unlink(missing_ok=True)


def _is_wanted(name: str) -> bool:
    return name.startswith(_OWN) or (name.endswith(".json") and "/" not in name)


@contextmanager
def opened(name: str | Path, look: bool = True) -> Iterator[CacheFolder]:
    """A cache's folder, or its store; of that what is small is here until the block ends, unless nobody will `look`.

    Raises:
        UsageError: the store does not answer, or there is no room here. Errors of the block that name a file here name
            it in the store.
    """
    place = place_of(str(name))
    if not is_url(place):
        yield CacheFolder(local_path(place))
        return
    with _here() as root:
        folder = StoreFolder(place, root)
        try:
            if look:
                _look_at_first(folder)
            yield folder
        except InpaintDataError as error:
            error.args = (str(error).replace(str(root), shown(place)), *error.args[1:])
            raise


def _look_at_first(folder: StoreFolder) -> None:
    try:
        folder.look()
    except ShardError as error:
        raise UsageError(str(error)) from None


@contextmanager
def _here() -> Iterator[Path]:
    """A new folder in the user's cache folder, gone when the block ends; those of killed processes go now."""
    import fcntl  # only what lies elsewhere needs it; Windows has none

    above = default_folder().with_name("open")
    try:
        root = above / uuid.uuid4().hex
        above.mkdir(parents=True, exist_ok=True)
        with (above / HELD).open("a") as room:
            fcntl.flock(room, fcntl.LOCK_EX)
            for old in above.glob(f"*/{HELD}"):
                with suppress(OSError), old.open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(old.parent, ignore_errors=True)
            root.mkdir()
            held = (root / HELD).open("w")
            fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        reason = f"cannot write to {above} ({error.strerror}), where files are on their way to a store"
        raise UsageError(f"{reason}; free some space, or name another folder by XDG_CACHE_HOME") from None
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        held.close()
