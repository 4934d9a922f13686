"""Work of the job: threads decode batches ahead, this one encodes, another one writes and commits shards."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import webdataset as wds

from inpaint_data.ahead import ahead
from inpaint_data.batch import Batch, Carried, ImageBatch, select, to_device
from inpaint_data.encoding.device import free_memory, is_out_of_memory
from inpaint_data.encoding.encoder import Encoder
from inpaint_data.encoding.vae import cause
from inpaint_data.errors import CacheError, EncodeError, SampleError, UsageError
from inpaint_data.job.progress import EMPTY, FULL, NO_CAPTION, TOO_LONG, Seen, Summary
from inpaint_data.job.reports import Reports
from inpaint_data.job.settings import JobSettings
from inpaint_data.latent_cache.codec import Storing
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import Quarantined, Sidecar
from inpaint_data.latent_cache.lock import Lock
from inpaint_data.latent_cache.members import members_of
from inpaint_data.latent_cache.settings import made_with
from inpaint_data.latent_cache.text_members import text_members
from inpaint_data.latent_cache.variants import of_variant
from inpaint_data.latent_cache.writer import ShardWriter
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.device import in_pinned_memory
from inpaint_data.pipeline.stages import Tally, image_stages
from inpaint_data.shards.naming import shard_stem
from inpaint_data.shards.reading import Fault, ShardAnew, ShardEnd

WRITES_AHEAD = 4  # batches that may wait for the disk
BATCHES_AHEAD = 2  # decoded ones that may wait for the device


@dataclass(frozen=True)
class Work:
    """Everything a job needs to cache any shard."""

    examples: ExampleSettings
    own_stages: Sequence[Stage]
    encoder: Encoder
    device: torch.device
    job: JobSettings
    text: Any = None  # a TextEncoder, whose module needs transformers

    @property
    def made_with(self) -> dict[str, Any]:
        return made_with(self.job.batch_size, self.device)

    @property
    def storing(self) -> Storing:
        return Storing(self.job.storage, self.encoder.autoencoder.has_posterior, self.job.means)

    def events(self, shards: Iterable[str], tally: Tally | None = None) -> Generator[Any, None, None]:
        """The pictures of some shards in batches, read and decoded ahead, with Faults and ShardEnds among them."""
        variants = range(self.job.variants)
        stages = image_stages(
            shards, self.examples, self.own_stages, self.job.batch_size, variants, max(1, self.job.num_workers), tally
        )
        return ahead(iter(wds.DataPipeline(*stages, in_pinned_memory())), BATCHES_AHEAD)


class Committer:
    """Writes encoded batches to the current shard; runs in the writing thread alone."""

    def __init__(self, folder: CacheFolder, lock: Lock, cache_fingerprint: str, work: Work, summary: Summary) -> None:
        self._folder, self._lock, self._fingerprint = folder, lock, cache_fingerprint
        self._work, self._summary = work, summary
        self._shard: ShardWriter | None = None
        self._faults: list[Fault] = []
        self._seen = Seen()  # in the current shard
        self._failed = False

    @contextmanager
    def _step(self) -> Iterator[None]:
        """Steps that were queued after a failed one still run, and must not commit the shard."""
        if self._failed:
            raise CacheError("an earlier step of this shard failed")
        self._failed = True
        yield
        self._failed = False

    def _open(self, shard: str) -> ShardWriter:
        if self._shard is None:
            self._shard = ShardWriter(self._folder, shard_stem(shard))
        return self._shard

    def add(self, shard: str, variants: Sequence[Batch], faults: Sequence[Fault]) -> None:
        """Write a batch, given the batches of its K variants."""
        with self._step():
            self._add(shard, variants, list(faults))

    def note(self, fault: Fault) -> None:
        """Record a sample that is not cached."""
        with self._step():
            self._take([fault])

    def begin_anew(self) -> None:
        """Drop the current shard, which begins again."""
        with self._step():
            self.drop()
            self._forget()

    def commit(self, end: ShardEnd) -> Sidecar:
        with self._step():
            return self._commit(end)

    def _add(self, shard: str, variants: Sequence[Batch], faults: list[Fault]) -> None:
        started = time.perf_counter()
        writer, first = self._open(shard), variants[0]
        for row, key in enumerate(first["__key__"]):
            try:
                writer.add(key, members_of(variants, row, self._work.storing), first["target_size"][row].tolist())
            except SampleError as error:
                faults.append(Fault(shard, key, str(error), None, None))
        self._take(faults)
        for batch in variants:
            holes = (batch["mask"] > 0.5).flatten(1)  # as recipes feed a soft mask to models
            self._seen.masks += len(holes)
            for kind, rows in ((EMPTY, ~holes.any(1)), (FULL, holes.all(1))):
                for row in rows.nonzero().flatten().tolist():
                    self._seen.note(kind, shard, batch["__key__"][row])
        for row, (key, caption) in enumerate(zip(first["__key__"], first["caption"], strict=True)):
            if not any(batch["caption"][row] for batch in variants):
                self._seen.note(NO_CAPTION, shard, key)
            elif self._work.text is not None and self._work.text.is_too_long(caption):
                self._seen.note(TOO_LONG, shard, key)
        self._summary.write_seconds += time.perf_counter() - started

    def _commit(self, end: ShardEnd) -> Sidecar:
        started = time.perf_counter()
        quarantined, filtered = (
            [
                Quarantined(fault.key, fault.reason, fault.offset, fault.end)
                for fault in self._faults
                if fault.on_purpose is on_purpose
            ]
            for on_purpose in (False, True)
        )
        source = {"name": f"{shard_stem(end.shard)}.tar", **asdict(end.identity)}
        variants = self._work.job.variants
        self._lock.check()
        sidecar = self._open(end.shard).commit(
            self._fingerprint, source, variants, self._work.made_with, quarantined, filtered
        )
        summary = self._summary
        summary.seen.add(self._seen)
        self._forget()
        summary.shards += 1
        summary.samples_in += end.keys
        summary.without_samples += [] if end.keys else [end.shard]
        summary.cached += len(sidecar.keys)
        summary.quarantined += [(end.shard, entry) for entry in quarantined]
        summary.filtered += [(end.shard, entry) for entry in filtered]
        summary.bytes += int(sidecar.output["size"])
        summary.decode_seconds += end.decode_seconds
        summary.write_seconds += time.perf_counter() - started
        return sidecar

    def _take(self, faults: list[Fault]) -> None:
        if self._work.job.on_bad == "raise" and (bad := [fault for fault in faults if not fault.on_purpose]):
            first = bad[0]
            raise CacheError(f"{first.shard}, sample {first.key!r}: {first.reason} (on_bad is raise)")
        self._faults += faults

    def _forget(self) -> None:
        self._shard, self._faults, self._seen = None, [], Seen()

    def give_up(self, shard: str, problem: str) -> None:
        """Leave out a shard whose rest cannot be read. What was cached of its input before stays."""
        with self._step():
            if self._work.job.on_bad == "raise":
                raise CacheError(f"{problem} (on_bad is raise)")
            self.drop()
            self._forget()
            self._summary.unreadable[shard] = problem

    def drop(self) -> None:
        """Remove what was written of the current shard."""
        if self._shard is not None:
            self._shard.drop()


def cache_shards(
    work: Work,
    committer: Committer,
    summary: Summary,
    shards: Iterable[str],
    done: Callable[[Sidecar], None],
    reports: Reports,
) -> None:
    """Encode and commit shards in their order.

    At any error the current shard is dropped and the others stay. One that cannot be read is left out.

    Args:
        work: what to do with each.
        committer: writes them.
        summary: of the run; its plan may change while `shards` are handed out.
        shards: asked for one after another, when they are to be read.
        done: told of each one that is committed.
        reports: told of everything.
    """
    tally, problem = Tally(), None
    pending: deque[Future[Sidecar | None]] = deque()

    def finish_one() -> None:
        sidecar = pending.popleft().result()
        if sidecar is not None:
            done(sidecar)
            reports.shard(sidecar, tally.expected(summary.plan.bytes_to_do))

    with ThreadPoolExecutor(1, "inpaint_data-write") as pool, closing(work.events(shards, tally)) as events:
        try:
            for event in events:
                if isinstance(event, ShardEnd) and event.problem:
                    pending.append(pool.submit(committer.give_up, event.shard, event.problem))
                    reports.skip(event.problem)
                elif isinstance(event, ShardEnd):
                    pending.append(pool.submit(committer.commit, event))
                elif isinstance(event, ShardAnew):
                    pending.append(pool.submit(committer.begin_anew))
                elif isinstance(event, Fault):
                    pending.append(pool.submit(committer.note, event))
                else:
                    summary.note_untold(event)
                    started = time.perf_counter()
                    parts = list(encode(work, event))
                    summary.in_parts += len(parts) > 1
                    summary.encode_seconds += time.perf_counter() - started
                    for batches, faults in parts:
                        pending.append(pool.submit(committer.add, event["__shard__"][0], batches, faults))
                    reports.images(len(event["__key__"]), tally.expected(summary.plan.bytes_to_do))
                while len(pending) > WRITES_AHEAD:
                    finish_one()
            while pending:
                finish_one()
            summary.retried = work.encoder.autoencoder.retries
        except BaseException as error:
            problem = str(error) or type(error).__name__
            for task in pending:
                task.cancel()
            pool.submit(committer.drop).result()
            raise
        finally:
            reports.end(problem)


def encode(work: Work, batch: ImageBatch) -> Iterator[tuple[list[Batch], list[Fault]]]:
    """Encode a batch on the device and bring it to the CPU; samples whose latents stay NaN become faults.

    A batch that does not fit into memory is encoded in halves, and halves of these.

    Yields:
        A batch for each variant, and the faults; of each part.

    Raises:
        CacheError: one sample alone does not fit.
    """
    try:
        encoded = _encode(work, batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        encoded, problem = None, cause(error)  # the error itself would keep what is in memory
    if encoded is not None:
        yield encoded
        return
    free_memory(work.device)
    count = len(batch["__key__"])
    if count == 1:
        height, width = batch["image"].shape[-2:]
        raise CacheError(
            f"{batch['__shard__'][0]}, sample {batch['__key__'][0]!r}: out of memory ({problem}) with this one sample "
            f"of {height} x {width} pixels, after batch_size {work.job.batch_size} was halved down to 1; free memory, "
            "or use another device, a smaller resolution or dtype bfloat16; finished shards are kept"
        )
    for rows in (range(count // 2), range(count // 2, count)):
        yield from encode(work, select(batch, rows))


def _encode(work: Work, batch: ImageBatch) -> tuple[list[Batch], list[Fault]]:
    faults: list[Fault] = []
    rows = to_device(batch, work.device)
    while True:
        try:
            encoded = work.encoder.variants(rows)
            break
        except EncodeError as error:
            bad = set(error.indexes)
            keys = rows["__key__"]
            reason = "the VAE gives NaN or infinity for it, in float32 too; look at the image"
            faults += [Fault(rows["__shard__"][index], keys[index], reason, None, None) for index in sorted(bad)]
            rows = select(rows, [index for index in range(len(keys)) if index not in bad])
    batches = [to_device(variant, torch.device("cpu")) for variant in encoded]
    if work.text is not None:
        batches[0]["carried"] = _with_text(rows, work.text)
    return batches, faults


def _with_text(rows: ImageBatch, encoder: Any) -> Carried:
    """What the samples carry, and the embeddings of their captions.

    Raises:
        UsageError: a sample brings such members already.
    """
    carried = []
    for row, members in enumerate(rows["carried"]):
        captions = rows["captions"][row] if "captions" in rows else [rows["caption"][row]]
        picture = rows["image"][row] if encoder.needs_picture else None
        new = text_members(encoder.encode(captions[0], picture))
        for number, caption in enumerate(captions):
            if caption != captions[0]:
                own = text_members(encoder.encode(caption, picture))
                new |= {of_variant(number, name): data for name, data in own.items()}
        if existing := sorted(new.keys() & members.keys()):
            raise UsageError(
                f"{rows['__shard__'][row]}, sample {rows['__key__'][row]!r}: has a {existing[0]}; leave text_model "
                "out, or give shards without it"
            )
        carried.append({**members, **new})
    return Carried(carried)
