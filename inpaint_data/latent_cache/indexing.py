"""Indexing: sidecars for the tars of a cache that has lost them, or that another tool wrote."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from inpaint_data.batch import PAIRED, PIXELS
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.encoding.vae_loading import load_vae
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.encodings import read_npy
from inpaint_data.latent_cache.folder import CacheFolder, opened
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    Sidecar,
    committed,
    read_cache_file,
    sidecar_path,
    write_cache_file,
)
from inpaint_data.latent_cache.index import Place, ShardIndex, is_count
from inpaint_data.latent_cache.members import (
    HOLE_LATENTS,
    LATENTS,
    MASK,
    MASKED_LATENTS,
    MEMBERS,
    REQUIRED,
    SOFT_MASK,
    masks_member,
    pixels_name,
)
from inpaint_data.latent_cache.merged_file import write_index
from inpaint_data.latent_cache.record import RECORD
from inpaint_data.latent_cache.record_columns import RecordColumns
from inpaint_data.latent_cache.sample_check import SampleCheck
from inpaint_data.latent_cache.settings import CacheSettings, FoundInTars, VaeRecord
from inpaint_data.latent_cache.storage import Storage, storage_of
from inpaint_data.shards.naming import shard_identity
from inpaint_data.shards.reading import IMAGE_EXTENSIONS, Fault, Sample, locate_samples, read_sample
from inpaint_data.shards.stores import within
from inpaint_data.shown import shortened


def index_cache(root: str | Path, vae: str | Autoencoder | None = None) -> list[str]:
    """Write the sidecars that are missing from a folder of tars, and its `cache.json`.

    Every sample is checked as `verify` does it. The inputs of the shards are unknown, so the cache command, given
    their inputs, would make them again.

    Args:
        root: the folder. Its tars have the members of cache format 1.
        vae: the autoencoder that made the latents; needed where there is no `cache.json` to say so.

    Returns:
        The shards that were indexed.

    Raises:
        UsageError: no tar at `root`, or neither a `cache.json` nor `vae`.
        CacheError: a sample that is not as a cache has it, or not like the others; it is named and nothing written.
    """
    with opened(root) as folder:
        return _index(folder, vae)


def _index(folder: CacheFolder, vae: str | Autoencoder | None) -> list[str]:
    tars = sorted(name for name in folder.names() if name.endswith(".tar"))
    if not tars:
        raise UsageError(f"{folder.name}: no tar here to index; name the folder of a cache")
    unindexed = [name for name in tars if not sidecar_path(folder.root, Path(name).stem).exists()]
    has_file = (folder.root / CACHE_FILE).exists()
    settings = read_cache_file(folder.root).settings if has_file else None
    folder.check_writable()
    if settings is None and len(unindexed) < len(tars):
        raise CacheError(
            f"{folder.name}: has sidecars but no {CACHE_FILE}; run the cache command with the same settings, it writes "
            "it anew"
        )
    if settings is None:
        if vae is None:
            raise UsageError(f"vae: there is no {CACHE_FILE} in {folder.name}; name the VAE that made these latents")
        settings = _settings(folder, unindexed, load_vae(vae) if isinstance(vae, str) else vae)
    check = SampleCheck(settings.expected)
    sidecars = []
    for name in unindexed:
        with folder.reading(name) as path:
            sidecars.append(_sidecar(path, settings, check))
    for sidecar in sidecars:
        folder.write(f"{Path(sidecar.shard).stem}.json", sidecar.to_bytes())
    of_all = [Sidecar.read(path) for path in committed(folder.root)]
    write_cache_file(folder, settings.to_json(), of_all)
    write_index(folder, of_all, settings.fingerprint)
    return [sidecar.shard for sidecar in sidecars]


def _settings(folder: CacheFolder, tars: list[str], vae: Autoencoder) -> CacheSettings:
    """The settings as far as samples show them: the first one, and the offsets, windows and sizes of all."""
    offsets: list[int] = []
    windows: set[str] = set()
    sizes: set[tuple[int, int]] = set()
    first: Sample | None = None
    place = Path()  # of the first one
    for name in tars:
        with folder.reading(name) as path:
            for sample in _samples(path):
                if first is None:
                    first, place = sample, path
                record = _record(path, sample)
                for variant in record["variants"]:
                    offsets.append(variant["offset"])
                    windows.add(str(variant.get("window", "square")))  # the check reports a missing one
                sizes.add(tuple(record["target_size"]))
    if first is None:
        raise CacheError(f"{within(folder.name, tars[0])}: no sample in any of the tars; name the folder of a cache")
    record = _record(place, first)
    carries = any(name in first.members for name in IMAGE_EXTENSIONS)
    return CacheSettings(
        vae=VaeRecord.of(vae),
        variants=len(record["variants"]),
        storage=_storage(place, first),
        masked_latents=MASKED_LATENTS in first.members,
        hole_latents=HOLE_LATENTS in first.members,
        pixels=[picture for picture in PIXELS if pixels_name(picture) in first.members],
        means=record.get("means", []),
        indexed=FoundInTars(
            sizes=[list(size) for size in sorted(sizes)],
            low=min(offsets),
            high=max(offsets),
            windows=sorted(windows),
            soft=masks_member(first.members) == SOFT_MASK,
            paired=[name for name, key in PAIRED.items() if f"{key}.npy" in first.members],
            references=_references(place, first),
            carry_image="original" if carries else "crop" if "crop.png" in first.members else "none",
        ),
    )


def _storage(path: Path, sample: Sample) -> Storage:
    storage = storage_of(_array(path, sample, LATENTS).dtype)
    assert storage is not None  # or else it cannot be read
    return storage


def _references(path: Path, sample: Sample) -> int:
    name = f"{PAIRED['references']}.npy"
    return len(_array(path, sample, name)) if name in sample.members else 0


def _array(path: Path, sample: Sample, name: str) -> npt.NDArray[Any]:
    try:
        return read_npy(sample.members[name])
    except CacheError as error:
        raise CacheError(f"{path}, sample {sample.key!r}: {name}: {error}; take it out, or fix it") from None


def _record(path: Path, sample: Sample) -> dict[str, Any]:
    """The record of a sample, checked as far as the settings need it; `SampleCheck` checks the rest."""
    try:
        record = json.loads(sample.members[RECORD])
        variants, size = record["variants"], record["target_size"]
        if not variants or not all(type(variant["offset"]) is int for variant in variants):
            raise ValueError("it has no variants with whole numbers as offsets")
        if not (isinstance(size, list) and len(size) == 2 and all(is_count(side) for side in size)):
            raise ValueError("it has no target_size of two numbers")
        return dict(record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CacheError(
            f"{path}, sample {sample.key!r}: {RECORD} is not that of a cache "
            f"({type(error).__name__}: {shortened(str(error))}); take it out, or fix it"
        ) from None


def _samples(path: Path) -> Iterator[Sample]:
    """The samples of a tar, each with the offsets of its members in the tar."""
    with path.open("rb") as file:
        for place in locate_samples(str(path)):
            if isinstance(place, Fault):
                raise CacheError(f"{path}, sample {place.key!r}: {place.reason}")
            file.seek(place.extent[0])
            item = read_sample(str(path), file.read(place.extent[1] - place.extent[0]))
            if isinstance(item, Fault):
                raise CacheError(f"{path}, sample {item.key!r}: {item.reason}")
            if missing := (REQUIRED | {masks_member(item.members)}) - item.members.keys():
                raise CacheError(
                    f"{path}, sample {item.key!r}: has no {sorted(missing)[0]}; a cache's samples have "
                    f"{LATENTS}, {RECORD}, and {MASK} or {SOFT_MASK}"
                )
            yield replace(item, offsets=place.offsets)


def _sidecar(path: Path, settings: CacheSettings, check: SampleCheck) -> Sidecar:
    keys: list[str] = []
    places: list[dict[str, Place]] = []
    target_sizes: list[tuple[int, int]] = []
    records: list[bytes] = []
    for sample in _samples(path):
        members = {name: data for name, data in sample.members.items() if name in MEMBERS}
        for problem in check.problems(members):
            raise CacheError(f"{path}, sample {sample.key!r}: {problem}; take it out, or fix it")
        keys.append(sample.key)
        places.append({name: Place.of(sample.offsets[name], data) for name, data in sample.members.items()})
        target_sizes.append(check.size)
        records.append(sample.members[RECORD])
    identity = shard_identity(str(path))
    return Sidecar(
        shard=path.name,
        fingerprint=settings.fingerprint,
        input={"name": path.name, "size": 0, "sha256": ""},  # unknown
        output={"size": identity.size, "sha256": identity.sha256},
        variants=settings.variants,
        made_with={},
        index=ShardIndex.of(keys, places, target_sizes),
        records=RecordColumns.of(records),
    )
