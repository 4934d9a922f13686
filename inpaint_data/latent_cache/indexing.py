"""Sidecars for the tars of a cache that has lost them, or that another tool wrote."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.encoding.vae_loading import load_vae
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    FORMAT,
    LATENTS,
    MASK,
    MASKED_LATENTS,
    RECORD,
    REQUIRED,
    RESERVED,
    SOFT_MASK,
    TARGET_LATENTS,
    Sidecar,
    committed,
    fingerprint,
    masks_member,
    read_cache_file,
    sidecar_path,
    totals,
)
from inpaint_data.latent_cache.sample_check import Expected, SampleCheck
from inpaint_data.latent_cache.writer import commit_bytes, sha256_of, write_cache_file
from inpaint_data.shards.reading import IMAGE_EXTENSIONS, Fault, Sample, locate_samples, read_sample


def index_cache(root: str | Path, vae: str | Autoencoder | None = None) -> list[str]:
    """Write the sidecars that a folder of tars lacks, and its `cache.json`.

    Every sample is checked as `verify` does it. What the shards were made from is not known, so the cache command,
    given their inputs, would make them again.

    Args:
        root: the folder. Its tars have the members of cache format 1.
        vae: the autoencoder that made the latents; needed where there is no `cache.json` to say so.

    Returns:
        The shards that were indexed.

    Raises:
        UsageError: no tar at `root`, or neither a `cache.json` nor `vae`.
        CacheError: a sample that is not as a cache has it, or not like the others; it is named and nothing written.
    """
    root = Path(root)
    tars = sorted(root.glob("*.tar"))
    if not tars:
        raise UsageError(f"{root}: no tar here to index; name the folder of a cache")
    lacking = [path for path in tars if not sidecar_path(root, path.stem).exists()]
    has_file = (root / CACHE_FILE).exists()
    settings = dict(read_cache_file(root)["settings"]) if has_file else None
    if settings is None and len(lacking) < len(tars):
        raise CacheError(
            f"{root}: has sidecars but no {CACHE_FILE}; run the cache command with the same settings, it writes it anew"
        )
    if settings is None:
        if vae is None:
            raise UsageError(f"vae: there is no {CACHE_FILE} in {root}; name the VAE that made these latents")
        settings = _settings(lacking, load_vae(vae) if isinstance(vae, str) else vae)
    check = SampleCheck(Expected.of(settings))
    made = [_sidecar(path, settings, check) for path in lacking]
    for sidecar in made:
        commit_bytes(sidecar_path(root, Path(sidecar.shard).stem), sidecar.to_bytes())
    write_cache_file(root, settings, totals([Sidecar.read(path) for path in committed(root)]))
    return [sidecar.shard for sidecar in made]


def _settings(tars: list[Path], vae: Autoencoder) -> dict[str, Any]:
    """What the first sample, and the offsets and windows of all, say of how they were made."""
    offsets: list[int] = []
    windows: set[str] = set()
    sizes: set[tuple[int, int]] = set()
    first: Sample | None = None
    for path in tars:
        for sample in _samples(path):
            first = first or sample
            record = json.loads(sample.members[RECORD])
            for variant in record["variants"]:
                offsets.append(int(variant["offset"]))
                windows.add(str(variant.get("window", "square")))  # that it is missing, the check will say
            sizes.add(tuple(record["target_size"]))
    if first is None:
        raise CacheError(f"{tars[0]}: no sample in any of the tars; name the folder of a cache")
    record = json.loads(first.members[RECORD])
    soft = {"soft": "unknown"} if masks_member(first.members) == SOFT_MASK else {}
    carries = any(name in first.members for name in IMAGE_EXTENSIONS)
    return {
        "format": FORMAT,
        "indexed": True,
        "vae": vae.fingerprint() | {"has_posterior": vae.has_posterior, "factor": vae.factor},
        "samples": {
            "sizes": sorted(sizes),
            "target": TARGET_LATENTS in first.members,
            "carry_image": "original" if carries else "crop" if "crop.png" in first.members else "none",
        },
        "mask_offset": {"low": min(offsets), "high": max(offsets), "windows": sorted(windows)},
        "variants": len(record["variants"]),
        "storage": str(np.load(io.BytesIO(first.members[LATENTS]), allow_pickle=False).dtype),
        "masked_latents": MASKED_LATENTS in first.members,
        **soft,
    }


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


def _sidecar(path: Path, settings: dict[str, Any], check: SampleCheck) -> Sidecar:
    keys: list[str] = []
    index: dict[str, dict[str, list[int]]] = {}
    target_size: dict[str, list[int]] = {"height": [], "width": []}
    for sample in _samples(path):
        reserved = RESERVED | {masks_member(sample.members)}
        own = {name: data for name, data in sample.members.items() if name in reserved}
        for problem in check.problems(own):
            raise CacheError(f"{path}, sample {sample.key!r}: {problem}; take it out, or mend it")
        for name in sorted(index.keys() | sample.members.keys()):
            columns = index.setdefault(name, {"offset": [-1] * len(keys), "size": [-1] * len(keys)})
            there = name in sample.members
            columns["offset"].append(sample.offsets[name] if there else -1)
            columns["size"].append(len(sample.members[name]) if there else -1)
        keys.append(sample.key)
        for column, side in zip(target_size.values(), check.size, strict=True):
            column.append(side)
    with path.open("rb") as file:
        output = {"size": path.stat().st_size, "sha256": sha256_of(file)}
    unknown = {"name": path.name, "size": 0, "sha256": ""}
    return Sidecar(
        path.name, fingerprint(settings), unknown, output, int(settings["variants"]), keys, index, target_size
    )
