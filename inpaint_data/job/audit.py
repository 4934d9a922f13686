"""Audit of a cache: its files, and its samples against the input shards and the autoencoder."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from inpaint_data.batch import is_batch
from inpaint_data.encoding.device import choose_device
from inpaint_data.encoding.settings import TextModelSettings
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.encoding.vae_loading import vae_of_cache
from inpaint_data.errors import CacheError, SampleError, ShardError, UsageError
from inpaint_data.job.caching import inputs_of, settings_of, work_of
from inpaint_data.job.encoding import encode
from inpaint_data.job.settings import JobSettings
from inpaint_data.job.work import Work
from inpaint_data.latent_cache.encodings import read_npy, read_png
from inpaint_data.latent_cache.folder import CacheFolder, opened
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    Quarantined,
    Sidecar,
    committed,
    differences,
    read_cache_file,
    sidecar_path,
)
from inpaint_data.latent_cache.members import ARRAYS, SOFT_MASK, members_of
from inpaint_data.latent_cache.settings import CacheSettings, incompatible
from inpaint_data.latent_cache.storage import STORED, from_storage
from inpaint_data.latent_cache.variants import is_of_variant
from inpaint_data.latent_cache.verify import Problem, Verification, verify_folder
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.pictures.views import Views
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.user_stages import check_stages, names_of
from inpaint_data.seeding import generator_for
from inpaint_data.shards.naming import ShardIdentity, shard_stem
from inpaint_data.shards.reading import Fault, ShardEnd, read_shard
from inpaint_data.shards.streams import anew_if_replaced
from inpaint_data.shown import shown

ENCODED_AGAIN = 3  # shards, one batch of each
TOLERANCE = 2e-2  # of 1 + |value|, if device, threads or versions are not those of the cache


def verify_cache(
    root: str | Path,
    deep: bool = False,
    against: str | list[str] | None = None,
    vae: str | Autoencoder | None = None,
    stages: Sequence[Stage] = (),
) -> Verification:
    """Check every file of a cache, every member of every shard, and that they say the same.

    Args:
        root: the cache's folder.
        deep: also encode the first batch of three shards again, as the job did, and compare; needs `against`.
        against: the input shards, as `cache_latents` takes them: every sample of theirs must be accounted for.
        vae: with `deep`, the autoencoder that the cache was made with; left out, the demo's, if that made it.
        stages: with `deep`, the functions of your own that the cache was made with.

    Returns:
        The totals and all problems; `ok` if there are none.

    Raises:
        UsageError: no cache at `root`, no such input shards, `deep` without `against`, or another autoencoder or other
            stages.
    """
    if deep and against is None:
        raise UsageError("deep: encoding again needs the images; name the input shards with against")
    inputs = [] if against is None else inputs_of(against)
    with opened(root) as folder:
        files = verify_folder(folder)
        if against is None:
            return files
        unchanged: list[tuple[str, Sidecar]] = []
        problems = [*files.problems, *_input_problems(folder.root, inputs, unchanged)]
        notes = files.notes
        if deep:
            damaged = {problem.file for problem in problems}
            differing, note = _encode_again(folder, unchanged, vae, stages, damaged)
            problems += differing
            notes = [*notes, note]
        return replace(files, problems=problems, notes=notes)


def _input_problems(root: Path, inputs: Sequence[str], unchanged: list[tuple[str, Sidecar]]) -> Iterator[Problem]:
    """Compare the inputs with the sidecars; those whose bytes are still the same are added to `unchanged`."""
    stems = set(map(shard_stem, inputs))
    views, renames = _views(root)
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
            items, identity = anew_if_replaced(partial(_read, shard))
        except CacheError:
            continue  # `verify_files` has named it
        except ShardError as error:
            yield Problem(shard, None, str(error).removeprefix(f"{shown(shard)}: "))
            continue
        if (identity.size, identity.sha256) != (sidecar.input["size"], sidecar.input["sha256"]):
            yield Problem(shard, None, "has changed since it was cached; the cache command does it again")
            continue
        unchanged.append((shard, sidecar))
        if not renames:
            yield from _sample_problems(shard, path.name, items, sidecar, views)


def _read(shard: str) -> tuple[list[Fault | str], ShardIdentity]:
    """The faults and keys in a shard, and the identity of its bytes."""
    items: list[Fault | str] = []
    for item in read_shard(shard):
        if isinstance(item, ShardEnd):
            return items, item.identity
        items.append(item if isinstance(item, Fault) else item.key)
    raise AssertionError("a shard was read without its end")


def _views(root: Path) -> tuple[Views, bool]:
    """The views of the cache's settings, or one view if these are damaged, which `verify_files` reports; and True if
    the user's own stages made the samples, whose keys may then differ from those in the input."""
    try:
        settings = read_cache_file(root).settings
        return (settings.pictures or PictureSettings()).views, bool(settings.stages)
    except (CacheError, UsageError):
        return PictureSettings().views, False


def _sample_problems(
    shard: str, file: str, items: Sequence[Fault | str], sidecar: Sidecar, views: Views
) -> Iterator[Problem]:
    """Check that each sample of the input is cached or left out, once, and no other one is."""
    keys = [item.key if isinstance(item, Fault) else item for item in items]
    expected = Counter(key for key in keys if key is not None)
    # Views by sample: a whole sample that was left out counts for all of its views.
    listed = Counter(map(views.sample_key, sidecar.keys))
    for entry in (*sidecar.quarantined, *sidecar.filtered):
        if entry.key is not None:
            if entry.key in expected:
                listed[entry.key] += views.count
            else:
                listed[views.sample_key(entry.key)] += 1
    for key in expected:
        if listed[key] >= expected[key] * views.count:
            continue
        if any(_covers(sidecar.quarantined, item) for item in items if isinstance(item, Fault) and item.key == key):
            continue
        if listed[key]:
            yield Problem(shard, key, f"not all of its views are cached or quarantined in {file}")
        else:
            yield Problem(shard, key, f"is neither cached nor quarantined in {file}")
    for key in listed:
        if not expected[key]:
            yield Problem(file, key, "is not in the input")
        elif listed[key] > expected[key] * views.count:
            yield Problem(file, key, f"is listed {listed[key]} times, but {expected[key]} times in the input")
    for item in items:
        if isinstance(item, Fault) and item.key is None and not _covers(sidecar.quarantined, item):
            yield Problem(shard, None, f"bytes {item.offset}...{item.end} are not quarantined in {file}: {item.reason}")


def _covers(quarantined: Sequence[Quarantined], fault: Fault) -> bool:
    """True if the fault's extent is inside a quarantined one."""
    if fault.offset is None or fault.end is None:
        return False
    return any(
        entry.offset is not None and entry.end is not None and entry.offset <= fault.offset and fault.end <= entry.end
        for entry in quarantined
    )


def _encode_again(
    folder: CacheFolder,
    unchanged: Sequence[tuple[str, Sidecar]],
    vae: str | Autoencoder | None,
    stages: Sequence[Stage],
    damaged: set[str],
) -> tuple[list[Problem], str]:
    """Encode the first batch of some shards as the job did. Returns the problems, and a note of what was compared."""
    whole = [(shard, sidecar) for shard, sidecar in unchanged if sidecar.keys and sidecar.shard not in damaged]
    if not whole or CACHE_FILE in damaged:
        return [], f"encoded again: nothing, since no shard has samples, or {CACHE_FILE} or all of them have problems"
    settings = read_cache_file(folder.root).settings
    if settings.pictures is None or settings.masks is None:
        return [], "encoded again: nothing, since the cache was indexed and its settings are unknown"
    names = names_of(check_stages(stages))
    if names != settings.stages:
        raise UsageError(
            f"deep: {folder.name} was made with stages {settings.stages}, not {names}; give them to verify_cache as "
            "stages"
        )
    rng = generator_for(settings.seed or 0, "", 0, "verify")
    chosen = [whole[i] for i in sorted(rng.permutation(len(whole))[:ENCODED_AGAIN])]
    making = chosen[0][1].made_with
    work = _work(settings, making, vae, stages)
    text = [] if settings.text is None else settings.text.members
    old, new = settings.but(text=None).to_json(), settings_of(work).to_json()
    if lines := incompatible(old, new):
        raise UsageError(
            f"deep: {folder.name} was not made with this autoencoder or version, see vae: {'; '.join(lines)}"
        )
    inexact: set[str] = set()
    problems: list[Problem] = []
    for shard, sidecar in chosen:
        try:
            this = replace(work, job=work.job.but(batch_size=sidecar.made_with.get("batch_size", 1)))
            others = differences(sidecar.made_with, this.made_with)
            inexact.update(others)
            problems += _compare(folder, shard, sidecar, this, not others, text)
        except ShardError as error:
            problems.append(Problem(shard, None, str(error).removeprefix(f"{shown(shard)}: ")))
    within = "to the last bit"
    if inexact:
        within = f"within {TOLERANCE} * (1 + |value|), since {'; '.join(sorted(inexact))}"
    within += f", without {', '.join(text)}" if text else ""
    return problems, f"encoded again: a batch of each of {len(chosen)} shards, compared {within}"


def _work(
    settings: CacheSettings, making: Mapping[str, Any], vae: str | Autoencoder | None, stages: Sequence[Stage]
) -> Work:
    """The work of the job, on its device if this machine has one like it, else on the best device here."""
    assert settings.pictures is not None
    assert settings.masks is not None
    device = making.get("device", "auto")
    try:
        choose_device(device)
    except UsageError:
        device = "auto"
    job = JobSettings(
        variants=settings.variants,
        seed=settings.seed or 0,
        device=device,
        storage=settings.storage,
        keep=dict.fromkeys(settings.means, "mean") or "moments",
    )
    chosen = vae_of_cache(vae, settings.vae.config)
    return work_of(settings.pictures, settings.masks, settings.encode.but(vae=chosen), job, stages, TextModelSettings())


def _compare(
    folder: CacheFolder, shard: str, sidecar: Sidecar, work: Work, exact: bool, text: Collection[str]
) -> Iterator[Problem]:
    """Compare the first batch of a shard with what encoding it again gives, but for the members of its captions."""
    with closing(work.events([shard])) as events:
        first: Any = next((event for event in events if is_batch(event)), None)
    if first is None:
        yield Problem(sidecar.shard, None, "none of its images can be read any more")
        return
    encoded = [
        (batches, row, key) for batches, _ in encode(work, first) for row, key in enumerate(batches[0]["__key__"])
    ]
    rows = {key: row for row, key in enumerate(sidecar.keys)}
    with folder.reading(sidecar.shard) as path, path.open("rb") as file:
        for batches, row, key in encoded:
            if key not in rows:
                continue  # quarantined, or `_sample_problems` has named it
            try:
                members = members_of(batches, row, work.storing)
            except SampleError as error:
                yield Problem(sidecar.shard, key, f"should be quarantined: {error}")
                continue
            cached = {}
            for name, place in sidecar.index.of_row(rows[key]).items():
                file.seek(place.offset)
                cached[name] = file.read(place.size)
            for name in sorted(cached.keys() | members.keys()):
                if (
                    name not in text
                    and not is_of_variant(name)
                    and (problem := _difference(name, cached.get(name), members.get(name), exact))
                ):
                    yield Problem(sidecar.shard, key, f"{name}: {problem}")


def _difference(name: str, cached: bytes | None, encoded: bytes | None, exact: bool) -> str | None:
    """How a cached member differs from the one encoded now; None if they agree."""
    if cached == encoded or (
        name == "crop.png" and not exact
    ):  # another Pillow may compress the same pixels differently
        return None
    if cached is None:
        return "is not in the cache"
    if encoded is None:
        return "is in the cache, but the input gives none"
    if name == SOFT_MASK and not exact and np.array_equal(read_png(cached, 1), read_png(encoded, 1)):
        return None
    if name not in ARRAYS:
        return "is not what the input gives"
    old, new = (from_storage(read_npy(data), np.float32(1)).astype(np.float64) for data in (cached, encoded))
    if old.shape != new.shape:
        return f"has the shape {old.shape}, encoding again gives {new.shape}"
    distance = np.abs(old - new)
    step = int(read_npy(cached).dtype == STORED["int8"])  # a step, which the last bits may turn to the next one
    if exact or (distance > np.maximum(TOLERANCE * (1 + np.abs(new)), step)).any():
        return f"up to {distance.max():.3g} away from what encoding again gives"
    return None
