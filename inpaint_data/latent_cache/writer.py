"""How a cache is written: a shard appears whole or not at all, and its sidecar commits it."""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    FORMAT,
    TEMPORARY,
    Quarantined,
    Sidecar,
    committed,
    differences,
    fingerprint,
    read_cache_file,
    sidecar_path,
    tar_path,
)
from inpaint_data.latent_cache.lock import is_running


def check_folder(root: Path) -> None:
    """Make the cache's folder and see that it may be written and holds nothing but a cache.

    Raises:
        UsageError: it cannot be written, or holds something else.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in root.iterdir())
        probe = root / f".writable.{os.getpid()}{TEMPORARY}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"out: cannot write to {root} ({error.strerror}); choose a folder you may write to") from None
    foreign = [name for name in names if not name.startswith(".")]
    if CACHE_FILE not in names and foreign and not committed(root):
        raise UsageError(f"{root}: holds {foreign[0]!r} but no {CACHE_FILE}; choose an empty folder for the cache")


def check_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """See that the cache at `root`, if there is one, was made with these settings.

    A `cache.json` that is missing or damaged is no hindrance where every sidecar has the fingerprint of these settings.

    Raises:
        UsageError: it was not; every field that differs is named with both values.
        CacheError: `cache.json` is damaged.
    """
    sidecars = committed(root) if root.is_dir() else []
    if not (root / CACHE_FILE).exists() and not sidecars:
        return
    try:
        before = read_cache_file(root)["settings"]
    except CacheError:
        if not sidecars or any(Sidecar.read(path).fingerprint != fingerprint(settings) for path in sidecars):
            raise
        before = settings
    lines = differences(before, dict(settings))
    if lines:
        raise UsageError(f"{root}: made with other settings; use them again or another folder: {'; '.join(lines)}")


def write_cache_file(root: Path, settings: Mapping[str, Any], totals: Mapping[str, int] | None) -> None:
    """Write `cache.json`. Without totals it says that a job is under way, or was when it died."""
    content = {
        "format": FORMAT,
        "fingerprint": fingerprint(settings),
        "settings": dict(settings),
        "totals": None if totals is None else dict(totals),
    }
    # Indented: people read this one.
    commit_bytes(root / CACHE_FILE, json.dumps(content, sort_keys=True, indent=1).encode() + b"\n")


def clean(root: Path, stems: Callable[[str], bool]) -> None:
    """Remove what a dead job left of those shards: temporary files, and tars that no sidecar commits."""
    for path in root.iterdir():
        stem = re.sub(r"^\.|(\.tar|\.json)?(\.\d+)?\.tmp$|\.tar$", "", path.name)
        writer = re.search(r"\.(\d+)\.tmp$", path.name)
        if writer and is_running(int(writer[1])):
            continue  # another process of this job is about to rename it
        dead = path.name.endswith(TEMPORARY) or (path.suffix == ".tar" and not sidecar_path(root, stem).exists())
        if dead and stems(stem):
            path.unlink(missing_ok=True)


class ShardWriter:
    """Writes one shard under a temporary name; `commit` makes it real, `drop` removes it."""

    def __init__(self, root: Path, stem: str) -> None:
        self._root, self._stem = root, stem
        self._temporary = root / f".{stem}.tar{TEMPORARY}"
        self._keys: list[str] = []
        self._index: dict[str, dict[str, list[int]]] = {}
        self._target_size: dict[str, list[int]] = {"height": [], "width": []}
        self._file = _Hashing(self._temporary.open("wb"))
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # type: ignore[call-overload]  # noqa: SIM115

    def add(self, key: str, members: Mapping[str, bytes], target_size: Sequence[int]) -> None:
        """Append one sample: member name -> bytes. `target_size` is the (height, width) of its picture."""
        for name in sorted(members):
            entry = tarfile.TarInfo(f"{key}.{name}")
            # A float time would add a PAX header to each member; whole zero keeps equal input equal in bytes.
            entry.size, entry.mtime, entry.mode = len(members[name]), 0, 0o644
            header = entry.tobuf(tarfile.GNU_FORMAT, self._tar.encoding, self._tar.errors or "strict")
            columns = self._index.setdefault(name, {"offset": [], "size": []})
            missed = len(self._keys) - len(columns["offset"])
            columns["offset"] += [-1] * missed + [self._tar.offset + len(header)]
            columns["size"] += [-1] * missed + [entry.size]
            self._tar.addfile(entry, io.BytesIO(members[name]))
        self._keys.append(key)
        for column, side in zip(self._target_size.values(), target_size, strict=True):
            column.append(int(side))

    def commit(
        self,
        fingerprint: str,
        source: Mapping[str, Any],
        variants: int,
        quarantined: Sequence[Quarantined],
        filtered: Sequence[Quarantined] = (),
    ) -> Sidecar:
        """Make the shard durable under its name, then its sidecar.

        Args:
            fingerprint: of the cache.
            source: `name`, `size` and `sha256` of the input shard.

        Raises:
            OSError: the disk is full, failing, read-only or gone.
            CacheError: the disk does not give back what was written.
        """
        self._tar.close()
        self._file.sync_and_close()
        for columns in self._index.values():
            missed = len(self._keys) - len(columns["offset"])
            columns["offset"] += [-1] * missed
            columns["size"] += [-1] * missed
        with self._temporary.open("rb") as written:
            digest = sha256_of(written)
        if digest != self._file.sha256.hexdigest():
            raise CacheError(f"{self._temporary}: reads back other bytes than were written; check the disk")
        sidecar = Sidecar(
            shard=f"{self._stem}.tar",
            fingerprint=fingerprint,
            input=dict(source),
            output={"size": self._temporary.stat().st_size, "sha256": digest},
            variants=variants,
            keys=self._keys,
            index=self._index,
            target_size=self._target_size,
            quarantined=list(quarantined),
            filtered=list(filtered),
        )
        # From here to the sidecar's rename the shard is uncommitted: an older sidecar must not vouch for a newer tar.
        if sidecar_path(self._root, self._stem).exists():
            sidecar_path(self._root, self._stem).unlink()
            sync_folder(self._root)
        os.replace(self._temporary, tar_path(self._root, self._stem))
        sync_folder(self._root)
        commit_bytes(sidecar_path(self._root, self._stem), sidecar.to_bytes())
        return sidecar

    def drop(self) -> None:
        """Remove what was written so far; where even that fails, the next run does it."""
        with suppress(OSError):
            self._file.file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()

    def sync_and_close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def sha256_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def commit_bytes(path: Path, data: bytes) -> None:
    """Put `data` under `path`, whole and durable, or leave what was there."""
    # Every process of a job may write the cache's own files: each has a temporary name of its own.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A rename is durable only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
