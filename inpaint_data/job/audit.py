"""Whether a cache holds what its input shards and its autoencoder give."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric import Fabric

from inpaint_data.encoding.presets import Preset
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import CacheError, SampleError, ShardError, UsageError
from inpaint_data.job.caching import cache_settings, fabric_for
from inpaint_data.job.shard_job import encode
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    LATENTS,
    MASKED_LATENTS,
    SOFT_MASK,
    TARGET_LATENTS,
    Quarantined,
    Sidecar,
    committed,
    differences,
    fingerprint,
    members_of,
    read_cache_file,
    read_png,
    sidecar_path,
    tar_path,
)
from inpaint_data.latent_cache.verify import Problem, Verification, verify_files
from inpaint_data.masks.offsets import offset_from
from inpaint_data.masks.soft_border import SoftBorder
from inpaint_data.pictures.settings import SampleSettings, settings_of
from inpaint_data.pictures.views import Views
from inpaint_data.pipeline.image_batches import ShardEnd
from inpaint_data.seeding import generator_for
from inpaint_data.shards.reading import Fault, expand_shards, read_shard, shard_stem
from inpaint_data.training.cache_check import OF_CUTS
from inpaint_data.training.datamodule import InpaintDataModule

ENCODED_AGAIN = 3  # shards, one batch of each
TOLERANCE = 2e-2  # of 1 + |value|, where device, threads or versions are not those of the cache


def verify_cache(
    root: str | Path, deep: bool = False, against: str | list[str] | None = None, vae: str | Autoencoder = "demo"
) -> Verification:
    """Check every file of a cache, every member of every shard, and that they say the same.

    Args:
        root: the cache's folder.
        deep: also encode the first batch of three shards again, as the job did, and compare; needs `against`.
        against: the input shards, as `cache_latents` takes them: every sample of theirs must be accounted for.
        vae: with `deep`, the autoencoder that the cache was made with.

    Returns:
        The totals and every problem that was found; `ok` when there is none.

    Raises:
        UsageError: no cache at `root`, no such input shards, `deep` without `against`, or another autoencoder.
    """
    if deep and against is None:
        raise UsageError("deep: encoding again needs the pictures; name the input shards with against")
    inputs = [] if against is None else expand_shards(against)
    found, root = verify_files(root), Path(root)
    if against is None:
        return found
    unchanged: list[tuple[str, Sidecar]] = []
    problems = [*found.problems, *_account(root, inputs, unchanged)]
    notes = found.notes
    if deep:
        more, note = _encode_again(root, unchanged, vae, {problem.file for problem in problems})
        problems, notes = problems + more, [*notes, note]
    return replace(found, problems=problems, notes=notes)


def _account(root: Path, inputs: Sequence[str], unchanged: list[tuple[str, Sidecar]]) -> Iterator[Problem]:
    """Compare the inputs with the sidecars; those whose bytes are still the same are appended to `unchanged`."""
    stems = set(map(shard_stem, inputs))
    views = _views(root)
    for path in committed(root):
        if path.stem not in stems:
            yield Problem(path.name, None, "has no input any more; give its input too, or delete it and its tar")
    for shard in inputs:
        path = sidecar_path(root, shard_stem(shard))
        if not path.exists():
            yield Problem(shard, None, f"is not in the cache, which has no {path.name}")
            continue
        try:
            sidecar = Sidecar.read(path)
            given, reading = list[Fault | str](), read_shard(shard)
            while True:
                try:
                    item = next(reading)
                except StopIteration as end:
                    identity = end.value
                    break
                given.append(item if isinstance(item, Fault) else item.key)
        except CacheError:
            continue  # `verify_files` has named it
        except ShardError as error:
            yield Problem(shard, None, str(error).removeprefix(f"{shard}: "))
            continue
        if (identity.size, identity.sha256) != (sidecar.input["size"], sidecar.input["sha256"]):
            yield Problem(shard, None, "has changed since it was cached; the cache command does it again")
            continue
        unchanged.append((shard, sidecar))
        yield from _accounts(shard, path.name, given, sidecar, views)


def _views(root: Path) -> Views:
    """Those of the cache's settings, or one view where `verify_files` has named what is wrong with them."""
    try:
        return settings_of(read_cache_file(root)["settings"]["samples"]).views
    except (CacheError, UsageError, KeyError, TypeError):
        return SampleSettings().views


def _accounts(shard: str, file: str, given: Sequence[Fault | str], sidecar: Sidecar, views: Views) -> Iterator[Problem]:
    """Each sample of the input once among the cached and the quarantined, and nothing else among them."""
    wanted = Counter(key for item in given if (key := item.key if isinstance(item, Fault) else item) is not None)
    # How many views are accounted for: a whole sample that is left out stands for all of its own.
    listed = Counter(map(views.sample_key, sidecar.keys))
    for entry in (*sidecar.quarantined, *sidecar.filtered):
        if entry.key is not None:
            whole = entry.key in wanted
            listed[entry.key if whole else views.sample_key(entry.key)] += views.count if whole else 1
    for key in wanted:
        if listed[key] < wanted[key] * views.count and not any(
            _covers(sidecar.quarantined, item) for item in given if _of(item, key)
        ):
            some = "not all of its views are" if listed[key] else "is neither"
            yield Problem(shard, key, f"{some} cached {'or' if listed[key] else 'nor'} quarantined in {file}")
    for key in listed:
        if not wanted[key]:
            yield Problem(file, key, "is not in the input")
        elif listed[key] > wanted[key] * views.count:
            yield Problem(file, key, f"is listed {listed[key]} times, but {wanted[key]} times in the input")
    for item in given:
        if isinstance(item, Fault) and item.key is None and not _covers(sidecar.quarantined, item):
            yield Problem(shard, None, f"bytes {item.offset}...{item.end} are not quarantined in {file}: {item.reason}")


def _of(item: Fault | str, key: str) -> bool:
    return isinstance(item, Fault) and item.key == key


def _covers(quarantined: Sequence[Quarantined], item: Fault | str) -> bool:
    """Whether a fault's extent lies in one of the quarantined extents."""
    if not isinstance(item, Fault) or item.offset is None or item.end is None:
        return False
    return any(
        entry.offset is not None and entry.end is not None and entry.offset <= item.offset and item.end <= entry.end
        for entry in quarantined
    )


def _encode_again(
    root: Path, unchanged: Sequence[tuple[str, Sidecar]], vae: str | Autoencoder, damaged: set[str]
) -> tuple[list[Problem], str]:
    """Encode the first batch of some shards as the job did; the problems, and what was compared."""
    whole = [(shard, sidecar) for shard, sidecar in unchanged if sidecar.keys and sidecar.shard not in damaged]
    if not whole or CACHE_FILE in damaged:
        return [], f"encoded again: nothing, since no shard has samples, or {CACHE_FILE} or all of them have problems"
    settings: dict[str, Any] = read_cache_file(root)["settings"]
    rng = generator_for(settings["samples"].get("seed", 0), "", 0, "verify")
    chosen = [whole[i] for i in sorted(rng.permutation(len(whole))[:ENCODED_AGAIN])]
    try:
        module = _module(settings, [shard for shard, _ in chosen], vae)
        fabric = _device(settings["device"])
    except KeyError as error:
        return [Problem(CACHE_FILE, None, f"its settings lack {error}")], "encoded again: nothing"
    module.setup("predict")
    here = cache_settings(module, settings["storage"], fabric.device)
    refused = [line for name in ("vae", "samples") for line in differences(settings[name], here[name], name)]
    if refused:
        raise UsageError(f"deep: {root} was not made with this autoencoder or version, see vae: {'; '.join(refused)}")
    exact = fingerprint(here) == fingerprint(settings)
    problems: list[Problem] = []
    for shard, sidecar in chosen:
        try:
            problems += _compare(root, shard, sidecar, module, fabric, settings["storage"], exact)
        except ShardError as error:
            problems.append(Problem(shard, None, str(error).removeprefix(f"{shard}: ")))
    within = "to the last bit"
    if not exact:
        within = f"within {TOLERANCE} * (1 + |value|), since {'; '.join(differences(settings, here))}"
    return problems, f"encoded again: a batch of each of {len(chosen)} shards, compared {within}"


def _device(kind: str) -> Fabric:
    """The one that the cache was made on where this machine has it, else the best that it has."""
    try:
        return fabric_for(kind)
    except UsageError:
        return fabric_for("auto")


def _module(settings: dict[str, Any], shards: list[str], vae: str | Autoencoder) -> InpaintDataModule:
    samples = settings["samples"]
    given = settings_of(samples)
    names = ("masks", "mixture", "seed", "carry_image", *OF_CUTS)
    preset = Preset(settings["growth"], settings["threshold"], settings["fill"], None)
    soft = SoftBorder(**settings["soft"]) if "soft" in settings else None
    return InpaintDataModule(
        predict_source=shards, vae=vae, batch_size=settings["batch_size"], preset=preset, soft=soft,
        posterior="moments", mask_offset=offset_from(settings["mask_offset"]), variants=settings["variants"],
        masked_latents=settings["masked_latents"], dtype=settings["vae"]["dtype"],
        **{name: getattr(given, name) for name in names},
    )  # fmt: skip


def _compare(
    root: Path, shard: str, sidecar: Sidecar, module: InpaintDataModule, fabric: Fabric, storage: str, exact: bool
) -> Iterator[Problem]:
    with closing(module.image_batches([shard]).events()) as events:
        first = next(event for event in events)
    if isinstance(first, ShardEnd):
        yield Problem(sidecar.shard, None, "none of its pictures can be read any more")
        return
    batch, _ = encode(module, fabric, first)
    rows = {key: row for row, key in enumerate(sidecar.keys)}
    with tar_path(root, shard_stem(shard)).open("rb") as file:
        for row, key in enumerate(batch["__key__"]):
            if key not in rows:
                continue  # quarantined, or `_accounts` has named it
            try:
                members = members_of(batch, row, storage)
            except SampleError as error:
                yield Problem(sidecar.shard, key, f"should be quarantined: {error}")
                continue
            cached = {}
            for name, columns in sidecar.index.items():
                if (offset := columns["offset"][rows[key]]) >= 0:
                    file.seek(offset)
                    cached[name] = file.read(columns["size"][rows[key]])
            for name in sorted(cached.keys() | members.keys()):
                if problem := _difference(name, cached.get(name), members.get(name), exact):
                    yield Problem(sidecar.shard, key, f"{name}: {problem}")


def _difference(name: str, cached: bytes | None, made: bytes | None, exact: bool) -> str | None:
    """What sets a cached member apart from the one that was made now; None where nothing that counts does."""
    if cached == made or (name == "crop.png" and not exact):  # another Pillow packs the same pixels otherwise
        return None
    if cached is None or made is None:
        return "is not in the cache" if cached is None else "is in the cache, but the input gives none"
    if name == SOFT_MASK and not exact and np.array_equal(read_png(cached, 1), read_png(made, 1)):
        return None
    if name not in (LATENTS, MASKED_LATENTS, TARGET_LATENTS):
        return "is not what the input gives"
    old, new = (np.load(io.BytesIO(data), allow_pickle=False).astype(np.float64) for data in (cached, made))
    if old.shape != new.shape:
        return f"has the shape {old.shape}, encoding again gives {new.shape}"
    apart = np.abs(old - new)
    if exact or (apart > TOLERANCE * (1 + np.abs(new))).any():
        return f"up to {apart.max():.3g} away from what encoding again gives"
    return None
