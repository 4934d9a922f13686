"""The offline job: image shards in, a cache of latents and masks out."""

import platform
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric

from inpaint_data.datamodule import InpaintDataModule
from inpaint_data.errors import CacheError, EncodeError, SampleError, UsageError
from inpaint_data.image_batches import ShardEnd
from inpaint_data.latent_cache.format import CACHE_FILE, FORMAT, Quarantined, Sidecar, fingerprint, members_of
from inpaint_data.latent_cache.writer import ShardWriter, open_cache, write_totals
from inpaint_data.progress import Progress
from inpaint_data.samples import ImageBatch, select
from inpaint_data.shards import Fault, shard_identity, shard_size, shard_stem
from inpaint_data.transform import Batch, Fill
from inpaint_data.vae import Autoencoder

Storage = Literal["float16", "float32"]
WRITES_AHEAD = 4  # batches that may wait for the disk
LIBRARIES = ("torch", "diffusers", "numpy", "pillow", "opencv-python-headless", "simplejpeg")


@dataclass
class Summary:
    """What a run did. Seconds of stages overlap, so they add up to more than `seconds`."""

    shards: int = 0
    skipped_shards: int = 0
    samples_in: int = 0
    cached: int = 0
    quarantined: list[tuple[str, Quarantined]] = field(default_factory=list)
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    seconds: float = 0.0
    bytes: int = 0

    def table(self) -> str:
        rows = [
            ("shards", f"{self.shards} cached, {self.skipped_shards} were already there"),
            ("samples in", f"{self.samples_in}"),
            ("cached", f"{self.cached}"),
            ("quarantined", f"{len(self.quarantined)}"),
            ("decoding", f"{self.decode_seconds:.1f} s, all threads together"),
            ("encoding", f"{self.encode_seconds:.1f} s"),
            ("writing", f"{self.write_seconds:.1f} s"),
            ("altogether", f"{self.seconds:.1f} s, {self.cached / max(self.seconds, 1e-9):.1f} images/s"),
            ("written", f"{self.bytes / 1e6:.1f} MB"),
        ]
        return "\n".join(f"  {name:<12} {value}" for name, value in rows)


def cache_latents(
    shards: str | list[str],
    out: str,
    vae: str | Autoencoder = "demo",
    resolution: int = 512,
    masks: str = "sample",
    mask_offset: int | tuple[int, int] = 6,
    variants: int = 1,
    fill: Fill = "grey",
    seed: int = 0,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "float32",
    storage: Storage = "float16",
    crop: str = "center",
    upscale: bool = False,
    carry_image: str = "none",
    num_workers: int = 2,
    max_bad_fraction: float = 0.01,
) -> Summary:
    """Encode image shards into a cache of latents and masks, and go on where an earlier run stopped.

    Every input sample ends in the cache or in the quarantine list of its shard's sidecar.

    Args:
        shards: a brace pattern, a glob, a folder or a list of tar shards; local paths or fsspec URLs.
        out: the cache's folder; empty, new, or a cache made with the same settings.
        vae: a hub name, a folder, a .safetensors file, or "demo".
        resolution: side of the square pictures, a multiple of the VAE's downscale factor.
        masks: "sample" (mask.png), "alpha", "strokes", "boxes", "full", or "mixture" of the last three.
        mask_offset: pixels to grow (> 0) or shrink (< 0) masks by; [low, high] draws one for each mask.
        variants: masks and offsets for each picture; they share one encode of the full picture.
        fill: what the hole holds when it is encoded: "grey", "black" or "original".
        seed: of every random choice.
        batch_size: samples encoded at a time.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: of the VAE while it encodes: "float32", "bfloat16" or "float16".
        storage: of the latents in the cache: "float16" or "float32".
        crop: "center" or "random".
        upscale: enlarge pictures smaller than the resolution instead of quarantining them.
        carry_image: also store the picture: "none", "original" (its bytes) or "crop" (lossless PNG).
        num_workers: threads that decode.
        max_bad_fraction: share of quarantined samples above which the run counts as failed.

    Raises:
        UsageError: settings that cannot work, or a cache made with other settings.
        CacheError: more samples than `max_bad_fraction` were quarantined (the cache is complete all the same).
    """
    started = time.perf_counter()
    if storage not in ("float16", "float32"):
        raise UsageError(f"storage: {storage!r} is unknown; choose from float16, float32")
    if not 0 <= max_bad_fraction <= 1:
        raise UsageError(f"max_bad_fraction: {max_bad_fraction} is not between 0 and 1")
    module = InpaintDataModule(
        predict_shards=shards, vae=vae, batch_size=batch_size, resolution=resolution, crop=crop, upscale=upscale,
        masks=masks, mask_offset=mask_offset, fill=fill, posterior="moments", variants=variants, seed=seed,
        carry_image=carry_image, dtype=dtype, num_workers=num_workers,
    )  # fmt: skip
    fabric = _fabric(device)
    module.setup("predict")
    settings = _settings(module, storage, fabric.device)
    root = Path(out)
    done = {sidecar.shard: sidecar for sidecar in open_cache(root, settings)}
    inputs = module.shards["predict"] or []
    _check_stems(inputs)
    todo = [shard for shard in inputs if not _is_done(shard, done)]
    summary = Summary(skipped_shards=len(inputs) - len(todo))
    committer = _Committer(root, fingerprint(settings), module.variants, storage, summary)
    try:
        _cache_shards(module, fabric, todo, committer, summary)
    finally:
        write_totals(root, settings)
    summary.seconds = time.perf_counter() - started
    _check_budget(summary, max_bad_fraction, root)
    return summary


def _fabric(device: str) -> Fabric:
    kind, _, index = device.partition(":")
    try:
        return Fabric(accelerator=kind, devices=[int(index)] if index else 1)
    except Exception as error:
        raise UsageError(f"device: {device!r} cannot be used ({str(error).splitlines()[0]}); try auto or cpu") from None


def _settings(module: InpaintDataModule, storage: Storage, device: torch.device) -> dict[str, Any]:
    """Everything that decides the values in a cache: what its fingerprint covers."""
    transform = module.transform
    assert transform is not None
    vae, pixels = transform.vae, asdict(module.settings)
    offset = transform.mask_offset
    return {
        "format": FORMAT,
        "vae": vae.fingerprint() | {"has_posterior": vae.has_posterior, "factor": vae.factor},
        "samples": pixels,
        "mask_offset": offset if isinstance(offset, int) else list(offset),
        "fill": transform.fill,
        "variants": module.variants,
        "batch_size": module.batch_size,
        "storage": storage,
        # Kernels differ between kinds of device, and on a CPU they split their sums by thread.
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _check_stems(inputs: Sequence[str]) -> None:
    for shard in inputs:
        if f"{shard_stem(shard)}.json" == CACHE_FILE:
            raise UsageError(f"{shard}: its sidecar would be the cache's own {CACHE_FILE}; rename the shard")


def _is_done(shard: str, done: dict[str, Sidecar]) -> bool:
    sidecar = done.get(f"{shard_stem(shard)}.tar")
    return sidecar is not None and sidecar.input["size"] == shard_size(shard)


def _check_budget(summary: Summary, max_bad_fraction: float, root: Path) -> None:
    bad, given = len(summary.quarantined), max(1, summary.samples_in)
    if bad / given <= max_bad_fraction:
        return
    shard, first = summary.quarantined[0]
    error = CacheError(
        f"{bad} of {summary.samples_in} samples were quarantined, more than max_bad_fraction {max_bad_fraction}; the "
        f"sidecars in {root} list them all. The first: {shard}, sample {first.key!r}: {first.reason}"
    )
    error.summary = summary  # type: ignore[attr-defined]
    raise error


class _Committer:
    """Writes encoded batches to the shard in hand; runs in the writing thread alone."""

    def __init__(self, root: Path, cache_fingerprint: str, variants: int, storage: str, summary: Summary) -> None:
        self._root, self._fingerprint, self._variants, self._storage = root, cache_fingerprint, variants, storage
        self._summary = summary
        self._shard: ShardWriter | None = None
        self._faults: list[Fault] = []
        self._cached = 0

    def _open(self, shard: str) -> ShardWriter:
        if self._shard is None:
            self._shard = ShardWriter(self._root, shard_stem(shard))
        return self._shard

    def add(self, shard: str, batch: Batch, faults: list[Fault]) -> None:
        started = time.perf_counter()
        self._faults += faults
        writer = self._open(shard)
        for row, key in enumerate(batch["__key__"]):
            try:
                writer.add(key, members_of(batch, row, self._storage))
                self._cached += 1
            except SampleError as error:
                self._faults.append(Fault(shard, key, str(error), None, None))
        self._summary.write_seconds += time.perf_counter() - started

    def commit(self, end: ShardEnd) -> Sidecar:
        started = time.perf_counter()
        faults = [*end.faults, *self._faults]
        quarantined = [Quarantined(fault.key, fault.reason, fault.offset, fault.end) for fault in faults]
        identity = shard_identity(end.shard)
        source = {"name": f"{shard_stem(end.shard)}.tar", "size": identity.size, "sha256": identity.sha256}
        sidecar = self._open(end.shard).commit(self._fingerprint, source, self._variants, quarantined)
        self._shard, self._faults = None, []
        summary = self._summary
        summary.shards += 1
        summary.samples_in += end.samples_in
        summary.cached += len(sidecar.keys)
        summary.quarantined += [(end.shard, entry) for entry in quarantined]
        summary.bytes += int(sidecar.output["size"])
        summary.decode_seconds += end.decode_seconds
        summary.write_seconds += time.perf_counter() - started
        return sidecar

    def drop(self) -> None:
        """Leave no trace of the shard in hand."""
        if self._shard is not None:
            self._shard.drop()


def _cache_shards(
    module: InpaintDataModule, fabric: Fabric, shards: list[str], committer: _Committer, summary: Summary
) -> None:
    """Threads decode ahead, this one encodes, another one writes."""
    batches = module.image_batches(shards)
    progress = Progress(len(shards), sum(map(shard_size, shards)))
    pending: deque[Future[Sidecar | None]] = deque()

    def finish_one() -> None:
        sidecar = pending.popleft().result()
        if sidecar is not None:
            progress.shard(sidecar.shard, len(sidecar.keys), len(sidecar.quarantined), batches.bytes_read)

    with ThreadPoolExecutor(1, "inpaint_data-write") as pool:
        try:
            for event in batches.events():
                if isinstance(event, ShardEnd):
                    pending.append(pool.submit(committer.commit, event))
                else:
                    started = time.perf_counter()
                    batch, faults = _encode(module, fabric, event)
                    summary.encode_seconds += time.perf_counter() - started
                    pending.append(pool.submit(committer.add, event["__shard__"][0], batch, faults))
                    progress.images(len(event["__key__"]), batches.bytes_read)
                while len(pending) > WRITES_AHEAD:
                    finish_one()
            while pending:
                finish_one()
        except BaseException:
            for task in pending:
                task.cancel()
            pool.submit(committer.drop).result()
            raise
        finally:
            progress.close()


def _encode(module: InpaintDataModule, fabric: Fabric, batch: ImageBatch) -> tuple[Batch, list[Fault]]:
    """Encode on the device and bring the result to the host; samples that stay NaN are left out and named."""
    faults: list[Fault] = []
    rows: Any = fabric.to_device(batch)
    while True:
        try:
            encoded = module.on_after_batch_transfer(rows, 0)
            break
        except EncodeError as error:
            bad = set(error.indexes)
            keys = rows["__key__"]
            reason = "the VAE gives NaN or infinity for it, in float32 too; look at the picture"
            faults += [Fault(rows["__shard__"][index], keys[index], reason, None, None) for index in sorted(bad)]
            rows = select(rows, [index for index in range(len(keys)) if index not in bad])
    host: Any = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in encoded.items()}
    return host, faults
