"""From decoded batches to committed shards: threads decode ahead, this one encodes, another one writes."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric

from inpaint_data.encoding.transform import Batch
from inpaint_data.errors import CacheError, EncodeError, SampleError
from inpaint_data.job.progress import Progress, Summary
from inpaint_data.latent_cache.format import Quarantined, Sidecar, members_of
from inpaint_data.latent_cache.writer import ShardWriter
from inpaint_data.pictures.examples import ImageBatch, select
from inpaint_data.pipeline.image_batches import ShardEnd
from inpaint_data.shards.reading import Fault, shard_size, shard_stem
from inpaint_data.training.datamodule import InpaintDataModule

Storage = Literal["float16", "float32"]
OnBad = Literal["quarantine", "raise"]
WRITES_AHEAD = 4  # batches that may wait for the disk


class Committer:
    """Writes encoded batches to the shard in hand; runs in the writing thread alone."""

    def __init__(
        self, root: Path, cache_fingerprint: str, variants: int, storage: str, on_bad: OnBad, summary: Summary
    ) -> None:
        self._root, self._fingerprint, self._variants, self._storage = root, cache_fingerprint, variants, storage
        self._on_bad, self._summary = on_bad, summary
        self._shard: ShardWriter | None = None
        self._faults: list[Fault] = []
        self._spoilt = False

    @contextmanager
    def _step(self) -> Iterator[None]:
        """A step that fails spoils the shard: what waits behind it runs before anybody knows, and must not commit."""
        if self._spoilt:
            raise CacheError("an earlier step of this shard failed")
        self._spoilt = True
        yield
        self._spoilt = False

    def _open(self, shard: str) -> ShardWriter:
        if self._shard is None:
            self._shard = ShardWriter(self._root, shard_stem(shard))
        return self._shard

    def add(self, shard: str, batch: Batch, faults: list[Fault]) -> None:
        with self._step():
            self._add(shard, batch, faults)

    def commit(self, end: ShardEnd) -> Sidecar:
        with self._step():
            return self._commit(end)

    def _add(self, shard: str, batch: Batch, faults: list[Fault]) -> None:
        started = time.perf_counter()
        writer = self._open(shard)
        for row, key in enumerate(batch["__key__"]):
            try:
                writer.add(key, members_of(batch, row, self._storage), batch["target_size"][row].tolist())
            except SampleError as error:
                faults.append(Fault(shard, key, str(error), None, None))
        self._take(faults)
        there = (batch["mask"] > 0.5).any(-1).any(-1)  # what models are fed of a soft one
        self._summary.masks += there.numel()
        self._summary.empty_masks += int((~there).sum())
        self._summary.write_seconds += time.perf_counter() - started

    def _commit(self, end: ShardEnd) -> Sidecar:
        started = time.perf_counter()
        self._take(end.faults)
        quarantined, filtered = (
            [
                Quarantined(fault.key, fault.reason, fault.offset, fault.end)
                for fault in self._faults
                if fault.filtered is on_purpose
            ]
            for on_purpose in (False, True)
        )
        assert end.identity is not None
        source = {"name": f"{shard_stem(end.shard)}.tar", **asdict(end.identity)}
        sidecar = self._open(end.shard).commit(self._fingerprint, source, self._variants, quarantined, filtered)
        self._shard, self._faults = None, []
        summary = self._summary
        summary.shards += 1
        summary.samples_in += end.samples_in
        summary.cached += len(sidecar.keys)
        summary.quarantined += [(end.shard, entry) for entry in quarantined]
        summary.filtered += [(end.shard, entry) for entry in filtered]
        summary.bytes += int(sidecar.output["size"])
        summary.decode_seconds += end.decode_seconds
        summary.write_seconds += time.perf_counter() - started
        return sidecar

    def _take(self, faults: list[Fault]) -> None:
        if self._on_bad == "raise" and (bad := [fault for fault in faults if not fault.filtered]):
            first = bad[0]
            raise CacheError(f"{first.shard}, sample {first.key!r}: {first.reason} (on_bad is raise)")
        self._faults += faults

    def drop(self) -> None:
        """Leave no trace of the shard in hand."""
        if self._shard is not None:
            self._shard.drop()


def cache_shards(
    module: InpaintDataModule, fabric: Fabric, shards: list[str], committer: Committer, summary: Summary
) -> None:
    """Encode and commit `shards` in their order; at any error the shard in hand is dropped and the others stay."""
    batches = module.image_batches(shards)
    progress, total_bytes = Progress(len(shards)), sum(map(shard_size, shards))
    pending: deque[Future[Sidecar | None]] = deque()

    def finish_one() -> None:
        sidecar = pending.popleft().result()
        if sidecar is not None:
            expected = batches.expected_samples(total_bytes)
            progress.shard(sidecar.shard, len(sidecar.keys), len(sidecar.quarantined), expected)

    with ThreadPoolExecutor(1, "inpaint_data-write") as pool, closing(batches.events()) as events:
        try:
            for event in events:
                if isinstance(event, ShardEnd):
                    pending.append(pool.submit(committer.commit, event))
                else:
                    started = time.perf_counter()
                    batch, faults = encode(module, fabric, event)
                    summary.encode_seconds += time.perf_counter() - started
                    pending.append(pool.submit(committer.add, event["__shard__"][0], batch, faults))
                    progress.images(len(event["__key__"]), batches.expected_samples(total_bytes))
                while len(pending) > WRITES_AHEAD:
                    finish_one()
            while pending:
                finish_one()
            summary.retried = module.transform.vae.retries if module.transform else 0
        except BaseException:
            for task in pending:
                task.cancel()
            pool.submit(committer.drop).result()
            raise
        finally:
            progress.close()


def encode(module: InpaintDataModule, fabric: Fabric, batch: ImageBatch) -> tuple[Batch, list[Fault]]:
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
