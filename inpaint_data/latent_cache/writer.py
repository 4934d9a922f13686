"""Cache writer: a shard appears whole or not at all, and its sidecar commits it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from inpaint_data.durable import NewFile, name_of_leftover
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    Quarantined,
    Sidecar,
    committed,
    fingerprint,
    read_cache_file,
    sidecar_path,
    tar_path,
)
from inpaint_data.latent_cache.index import Place, ShardIndex
from inpaint_data.latent_cache.record import RECORD
from inpaint_data.latent_cache.record_columns import RecordColumns
from inpaint_data.latent_cache.settings import incompatible
from inpaint_data.shards.tar import Damage, TarStream, members_of_tar
from inpaint_data.shards.writing import tar_writer


def check_folder(folder: CacheFolder) -> None:
    """Make the cache's folder, and check that it can be written and holds nothing but a cache.

    Raises:
        UsageError: it cannot be written, or holds something else.
    """
    folder.check_writable()
    names = sorted(folder.names())
    foreign = [name for name in names if not name.startswith(".")]
    if CACHE_FILE not in names and foreign and not committed(folder.root):
        raise UsageError(
            f"{folder.name}: holds {foreign[0]!r} but no {CACHE_FILE}; choose an empty folder for the cache"
        )


def settings_for(folder: CacheFolder, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to write to the cache there with: its own where there is one, if a run with `settings` fits.

    `cache.json` may be missing or damaged if every sidecar has the fingerprint of these settings.

    Args:
        folder: of the cache.
        settings: as `CacheSettings.to_json` gives them.

    Raises:
        UsageError: the settings differ; every field that does is named with both values.
        CacheError: `cache.json` is damaged.
    """
    root = folder.root
    sidecars = committed(root) if root.is_dir() else []
    if not (root / CACHE_FILE).exists() and not sidecars:
        return dict(settings)
    try:
        previous = read_cache_file(root).settings_json
    except CacheError:
        if not sidecars or any(Sidecar.read(path).fingerprint != fingerprint(settings) for path in sidecars):
            raise
        previous = dict(settings)
    if fingerprint(previous) != fingerprint(settings) and (lines := incompatible(previous, settings)):
        fix = "use them again or another folder"
        if not any(Sidecar.read(path).keys for path in sidecars):
            fix = "it has no samples: delete it, and run again"
        raise UsageError(f"{folder.name}: made with other settings; {fix}: {'; '.join(lines)}")
    return previous


def clean(folder: CacheFolder, stems: Callable[[str], bool]) -> None:
    """Remove what a dead job left of the shards that `stems` accepts: temporary files, and tars without a sidecar.

    No other process may be writing these shards."""
    for file in folder.names():
        name = name_of_leftover(file, ours=_is_of_a_shard) or file
        stem = name.removesuffix(".tar") if name.endswith(".tar") else name.removesuffix(".json")
        uncommitted = file.endswith(".tar") and not sidecar_path(folder.root, stem).exists()
        if (name != file or uncommitted) and stems(stem):
            folder.remove(file)


def _is_of_a_shard(name: str) -> bool:
    return name.endswith((".tar", ".json")) and name != CACHE_FILE


class ShardWriter:
    """Writes one shard under a temporary name; `commit` makes it real, `drop` removes it."""

    def __init__(self, folder: CacheFolder, stem: str) -> None:
        self._folder, self._stem = folder, stem
        self._file = NewFile(tar_path(folder.root, stem))
        self._tar = tar_writer(self._file)
        self._keys: list[str] = []
        self._members: list[tuple[int, str]] = []  # row and name of each, in the order of the tar
        self._target_sizes: list[Sequence[int]] = []
        self._records: list[bytes] = []

    def add(self, key: str, members: Mapping[str, bytes], target_size: Sequence[int]) -> None:
        """Append one sample: member name -> bytes. `target_size` is the (height, width) of its image."""
        self._tar.write({"__key__": key, **members})
        self._members += [(len(self._keys), name) for name in sorted(members)]
        self._keys.append(key)
        self._target_sizes.append(target_size)
        self._records.append(members[RECORD])

    def commit(
        self,
        fingerprint: str,
        source: Mapping[str, Any],
        variants: int,
        made_with: Mapping[str, Any],
        quarantined: Sequence[Quarantined],
        filtered: Sequence[Quarantined] = (),
    ) -> Sidecar:
        """Make the shard durable under its name, then its sidecar.

        Args:
            fingerprint: of the cache.
            source: `name`, `size` and `sha256` of the input shard.
            made_with: what moves the last bits of its latents.

        Raises:
            OSError: the disk is full, failing, read-only or gone.
            CacheError: the disk does not give back what was written.
            ShardError: a store does not take it.
        """
        self._tar.close()
        self._file.sync()
        sidecar = Sidecar(
            shard=f"{self._stem}.tar",
            fingerprint=fingerprint,
            input=dict(source),
            output={"size": self._file.size, "sha256": self._file.sha256.hexdigest()},
            variants=variants,
            made_with=dict(made_with),
            index=self._read_back(),
            quarantined=list(quarantined),
            filtered=list(filtered),
            records=RecordColumns.of(self._records),
        )
        # From here to the sidecar's rename the shard is uncommitted: an older sidecar must not vouch for a newer tar.
        self._folder.remove(f"{self._stem}.json")
        self._folder.publish(self._file)
        self._folder.write(f"{self._stem}.json", sidecar.to_bytes())
        return sidecar

    def _read_back(self) -> ShardIndex:
        """The index of the tar, read from the disk."""
        places: list[dict[str, Place]] = [{} for _ in self._keys]
        with self._file.temporary.open("rb") as written:
            source = TarStream(str(self._file.temporary), written)
            try:
                for (row, name), member in zip(self._members, members_of_tar(source), strict=True):
                    offset = source.offset
                    places[row][name] = Place.of(offset, source.exactly(member.size, str(member)))
                    source.skip(member.padded - member.size, str(member))
            except (Damage, ValueError):
                pass  # the hash below differs then
            source.skip_to_end()
        if source.sha256.digest() != self._file.sha256.digest():
            raise CacheError(f"{self._file.temporary}: reads back other bytes than were written; check the disk")
        return ShardIndex.of(self._keys, places, self._target_sizes)

    def drop(self) -> None:
        """Remove what was written so far; if that fails, the next run does it."""
        with suppress(OSError, ValueError):  # closed while it can still write: tarfile complains when it cannot later
            self._tar.close()
        self._file.drop()
