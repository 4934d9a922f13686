"""How a cache is written: a shard appears whole or not at all, and its sidecar commits it."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from inpaint_data.errors import UsageError
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
    totals,
)


def open_cache(root: Path, settings: Mapping[str, Any]) -> list[Sidecar]:
    """Make or continue the cache at `root` and return the sidecars of its committed shards.

    What a dead run left half-written is removed: temporary files, and tars that no sidecar commits.

    Raises:
        UsageError: the folder cannot be written, holds something else, or a cache made with other settings.
        CacheError: the cache is damaged.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in root.iterdir())
        probe = root / f".writable{TEMPORARY}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"out: cannot write to {root} ({error.strerror}); choose a folder you may write to") from None
    if CACHE_FILE in names:
        cache = read_cache_file(root)
        lines = differences(cache["settings"], dict(settings))
        if lines:
            raise UsageError(
                f"{root}: this cache was made with other settings; use them again or another folder:\n  "
                + "\n  ".join(lines)
            )
    else:
        foreign = [name for name in names if not name.endswith(TEMPORARY)]
        if foreign:
            raise UsageError(f"{root}: holds {foreign[0]!r} but no {CACHE_FILE}; choose an empty folder for the cache")
        _commit_bytes(root / CACHE_FILE, _cache_file(settings, []))

    sidecars = [Sidecar.read(path) for path in committed(root)]
    stems = {path.stem for path in committed(root)}
    for path in root.iterdir():
        if path.name.endswith(TEMPORARY) or (path.suffix == ".tar" and path.stem not in stems):
            path.unlink()
    return sidecars


def write_totals(root: Path, settings: Mapping[str, Any]) -> dict[str, int]:
    """Bring `cache.json` up to date with the committed shards and return their totals."""
    sidecars = [Sidecar.read(path) for path in committed(root)]
    _commit_bytes(root / CACHE_FILE, _cache_file(settings, sidecars))
    return totals(sidecars)


def _cache_file(settings: Mapping[str, Any], sidecars: Sequence[Sidecar]) -> bytes:
    content = {
        "format": FORMAT,
        "fingerprint": fingerprint(settings),
        "settings": dict(settings),
        "totals": totals(sidecars),
    }
    return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"  # people read this one


class ShardWriter:
    """Writes one shard under a temporary name; `commit` makes it real, `drop` removes it."""

    def __init__(self, root: Path, stem: str) -> None:
        self._root, self._stem = root, stem
        self._temporary = root / f".{stem}.tar{TEMPORARY}"
        self._keys: list[str] = []
        self._index: dict[str, dict[str, list[int]]] = {}
        self._file: BinaryIO = self._temporary.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample: member name -> bytes."""
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

    def commit(
        self, fingerprint: str, source: Mapping[str, Any], variants: int, quarantined: Sequence[Quarantined]
    ) -> Sidecar:
        """Make the shard durable under its name, then its sidecar.

        Args:
            fingerprint: of the cache.
            source: `name`, `size` and `sha256` of the input shard.
        """
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        for columns in self._index.values():
            missed = len(self._keys) - len(columns["offset"])
            columns["offset"] += [-1] * missed
            columns["size"] += [-1] * missed
        with self._temporary.open("rb") as written:
            digest = sha256_of(written)
        sidecar = Sidecar(
            shard=f"{self._stem}.tar",
            fingerprint=fingerprint,
            input=dict(source),
            output={"size": self._temporary.stat().st_size, "sha256": digest},
            variants=variants,
            keys=self._keys,
            index=self._index,
            quarantined=list(quarantined),
        )
        os.replace(self._temporary, tar_path(self._root, self._stem))
        _sync_folder(self._root)
        _commit_bytes(sidecar_path(self._root, self._stem), sidecar.to_bytes())
        return sidecar

    def drop(self) -> None:
        """Remove what was written so far."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def sha256_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _commit_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """A rename is durable only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
