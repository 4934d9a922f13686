"""One cache as it was when it was opened: its `cache.json`, the columns of its samples, its tars."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.durable import new_file, write_file
from inpaint_data.errors import CacheError, ShardError
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    CacheFile,
    Sidecar,
    committed,
    is_cache,
    missing_cache_file,
    read_cache_file,
    tar_path,
)
from inpaint_data.latent_cache.merged import Broken, Merged, Rows, merge
from inpaint_data.latent_cache.merged_file import INDEX_FILE, MAGIC, read_index, stamps_of, written
from inpaint_data.latent_cache.shard_files import FIX, Check, OpenFiles, Shard, ShardFile
from inpaint_data.shards.mirror import Mirror, mirror_in
from inpaint_data.shards.stores import is_url, local_path, read_folder, read_if_there, within
from inpaint_data.shards.streams import PIECE, open_stream

_log = logging.getLogger(__name__)


class OpenedCache:
    """One cache.

    Attributes:
        root: its folder or URL.
        file: the content of its `cache.json`.
        merged: the columns of its samples.
        files: its tars, in the order of `merged`; None where one has no samples.
    """

    def __init__(self, root: str, mirror: str | None, mirror_bytes: int) -> None:
        self.root, self._mirror_bytes = root, mirror_bytes
        self._url: str | None = None
        self._copies: Mirror | None = None
        self._folder = local_path(root)
        self.files: list[ShardFile | None] = []
        if is_url(root):
            self._url, self._copies = root.rstrip("/"), mirror_in(mirror)
            self.file, self.merged = self._fetched(self._url, self._copies)
        else:
            self.file = read_cache_file(self._folder)
            self.merged = self._of_sidecars() if (found := self._of_index()) is None else found

    def __len__(self) -> int:
        return len(self.merged)

    def _of_index(self) -> Merged | None:
        """The columns of the index beside the sidecars; None unless it is there, whole, and of these."""
        index = read_index(self._folder / INDEX_FILE)
        if index is None or not self._is_ours(index.merged):
            return None
        stamps = stamps_of(self._folder)
        if not index.is_of(self._folder, stamps):
            return None
        # Copied, say: byte by byte it is of these sidecars, and the next one shall not have to read them.
        return index.merged if index.stamps == stamps else written(self._folder, index.merged, stamps)

    def _is_ours(self, merged: Merged) -> bool:
        return merged.header.fingerprint == self.file.fingerprint and self.file.shards_sha256 in (
            None,
            merged.header.shards_sha256,
        )

    def _of_sidecars(self) -> Merged:
        """The columns of the sidecars themselves; of a whole cache their index is written, where it may be."""
        stamps = stamps_of(self._folder)
        sidecars = list(map(Sidecar.read, committed(self._folder)))
        for sidecar in sidecars:
            if sidecar.keys and sidecar.fingerprint != self.file.fingerprint:
                path = tar_path(self._folder, Path(sidecar.shard).stem)
                raise CacheError(f"{path}: made with other settings than cache.json says; {FIX}")
        merged = merge(sidecars, self.file.fingerprint)
        is_whole = self.file.shards_sha256 is not None and self._is_ours(merged)
        return written(self._folder, merged, stamps) if is_whole and self._url is None else merged

    def _fetched(self, url: str, copies: Mirror) -> tuple[CacheFile, Merged]:
        """`cache.json` and the columns of a remote cache: of its index, or else of its sidecars."""
        self._folder = copies.folder / hashlib.sha256(url.encode()).hexdigest()[:16]
        data = read_if_there(within(url, CACHE_FILE))
        if data is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_file(self._folder / CACHE_FILE, data)
            try:
                self.file = read_cache_file(self._folder)
            except CacheError:
                self.file = CacheFile("", {}, None, None)  # as the sidecars' folder says it, below
            if (index := self._fetched_index(url)) is not None:
                return self.file, index
        _fetch_sidecars(url, self._folder)
        self.file = read_cache_file(self._folder)
        return self.file, self._of_sidecars()

    def _fetched_index(self, url: str) -> Merged | None:
        """The columns of a remote cache's index; None where it has none that is of the shards in its `cache.json`."""
        if self.file.shards_sha256 is None:
            return None
        path = self._folder / INDEX_FILE
        index = read_index(path)
        if index is None or not self._is_ours(index.merged):
            try:
                with _one_at_a_time(path.with_name(f"{INDEX_FILE}.lock")):
                    index = read_index(path)  # which another process may have fetched meanwhile
                    if index is None or not self._is_ours(index.merged):
                        _fetch(within(url, INDEX_FILE), path)
                        index = read_index(path)
            except (OSError, ShardError):
                return None  # there is no room, or its store refuses what is not there
        return None if index is None or not self._is_ours(index.merged) else index.merged

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """While it is held, the tars that are open stay open."""
        return self._open_files.lock

    def left_out(self, on_purpose: bool) -> list[tuple[str, Any]]:
        return self.merged.left_out(on_purpose)

    def check_complete(self) -> None:
        """Raises CacheError if samples are missing that `cache.json` counts; a job under way has counted none yet."""
        count = len(self.merged)
        if self.file.totals is not None and count != self.file.totals["samples"]:
            raise CacheError(
                f"{self.root}: its sidecars have {count} samples, but cache.json counts {self.file.totals['samples']}; "
                "run the cache command again, it makes what is missing, or `inpaint-data verify` to see what that is"
            )
        if self.file.shards_sha256 not in (None, self.merged.header.shards_sha256):
            raise CacheError(
                f"{self.root}: cache.json was written for other shards than are here, so a tar and its sidecar were "
                "put in place of some; run the cache command again, it makes those anew"
            )

    def open_tars(self, files: OpenFiles, check: Check) -> None:
        """Make ready to read; each tar here must have the size that its sidecar says."""
        header, self._open_files = self.merged.header, files
        columns = zip(header.shards, header.tar_sizes, header.tar_sha256, header.samples, strict=True)
        self.files = [
            ShardFile(self._folder, shard, files, check, self._url, self._copies, self._mirror_bytes)
            if shard.samples
            else None
            for shard in starmap(Shard, columns)
        ]

    def file_of(self, shard: int) -> ShardFile:
        """The tar of a shard that has samples."""
        file = self.files[shard]
        assert file is not None
        return file

    def rows(self, numbers: npt.NDArray[np.int64], shards: Sequence[int]) -> Rows:
        """The rows of some samples, which are in those shards."""
        try:
            self.merged.check(shards)
        except Broken as broken:
            self._make_anew(str(broken))
        rows: Rows = self.merged.rows[numbers]
        return rows

    def _make_anew(self, why: str) -> None:
        """Take the sidecars in place of an index that proved damaged.

        Raises:
            CacheError: these are others than when the cache was opened.
        """
        _log.warning("%s: its index, %s, is damaged (%s); it is made anew", self.root, INDEX_FILE, why)
        with suppress(OSError):
            (self._folder / INDEX_FILE).unlink()
        if self._url is not None:
            _fetch_sidecars(self._url, self._folder)
        before, self.merged = self.merged.header.shards_sha256, self._of_sidecars()
        if self.merged.header.shards_sha256 != before:
            raise CacheError(f"{self.root}: its shards were changed after it was opened; open it again")

    def all_rows(self) -> Iterator[Rows]:
        """The rows of each shard."""
        for number in range(len(self.merged.header.shards)):
            start, end = self.merged.extent(number)[:2]
            yield self.rows(np.arange(start, end), [number])


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Among the processes of this machine, however they end."""
    import fcntl  # only what lies elsewhere needs it; Windows has none

    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough where a child was forked meanwhile


def _fetch(url: str, path: Path) -> None:
    """Copy the index of a remote cache, unless what the store has is something else."""
    with open_stream(url) as source, suppress(EOFError), new_file(path) as file:
        piece = source.read(PIECE)
        if not piece.startswith(MAGIC):
            raise EOFError  # of many web servers, a page
        while piece:
            file.write(piece)
            piece = source.read(PIECE)


def _fetch_sidecars(url: str, folder: Path) -> None:
    """Copy `cache.json` and the sidecars of a remote cache to a folder of its own."""
    contents = read_folder(url, ".json")
    if CACHE_FILE not in contents and is_cache(url):
        raise CacheError(
            f"{url}: its server has the cache's files but does not list them; copy the cache here, or serve it from a "
            "store that lists folders"
        )
    if CACHE_FILE not in contents:
        raise CacheError(missing_cache_file(url, sidecars=False))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        write_file(folder / name, data)
    for name in {path.name for path in folder.glob("*.json")} - contents.keys():
        (folder / name).unlink(missing_ok=True)
