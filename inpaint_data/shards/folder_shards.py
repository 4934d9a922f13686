"""A folder of images read as the shards that `pack` would make of it, byte for byte, without making them.

They are files of a file system of fsspec, `folder:///data/photos/photos-000000.tar`, so that whatever reads a shard
reads them too.
"""

import hashlib
import io
import logging
import os
import tarfile
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from inpaint_data.errors import ShardError, UsageError
from inpaint_data.folders.files import IMAGES, File, LeftOut, first_of, shard_prefix
from inpaint_data.folders.owners import Member
from inpaint_data.folders.pairing import pair_folder
from inpaint_data.shards.reading import name_problem
from inpaint_data.shards.stores import FOLDER, file_system
from inpaint_data.shown import shown

SHARD_SIZE = 1000  # samples, as pack's
BLOCK = 2**20  # bytes read at a time
_log = logging.getLogger(__name__)


class FolderShards(AbstractFileSystem):  # type: ignore[misc]
    """The shards of folders, as files of each."""

    protocol = "folder"
    root_marker = "/"

    # Of the process: fsspec makes an object for each thread, and what a folder holds is looked up once for all.
    _lock = threading.RLock()
    _samples: ClassVar[dict[str, list[tuple[str, Mapping[str, Member]]]]] = {}  # folder -> its samples by key
    _shards: ClassVar[dict[str, "_Shard"]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix(FOLDER).strip("/")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        folder = self._strip_protocol(path)
        if folder.endswith(".tar"):
            infos = [self.info(folder)]
        else:
            count = -(-len(self._of(folder)) // SHARD_SIZE)
            prefix = shard_prefix(Path(folder))
            infos = [self.info(f"{folder}/{prefix}-{number:06d}.tar") for number in range(count)]
        return infos if detail else [info["name"] for info in infos]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if not path.endswith(".tar"):
            if not os.path.isdir(path):
                raise FileNotFoundError(path)
            return {"name": path, "type": "directory", "size": 0}
        shard = self._shard(path)
        return {"name": path, "type": "file", "size": shard.size, "etag": shard.stamp}

    def invalidate_cache(self, path: str | None = None) -> None:
        """Look at the files of a shard anew; without a path, also at what the folders hold."""
        with self._lock:
            if path is None:
                self._samples.clear()
                self._shards.clear()
            else:
                self._shards.pop(self._strip_protocol(path), None)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        shard = self._shard(self._strip_protocol(path))
        return shard.read(start or 0, shard.size if end is None else min(end, shard.size))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "_ShardFile":
        if mode != "rb":
            raise OSError("a folder is only read as shards; write with pack")
        return _ShardFile(self, path, "rb", block_size=BLOCK, cache_type="readahead")

    def _of(self, folder: str) -> list[tuple[str, Mapping[str, Member]]]:
        with self._lock:
            if folder not in self._samples:
                self._samples[folder] = _samples_of(folder)
            return self._samples[folder]

    def _shard(self, path: str) -> "_Shard":
        with self._lock:
            if path not in self._shards:
                folder, _, name = path.rpartition("/")
                number = name.removesuffix(".tar").rpartition("-")[2]
                samples = self._of(folder)
                first = int(number) * SHARD_SIZE if number.isdecimal() else len(samples)
                if first >= len(samples) or name != f"{shard_prefix(Path(folder))}-{number:0>6}.tar":
                    raise FileNotFoundError(path)
                self._shards[path] = _Shard.of(samples[first : first + SHARD_SIZE])
            return self._shards[path]


def _samples_of(folder: str) -> list[tuple[str, Mapping[str, Member]]]:
    """The samples of a folder by key; what is left out is said."""
    pairing = pair_folder(folder)
    bad = [f"{left.name}: {left.reason}" for left in pairing.left_out if left.is_bad]
    problems = {key: problem for key in pairing.samples if (problem := name_problem(key))}
    bad += [f"{key} {problem}" for key, problem in problems.items()]
    if bad:
        _log.warning(
            "%s: %d files are left out, the first %s; inpaint-data pack %s --out shards writes the list of all",
            *(shown(folder), len(bad), shown(bad[0]), shown(folder)),
        )
    aside = [f"{left.name}: {left.reason}" for left in pairing.left_out if not left.is_bad and _is_picture(left)]
    if aside:
        _log.warning("%s: %d pictures are not used, the first %s", shown(folder), len(aside), shown(aside[0]))
    for note in pairing.notes:
        _log.warning("%s: %s", shown(folder), shown(note))
    return [(key, files) for key, files in pairing.samples.items() if key not in problems]


def _is_picture(left: LeftOut) -> bool:
    return File(left.name, Path()).extension in IMAGES


class _ShardFile(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path, start, end)
        return data


@dataclass(frozen=True)
class _Shard:
    """A tar that is not there: headers, and the files between them."""

    parts: Sequence[tuple[Member, int]]  # bytes or a file, and the length
    ends: Sequence[int]  # of the parts
    stamp: str  # another one when a file changes

    @classmethod
    def of(cls, samples: Sequence[tuple[str, Mapping[str, Member]]]) -> "_Shard":
        parts: list[tuple[Member, int]] = []
        stamp = hashlib.sha256()
        for key, members in samples:
            for name, member in sorted(members.items()):
                if isinstance(member, Path):
                    status = member.stat()
                    size, mark = status.st_size, f"{member} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
                else:
                    size, mark = len(member), hashlib.sha256(member).hexdigest()
                stamp.update(f"{key} {name} {mark}\n".encode("utf-8", "surrogateescape"))
                header = _header(f"{key}.{name}", size)
                parts += [(header, len(header)), (member, size)]
                if padding := -size % tarfile.BLOCKSIZE:
                    parts.append((bytes(padding), padding))
        length = sum(size for _, size in parts) + 2 * tarfile.BLOCKSIZE
        closing = 2 * tarfile.BLOCKSIZE + -length % tarfile.RECORDSIZE
        parts.append((bytes(closing), closing))
        return cls(parts, list(accumulate(size for _, size in parts)), stamp.hexdigest())

    @property
    def size(self) -> int:
        return self.ends[-1]

    def read(self, start: int, end: int) -> bytes:
        """The bytes [start, end). Raises OSError where a file is gone, or has another size by now."""
        pieces = io.BytesIO()
        place = bisect_right(self.ends, start)
        while start < end:
            member, size = self.parts[place]
            begin = self.ends[place] - size
            last = min(end, self.ends[place])
            pieces.write(_piece(member, start - begin, last - begin, size))
            start, place = last, place + 1
        return pieces.getvalue()


def _header(name: str, size: int) -> bytes:
    """As `tar_writer` writes it."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode, info.uname, info.gname = size, 0, 0o644, "", ""
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _piece(member: Member, start: int, end: int, size: int) -> bytes:
    if isinstance(member, bytes):
        return member[start:end]
    with member.open("rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise OSError(f"{member} was changed while it was read; run again")
        file.seek(start)
        data = file.read(end - start)
    if len(data) != end - start:
        raise OSError(f"{member} was cut short while it was read; run again")
    return data


def folder_as_shards(folder: str) -> list[str]:
    """The URLs of the shards that a local folder of images is read as; none of a folder without images.

    Raises:
        UsageError: its images cannot be told from its masks.
        ShardError: it cannot be read.
    """
    if first_of(Path(folder), IMAGES) is None:
        return []
    url = f"{FOLDER}{os.path.abspath(folder)}"
    files, path = file_system(url)
    files.invalidate_cache()
    try:
        return [f"{FOLDER}{name}" for name in files.ls(path, detail=False)]
    except UsageError as error:
        raise UsageError(f"{error}; these are flags of `inpaint-data pack`, which makes shards of it") from None
    except OSError as error:
        raise ShardError(f"{folder}: {error}; make it readable") from None
