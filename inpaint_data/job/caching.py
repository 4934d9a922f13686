"""The offline job: image shards in, a cache of latents and masks out."""

import json
import os
import platform
import time
from contextlib import closing
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import PIL
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from inpaint_data.encoding.fills import Fill
from inpaint_data.encoding.presets import Preset
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.job.plan import Plan, Stamps, plan_shards
from inpaint_data.job.progress import Summary
from inpaint_data.job.shard_job import Committer, OnBad, Storage, cache_shards, encode
from inpaint_data.latent_cache.format import (
    FORMAT,
    Sidecar,
    committed,
    fingerprint,
    members_of,
    read_cache_file,
    totals,
)
from inpaint_data.latent_cache.lock import locked
from inpaint_data.latent_cache.writer import check_folder, check_settings, clean, write_cache_file
from inpaint_data.masks.mixture import MaskMixture
from inpaint_data.masks.offsets import Offset, offset_settings
from inpaint_data.masks.soft_border import SoftBorder
from inpaint_data.pictures.filters import Filters
from inpaint_data.pipeline.image_batches import ShardEnd
from inpaint_data.shards.reading import expand_shards, shard_size, shard_stem
from inpaint_data.shards.tar import stored_size
from inpaint_data.training.datamodule import InpaintDataModule

PROBE_BATCHES = 3  # of a dry run; the first one warms up


def cache_latents(
    shards: str | list[str],
    out: str,
    vae: str | Autoencoder = "demo",
    resolution: int | list[int] = 512,
    masks: str = "sample",
    mixture: MaskMixture | None = None,
    mask_offset: Offset | None = None,
    variants: int = 1,
    fill: Fill | None = None,
    preset: str | Preset = "was",
    soft: SoftBorder | None = None,
    seed: int = 0,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "float32",
    storage: Storage = "float16",
    crop: str | list[str] = "center",
    upscale: bool = False,
    max_aspect: float = 1.0,
    bucket_step: int = 64,
    mask_padding: int = 32,
    filters: Filters | None = None,
    carry_image: str = "none",
    target: bool = False,
    masked_latents: bool = True,
    num_workers: int = 2,
    on_bad: OnBad = "quarantine",
    max_bad_fraction: float = 0.01,
    dry_run: bool = False,
) -> Summary:
    """Encode image shards into a cache of latents and masks, and go on where an earlier run stopped.

    Every input sample ends in the cache or in the quarantine list of its shard's sidecar. New input shards are
    added, changed ones done again, and those of removed ones reported. Under torchrun each process does its share.

    Args:
        shards: a brace pattern, a glob, a folder or a list of tar shards; local paths or fsspec URLs.
        out: the cache's folder; empty, new, or a cache made with the same settings.
        vae: a hub name, a folder, a .safetensors file, or "demo".
        resolution: side of the square pictures, a multiple of the VAE's downscale factor; several make a view of each
            picture at each that it is large enough for.
        masks: "sample" (mask.png), "alpha", "object" (mask.0.png, or COCO annotations in json), a generator's name, or
            "mixture".
        mixture: weights, hole limits, inversion and more, see MaskMixture; best written in a YAML file.
        mask_offset: pixels to grow (> 0) or shrink (< 0) masks by; [low, high] draws one for each mask. Left out, it
            is 6, or 0 where the preset grows nothing.
        variants: masks and offsets for each picture; they share one encode of the full picture.
        fill: what the hole holds when it is encoded: "grey", "black", "white", "original", "mean", "blur", "telea",
            "navier-stokes" or "noise", see fill_hole; left out, the preset's.
        preset: whose way with masks: "was" (they grow alike on all sides), "comfy" (ComfyUI's own node), "diffusers"
            (they do not grow), "a1111" or "fooocus"; see PRESETS.
        soft: soften the masks' border, see SoftBorder: {kind: gaussian, radius: 4} in a YAML file. The cache then has
            mask.png of 8 bits in place of mask.pbm, and batches float masks.
        seed: of every random choice.
        batch_size: samples encoded at a time.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: of the VAE while it encodes: "float32", "bfloat16" or "float16".
        storage: of the latents in the cache: "float16" or "float32".
        crop: "center", "random" or "mask" (around the sample's mask), each with "+flip" to be mirrored; several make a
            view of each picture each, whose keys end in _view0, _view1 ...
        upscale: enlarge pictures smaller than the resolution instead of quarantining them.
        max_aspect: above 1, pictures keep their aspect as far as buckets of up to this aspect do (SDXL: 2 to 4).
        bucket_step: sides of buckets are multiples of it.
        mask_padding: pixels of the original that crop "mask" leaves on each side.
        filters: what is left out on purpose, see Filters: min_side, max_aspect, min_hole, max_hole, caption.
        carry_image: also store the picture: "none", "original" (its bytes) or "crop" (lossless PNG).
        target: each sample has a second picture, target.jpg, to be encoded beside the first one.
        masked_latents: encode the pictures with their holes too; not needed to train models that only blend, or with
            fresh masks.
        num_workers: threads that decode.
        on_bad: "quarantine" bad samples and go on, or "raise" at the first one.
        max_bad_fraction: share of quarantined samples in the cache above which the run counts as failed.
        dry_run: only look: what is to do, and how long it would take by a short probe. Writes nothing.

    Returns:
        What was done, or with `dry_run` the plan of what is to do.

    Raises:
        UsageError: settings that cannot work, or a cache made with other settings.
        CacheError: another job writes to `out`; the disk is full or gone; a bad sample with on_bad "raise"; or too
            many were quarantined (the cache is complete all the same). What was committed stays and verifies.
    """
    started = time.perf_counter()
    if not out or "://" in out:
        raise UsageError(f"out: {out!r} is no local folder; write the cache to one and copy it from there")
    if storage not in ("float16", "float32"):
        raise UsageError(f"storage: {storage!r} is unknown; choose from float16, float32")
    if not 0 <= max_bad_fraction <= 1:
        raise UsageError(f"max_bad_fraction: {max_bad_fraction} is not between 0 and 1")
    module = InpaintDataModule(
        predict_source=shards, vae=vae, batch_size=batch_size, resolution=resolution, crop=crop, upscale=upscale,
        max_aspect=max_aspect, bucket_step=bucket_step, mask_padding=mask_padding, filters=filters,
        masks=masks, mixture=mixture, mask_offset=mask_offset, fill=fill, preset=preset, soft=soft, posterior="moments",
        variants=variants, seed=seed, carry_image=carry_image, target=target, masked_latents=masked_latents,
        dtype=dtype, num_workers=num_workers,
    )  # fmt: skip
    fabric = fabric_for(device)
    module.setup("predict")
    settings, root = cache_settings(module, storage, fabric.device), Path(out)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    inputs = expand_shards(shards)
    if dry_run:
        return Summary(_look(module, fabric, inputs, root, settings, storage), dry_run=True)
    check_folder(root)
    check_settings(root, settings)
    with locked(root, rank, os.environ.get("TORCHELASTIC_RUN_ID", "")):
        summary, sidecars = _run(module, fabric, inputs, (rank, world), root, settings, storage, on_bad)
    summary.seconds = time.perf_counter() - started
    _check_budget(summary, sidecars, max_bad_fraction, root)
    return summary


def _run(
    module: InpaintDataModule,
    fabric: Fabric,
    inputs: list[str],
    part: tuple[int, int],
    root: Path,
    settings: dict[str, Any],
    storage: Storage,
    on_bad: OnBad,
) -> tuple[Summary, list[Sidecar]]:
    """Do this process's part of the inputs, and read what is in the cache then; the caller holds the lock."""
    rank, world = part
    mine = inputs[rank::world]
    stems, all_stems = set(map(shard_stem, mine)), set(map(shard_stem, inputs))
    stamps = Stamps(root, rank)
    try:
        # Each process cleans up after its own shards only: the others may be writing theirs by now.
        clean(root, lambda stem: stem in stems or (rank == 0 and stem not in all_stems))
        plan = plan_shards(mine, root, stamps)
        plan.removed = [name for name in plan.removed if name.removesuffix(".tar") not in all_stems and rank == 0]
        summary = Summary(plan)
        if rank == 0 and (plan.todo or not _has_cache_file(root)):
            write_cache_file(root, settings, None)
        committer = Committer(root, fingerprint(settings), module.variants, storage, on_bad, summary)
        cache_shards(module, fabric, plan.todo, committer, summary)
        stamps.save()
        _check_all_there(root, mine, settings)
        sidecars = [Sidecar.read(path) for path in committed(root)]
        summary.in_cache = totals(sidecars)
        if all_stems <= {sidecar.shard.removesuffix(".tar") for sidecar in sidecars}:
            write_cache_file(root, settings, summary.in_cache)
    except OSError as error:
        raise CacheError(
            f"{error.filename or root}: {error.strerror or error}; mend that and run the same command again, "
            "finished shards are kept"
        ) from None
    return summary, sidecars


def _has_cache_file(root: Path) -> bool:
    try:
        read_cache_file(root)
    except CacheError:
        return False
    return True


def _check_all_there(root: Path, shards: list[str], settings: dict[str, Any]) -> None:
    """See that nobody took away what this run committed, and leave a cache that the next run can go on with."""
    files = [root / f"{shard_stem(shard)}{suffix}" for shard in shards for suffix in (".tar", ".json")]
    missing = [path for path in files if not path.is_file()]
    if missing:
        if not _has_cache_file(root):
            write_cache_file(root, settings, None)
        raise CacheError(
            f"{missing[0]}: vanished while the job ran ({len(missing)} files did); run the same command again"
        )


def _look(
    module: InpaintDataModule,
    fabric: Fabric,
    inputs: list[str],
    root: Path,
    settings: dict[str, Any],
    storage: Storage,
) -> Plan:
    """What a run would do, and what it would cost by the pace of its first batches."""
    check_settings(root, settings)
    plan = plan_shards(inputs, root, Stamps(root, 0))
    batches = module.image_batches(plan.todo)
    paces: list[tuple[int, int, float]] = []  # samples, bytes and seconds of each batch
    last = time.perf_counter()
    with closing(batches.events()) as events:
        for event in events if plan.todo else ():
            if isinstance(event, ShardEnd):
                continue
            batch, _ = encode(module, fabric, event)
            rows = range(len(batch["__key__"]))
            size = sum(stored_size(members_of(batch, row, storage).values()) for row in rows)
            now = time.perf_counter()
            paces.append((len(rows), size, now - last))
            last = now
            if len(paces) == PROBE_BATCHES:
                break
    samples, size, seconds = (sum(column) for column in zip(*(paces[1:] or paces or [(0, 0, 0.0)]), strict=True))
    expected = batches.expected_samples(sum(map(shard_size, plan.todo)))
    plan.bytes_expected = round(expected * size / max(1, samples))
    plan.seconds_expected = expected * seconds / max(1, samples)
    return plan


def fabric_for(device: str) -> Fabric:
    kind, _, index = device.removesuffix(":0" if device.startswith("cpu") else "").partition(":")
    try:
        local = os.environ.get("LOCAL_RANK")
        devices: Any = [int(index)] if index else [int(local)] if local and kind in ("cuda", "gpu") else 1
        # Its own environment, not torchrun's: the processes share nothing but the folder.
        return Fabric(accelerator=kind, devices=devices, plugins=[LightningEnvironment()])
    except Exception as error:
        raise UsageError(f"device: {device!r} cannot be used ({str(error).splitlines()[0]}); try auto or cpu") from None


def cache_settings(module: InpaintDataModule, storage: Storage, device: torch.device) -> dict[str, Any]:
    """Everything that decides the values in a cache: what its fingerprint covers."""
    transform = module.transform
    assert transform is not None
    vae, pixels = transform.vae, asdict(module.settings)
    settings = {
        "format": FORMAT,
        "vae": vae.fingerprint() | {"has_posterior": vae.has_posterior, "factor": vae.factor},
        "samples": pixels,
        "mask_offset": offset_settings(transform.mask_offset),
        "fill": transform.fill,
        "growth": transform.preset.growth,
        "threshold": transform.preset.threshold,
        # Only where there is one: caches of hard masks keep their fingerprint.
        **({} if transform.soft is None else {"soft": asdict(transform.soft)}),
        "masked_latents": transform.masked_latents,
        "variants": module.variants,
        "batch_size": module.batch_size,
        "storage": storage,
        # Kernels differ between kinds of device, and on a CPU they split their sums by thread.
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "machine": platform.machine(),
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "opencv": cv2.__version__,
            "simplejpeg": version("simplejpeg"),
        },
    }
    # As it will be read again: with lists in place of tuples.
    read: dict[str, Any] = json.loads(json.dumps(settings))
    return read


def _check_budget(summary: Summary, sidecars: list[Sidecar], max_bad_fraction: float, root: Path) -> None:
    """Of the whole cache: a second run, which finds all done, must not turn a failed cache into a good one."""
    bad = [(sidecar.shard, entry) for sidecar in sidecars for entry in sidecar.quarantined]
    whole = [len(sidecar.keys) + len(sidecar.quarantined) for sidecar in sidecars if not sidecar.lost_its_end]
    usual = sum(whole) / max(1, len(whole))  # samples in a shard: how many a damaged one had, nobody knows
    lost = sum(
        max(len(sidecar.quarantined), round(usual) - len(sidecar.keys))
        if sidecar.lost_its_end
        else len(sidecar.quarantined)
        for sidecar in sidecars
    )
    given = lost + sum(len(sidecar.keys) for sidecar in sidecars)
    if not bad or lost / given <= max_bad_fraction:
        return
    shard, first = bad[0]
    about = "about " if lost != len(bad) else ""
    error = CacheError(
        f"{root}: {about}{lost} of {given} samples are quarantined, more than max_bad_fraction {max_bad_fraction}; "
        f"mend them or allow more; the sidecars list them all, the first: {shard}, sample {first.key!r}: {first.reason}"
    )
    error.summary = summary  # type: ignore[attr-defined]
    raise error
