"""The merged index beside the sidecars, `.index`: the columns of `merged.py` in a file that processes map together.

It is derived from the sidecars and never needed: whoever finds none, or one that is not of the sidecars that are there,
reads those, and writes it anew where it may.
"""

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from inpaint_data.durable import new_file
from inpaint_data.errors import CacheError, ShardError
from inpaint_data.latent_cache.encodings import json_bytes
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import CACHE_FILE, Sidecar, committed, read_cache_file
from inpaint_data.latent_cache.merged import Broken, Header, Merged, merge, row_type

INDEX_FILE = ".index"
MAGIC = b"inpaint_data merged index 1\n"
Stamp = list[int]  # size, times of change in nanoseconds, and number of a file
Stamps = Mapping[str, Stamp]  # of sidecars, by name
_HEAD = len(MAGIC) + 8 + 32  # then the head, whose length and SHA-256 these are


def stamps_of(root: Path) -> Stamps:
    """What the file system says of the sidecars in a folder, without reading one."""
    stamps = {}
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.endswith(".json") and entry.name != CACHE_FILE and not entry.name.startswith("."):
                status = entry.stat()
                stamps[entry.name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return stamps


@dataclass(frozen=True)
class IndexFile:
    """A merged index as it was read: its columns, and the stamps of the sidecars that it was made of."""

    path: Path
    merged: Merged
    stamps: Stamps

    def is_of(self, root: Path, stamps: Stamps) -> bool:
        """Whether these are the very sidecars: by their stamps, or else byte by byte."""
        header = self.merged.header
        names = [f"{Path(shard).stem}.json" for shard in header.shards]
        if sorted(names) != sorted(stamps):
            return False
        return self.stamps == stamps or all(
            _is_sidecar(root / name, sha256) for name, sha256 in zip(names, header.sidecars, strict=True)
        )


def _is_sidecar(path: Path, sha256: str) -> bool:
    """Whether a file is the sidecar of that hash, which it has in itself and which is of all else in it."""
    try:
        own, data = f'"sha256":"{sha256}",'.encode(), path.read_bytes()
    except OSError:
        return False
    return data.count(own) == 1 and hashlib.sha256(data.replace(own, b"")).hexdigest() == sha256


def read_index(path: Path) -> IndexFile | None:
    """The index in a file, mapped; None where there is none, or a damaged one."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _read(path, mapped)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def _read(path: Path, mapped: mmap.mmap) -> IndexFile:
    start = _HEAD + int.from_bytes(mapped[len(MAGIC) : len(MAGIC) + 8], "little")
    data = mapped[_HEAD:start]
    if mapped[: len(MAGIC)] != MAGIC or hashlib.sha256(data).digest() != mapped[_HEAD - 32 : _HEAD]:
        raise Broken("it has no whole head")
    head = json.loads(data)
    blocks = {}
    for name, (size, crc32) in head["blocks"].items():
        start += -start % 64
        blocks[name] = memoryview(mapped)[start : start + size]
        start += size
        if crc32 is not None and zlib.crc32(blocks[name]) != crc32:
            raise Broken(f"its {name} do not have their checksum")
    if start != len(mapped):
        raise Broken("it is longer or shorter than it says")
    header = Header(**json.loads(bytes(blocks["header"])))
    rows = np.frombuffer(blocks["rows"], row_type(len(header.members), header.variants))
    buckets = np.frombuffer(blocks["buckets"], np.int32)
    if not len(rows) == len(buckets) == sum(header.samples):
        raise Broken("it does not have a row for each sample")
    left_out = blocks["left_out"]
    merged = Merged(header, rows, buckets, blocks["text"], lambda: json.loads(bytes(left_out)))
    merged.mapped_from = path
    return IndexFile(path, merged, head["stamps"])


def encoded(merged: Merged, stamps: Stamps) -> Iterator[Any]:
    """The parts of the file, to be written one after another."""
    if not merged.header.crc32:
        merged.note_checksums()
    # Rows and texts have a checksum for each shard, which is looked at when one is first read.
    checked = {"header": json_bytes(header_json(merged.header)), "left_out": json_bytes(merged.all_left_out())}
    checked["buckets"] = merged.buckets.tobytes()
    blocks = {**checked, "rows": np.ascontiguousarray(merged.rows).view(np.uint8).data, "text": merged.text}
    sizes = {name: [len(data), zlib.crc32(data) if name in checked else None] for name, data in blocks.items()}
    head = json.dumps({"stamps": stamps, "blocks": sizes}).encode()
    yield MAGIC + len(head).to_bytes(8, "little") + hashlib.sha256(head).digest() + head
    at = _HEAD + len(head)
    for data in blocks.values():
        yield bytes(-at % 64)
        yield data
        at += -at % 64 + len(data)


def header_json(header: Header) -> dict[str, Any]:
    return {each.name: getattr(header, each.name) for each in fields(header)}


def written(root: Path, merged: Merged, stamps: Stamps) -> Merged:
    """The columns, mapped from the index that was written; as they are where the folder does not take one."""
    with suppress(OSError):
        with new_file(root / INDEX_FILE) as file:
            for part in encoded(merged, stamps):
                file.write(part)
        if (index := read_index(root / INDEX_FILE)) is not None and index.stamps == stamps:
            return index.merged
    return merged


def write_index(folder: CacheFolder, sidecars: Sequence[Sidecar], fingerprint: str) -> None:
    """Write the merged index of a whole cache, unless it is there; that it cannot be written is no error."""
    try:
        if isinstance(folder.place, Path):
            stamps = stamps_of(folder.root)
            index = read_index(folder.root / INDEX_FILE)
            if index is None or not index.is_of(folder.root, stamps):
                written(folder.root, merge(sidecars, fingerprint), stamps)
        else:
            folder.write(INDEX_FILE, b"".join(encoded(merge(sidecars, fingerprint), {})))
    except (OSError, ShardError):
        return


def index_again(folder: CacheFolder) -> None:
    """Write the merged index of what is in a folder, where that is a whole cache."""
    try:
        file = read_cache_file(folder.root)
        if file.shards_sha256 is not None:
            write_index(folder, list(map(Sidecar.read, committed(folder.root))), file.fingerprint)
    except CacheError:
        return
