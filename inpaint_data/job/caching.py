"""The offline job: image shards in, a cache of latents and masks out."""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from inpaint_data.encoding.device import batch_size_for, choose_device, is_out_of_memory
from inpaint_data.encoding.encoder import Encoder, autoencoder_of, check_paired, check_resolution, recipe_row
from inpaint_data.encoding.models import MODELS
from inpaint_data.encoding.settings import EncodeSettings, TextModelSettings
from inpaint_data.encoding.vae import cause
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.job.claims import Claims
from inpaint_data.job.dry_run import dry_run
from inpaint_data.job.engines import Engine, Order, engine_of
from inpaint_data.job.metrics import Metrics, MetricsLogger
from inpaint_data.job.plan import Plan, Stamps, check_exact, plan_shards
from inpaint_data.job.progress import Progress, Summary
from inpaint_data.job.reports import JsonLog, Pace, ProgressFile, Reports, Watcher, check_log
from inpaint_data.job.settings import JobSettings
from inpaint_data.job.work import Work
from inpaint_data.latent_cache.folder import CacheFolder, opened
from inpaint_data.latent_cache.format import (
    Sidecar,
    committed,
    fingerprint,
    folders_of,
    has_sidecars,
    is_cache,
    missing_cache_file,
    read_cache_file,
    totals,
    write_cache_file,
)
from inpaint_data.latent_cache.lock import Lock, locked
from inpaint_data.latent_cache.merged_file import write_index
from inpaint_data.latent_cache.settings import CacheSettings
from inpaint_data.latent_cache.text_members import write_empty_prompt
from inpaint_data.latent_cache.writer import check_folder, clean, settings_for
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import ExampleSettings, PictureSettings
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.user_stages import check_stages, names_of
from inpaint_data.ranks import Part, part_of_run
from inpaint_data.settings import group_of
from inpaint_data.shards.naming import expand_shards, shard_stem
from inpaint_data.shards.stores import within

_log = logging.getLogger(__name__)


def cache_latents(
    shards: str | list[str],
    out: str,
    pictures: PictureSettings | Mapping[str, Any] | None = None,
    masks: MaskSettings | Mapping[str, Any] | None = None,
    encode: EncodeSettings | Mapping[str, Any] | None = None,
    job: JobSettings | Mapping[str, Any] | None = None,
    stages: Sequence[Stage] = (),
    text: TextModelSettings | Mapping[str, Any] | None = None,
    logger: MetricsLogger | None = None,
) -> Summary:
    """Encode image shards into a cache of latents and masks; resumes where an earlier run stopped.

    Every input sample ends in the cache or in the quarantine list of its shard's sidecar. New input shards are
    added, changed ones done again, and removed ones reported; one that cannot be read is named, and the others are
    done. Under torchrun and srun each process does its share, and what a dead one left; with engine "ray" the workers
    of a cluster do.

    Args:
        shards: a brace pattern, a glob, a folder or a list of tar shards; local paths or fsspec URLs.
        out: the cache's folder, or a URL that fsspec writes to; empty, new, or a cache made with the same settings.
        pictures: how images are cut, and which are left out.
        masks: which masks they get, how far these grow, and how the hole is filled.
        encode: the autoencoder and how it encodes. Posterior is always "moments" in a cache.
        job: variants, seed, batch size, device, faults.
        stages: functions of your own between reading and examples, each from an iterator of sample dicts to an
            iterator of sample dicts, such as `wds.select(keep)`. A sample goes through them alone; what they leave out
            is counted as filtered. The cache records their names.
        text: the text encoders whose embeddings of the captions the samples get, and the cache those of the empty
            prompt; without a model none.
        logger: one of Lightning's loggers, or what has their methods: `log_metrics`, `save`, `finalize`. Process 0
            tells it how far all are: images and images a second, shards, quarantined samples, retries, time to go.

    Returns:
        The summary of the run, or with `dry_run` its plan.

    Raises:
        UsageError: settings that cannot work, a cache made with other settings, or an input that was renamed.
        CacheError: another job writes to `out`; the disk is full or gone; there is no memory left; a bad sample with
            on_bad "raise"; shards that cannot be read; or too many samples were quarantined (the cache is complete all
            the same). What was committed stays and verifies.
    """
    started = time.perf_counter()
    check_out(out)
    make = partial(
        work_of,
        group_of(PictureSettings, pictures),
        group_of(MaskSettings, masks),
        group_of(EncodeSettings, encode),
        group_of(JobSettings, job),
        stages,
        group_of(TextModelSettings, text),
    )
    work = make()
    if not work.job.dry_run:
        check_log(work.job.log_json)
    inputs = inputs_of(shards)
    with opened(out) as folder, engine_of(work, settings_of(work).to_json(), make) as engine:
        settings = engine.settings
        if work.job.dry_run:
            return dry_run(work, inputs, folder, settings)
        part = Part() if work.job.engine == "ray" else part_of_run()
        check_folder(folder)
        settings = settings_for(folder, settings)
        try:
            with locked(folder.place, part.rank, _job_of(inputs, part, settings)) as lock:
                folder.look()
                settings = settings_for(folder, settings)  # another job may have begun the cache meanwhile
                summary, sidecars = _run(work, engine, inputs, part, folder, lock, settings, logger)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise CacheError(
                f"out of memory ({cause(error)}); use a smaller batch_size, fewer num_workers, or free some, and run "
                "the command again; finished shards are kept"
            ) from None
        summary.seconds = time.perf_counter() - started
        _check_budget(summary, sidecars, work.job.max_bad_fraction, folder.name)
    return summary


def check_out(out: str) -> None:
    """Raises UsageError for what a cache cannot be written to."""
    if not out or out.startswith(("http://", "https://", "folder://")):
        raise UsageError(
            f"out: nothing can be written to {out!r}; name a folder, or a bucket such as s3://bucket/cache", ("out",)
        )


def _job_of(inputs: Sequence[str], part: Part, settings: Mapping[str, Any]) -> str:
    """What the processes that may write to a cache at once have in common: they divide the same shards in the same way.

    Not what a launcher calls its run: torchrun calls many of them "none".
    """
    if part.world == 1:
        return ""
    parts = [fingerprint(settings), str(part.world), *map(shard_stem, inputs)]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def work_of(
    pictures: PictureSettings,
    masks: MaskSettings,
    encode: EncodeSettings,
    job: JobSettings,
    stages: Sequence[Stage],
    text: TextModelSettings,
) -> Work:
    """The work of a job with these settings, checked, its autoencoder loaded.

    Raises:
        UsageError: settings that cannot work.
    """
    if encode.posterior not in (None, "moments"):
        raise UsageError(
            f"posterior: {encode.posterior}, but a cache has moments, from which training takes it; leave it out",
            place=("encode", "posterior"),
        )
    examples = ExampleSettings(pictures, masks, job.seed)
    check_paired(pictures, encode)
    row = recipe_row(encode)
    if encode.vae == "demo" and encode.recipe is not None:
        raise UsageError(
            f"vae: demo is the demo's toy autoencoder, whose latents no model of recipe {encode.recipe} reads; name "
            f"{MODELS[encode.recipe].name}, or leave recipe out",
            place=("encode", "vae"),
        )
    if row is not None and row.posterior == "sample" and "latents" in job.means:
        raise UsageError(
            f"keep: mean, but recipe {encode.recipe} draws latents from the posterior; keep moments, or the means of "
            "the others alone: {masked_latents: mean}",
            place=("job", "keep"),
        )
    own_stages = check_stages(stages)
    device = choose_device(job.device)
    if job.batch_size == "auto":
        job = job.but(batch_size=batch_size_for(device, max(pictures.views.resolutions) ** 2))
        _log.warning("batch_size: auto is %s on %s", job.batch_size, device)
    autoencoder = autoencoder_of(encode, device)
    check_resolution(pictures, autoencoder)
    encoder = Encoder(masks, encode.but(posterior=None), autoencoder, job.seed, posterior="moments")
    return Work(examples, own_stages, encoder, device, job, _text_encoder(text, device))


def _text_encoder(settings: TextModelSettings, device: torch.device) -> Any:
    """The text encoder; None where no model is named, and then transformers is not needed."""
    if not settings.model:
        return None
    from inpaint_data.encoding.text_encoder import TextEncoder

    return TextEncoder(settings, device)


def settings_of(work: Work) -> CacheSettings:
    """The settings of the cache that this work makes, which its fingerprint covers."""
    job = work.job
    text = None if work.text is None else work.text.fingerprint()
    return CacheSettings.of(
        work.examples, work.encoder, job.variants, job.storage, job.means, work.device, names_of(work.own_stages), text
    )


def inputs_of(shards: str | list[str]) -> list[str]:
    """The image shards, by name.

    Raises:
        UsageError: see `expand_shards`; or a shard is in a latent cache.
    """
    inputs = expand_shards(shards)
    for folder in folders_of(inputs):
        if is_cache(folder):
            raise UsageError(
                f"shards: {folder} is a latent cache and not image shards; name the shards that it was made from",
                ("shards",),
            )
        if has_sidecars(folder):
            raise UsageError(
                f"shards: {missing_cache_file(folder, sidecars=True)}; or take the .json files away, if the tars are "
                "image shards",
                ("shards",),
            )
    return inputs


def _run(
    work: Work,
    engine: Engine,
    inputs: list[str],
    part: Part,
    folder: CacheFolder,
    lock: Lock,
    settings: Mapping[str, Any],
    logger: MetricsLogger | None,
) -> tuple[Summary, list[Sidecar]]:
    """Do this process's part of the inputs, and what nobody has begun; read all sidecars then."""
    all_stems = list(map(shard_stem, inputs))
    mine = set(all_stems[part.rank :: part.world])
    others = set(all_stems) - mine
    try:
        # Each process cleans up after its own shards only: the others may be writing theirs by now.
        clean(folder, lambda stem: stem in mine or (part.rank == 0 and stem not in others))
        stamps = Stamps(folder, part.rank)
        plan = plan_shards(inputs, folder, stamps, engine.made_with, part)
        check_exact(plan, work.job.exact)
        summary = Summary(plan, unreadable=dict(plan.unreadable))
        if part.rank == 0 and (plan.todo or not _has_cache_file(folder)):
            write_cache_file(folder, settings, None)
        if part.rank == 0 and work.text is not None:
            write_empty_prompt(folder, work.text.empty())
        claims = Claims(plan, inputs, folder, lock, stamps)
        reports = _reports(work.job, folder, plan, logger)
        engine.run(claims, Order(folder, lock, fingerprint(settings), summary, claims.done, reports))
        stamps.save()
        folder.look(names_alone=True)
        _check_all_present(folder, {*map(shard_stem, plan.done), *claims.committed}, settings)
        names = folder.names()
        summary.missing = [number for number, stem in enumerate(all_stems) if f"{stem}.json" not in names]
        if not summary.missing:
            folder.look()  # only the last one of many processes has to read what the others did
            lock.clear_dead_claims()
        sidecars = [Sidecar.read(path) for path in committed(folder.root)]
        summary.in_cache, summary.helped = totals(sidecars), claims.helped
        if not summary.missing and not summary.unreadable:
            write_cache_file(folder, settings, sidecars)
            write_index(folder, sidecars, fingerprint(settings))
    except OSError as error:
        raise CacheError(
            f"{error.filename or folder.name}: {error.strerror or error}; fix that and run the same command again, "
            "finished shards are kept"
        ) from None
    return summary, sidecars


def _reports(job: JobSettings, folder: CacheFolder, plan: Plan, logger: MetricsLogger | None) -> Reports:
    """Whoever is told of the job."""
    pace = Pace(plan.shards_to_do)
    watchers: list[Watcher] = [Progress(pace), ProgressFile(folder, plan)]
    if logger is not None and plan.part.rank == 0:
        watchers.append(Metrics(logger, folder, plan))
    if job.log_json:
        watchers.append(JsonLog(job.log_json, folder.name, plan))
    return Reports(plan, pace, watchers)


def _has_cache_file(folder: CacheFolder) -> bool:
    try:
        read_cache_file(folder.root)
    except CacheError:
        return False
    return True


def _check_all_present(folder: CacheFolder, stems: set[str], settings: Mapping[str, Any]) -> None:
    """Check that the committed files still exist; else leave a cache that the next run can resume."""
    names = folder.names()
    missing = [name for stem in sorted(stems) for name in (f"{stem}.tar", f"{stem}.json") if name not in names]
    if missing:
        if not _has_cache_file(folder):
            write_cache_file(folder, settings, None)
        raise CacheError(
            f"{within(folder.name, missing[0])}: vanished while the job ran ({len(missing)} files did); run the same "
            "command again"
        )


def _check_budget(summary: Summary, sidecars: list[Sidecar], max_bad_fraction: float, name: str) -> None:
    """Check the whole cache, so that a second run with nothing to do does not make a failed cache a good one."""
    bad = [(sidecar.shard, entry) for sidecar in sidecars for entry in sidecar.quarantined]
    whole = [len(sidecar.keys) + len(sidecar.quarantined) for sidecar in sidecars if not sidecar.lost_its_end]
    usual = round(sum(whole) / max(1, len(whole)))  # samples in a shard; how many a damaged one had is unknown
    lost = unread = usual * len(summary.unreadable)
    for sidecar in sidecars:
        missing = usual - len(sidecar.keys) if sidecar.lost_its_end else 0
        lost += max(len(sidecar.quarantined), missing)
    total = lost + sum(len(sidecar.keys) for sidecar in sidecars)
    problems = []
    if summary.unreadable:
        problems.append(
            f"not complete, since {len(summary.unreadable)} of {summary.plan.inputs} input shards, about {unread} "
            f"samples, cannot be read; the first: {next(iter(summary.unreadable.values()))}"
        )
    if bad and lost / total > max_bad_fraction:
        shard, first = bad[0]
        about = "about " if lost != len(bad) else ""
        problems.append(
            f"{about}{lost} of {total} samples are quarantined, more than max_bad_fraction {max_bad_fraction}; "
            "fix them or allow more; the sidecars list them all, the first: "
            f"{shard}, sample {first.key!r}: {first.reason}"
        )
    if problems:
        error = CacheError(f"{name}: {'; and '.join(problems)}")
        error.summary = summary
        raise error
