"""Shards of the job: threads decode batches ahead, this one encodes, another one writes and commits shards."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

from inpaint_data.batch import Batch
from inpaint_data.errors import CacheError, SampleError
from inpaint_data.job.encoding import Encoding, OnDevice
from inpaint_data.job.progress import EMPTY, FULL, NO_CAPTION, TOO_LONG, Seen, Summary
from inpaint_data.job.reports import Reports
from inpaint_data.job.work import Work
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import Quarantined, Sidecar
from inpaint_data.latent_cache.lock import Lock
from inpaint_data.latent_cache.members import members_of
from inpaint_data.latent_cache.writer import ShardWriter
from inpaint_data.pipeline.stages import Tally
from inpaint_data.shards.naming import shard_stem
from inpaint_data.shards.reading import Fault, ShardAnew, ShardEnd

WRITES_AHEAD = 4  # batches that may wait for the disk


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
        with self._step(), self._summary.timing("write_seconds"):
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
        with self._step(), self._summary.timing("write_seconds"):
            return self._commit(end)

    def _add(self, shard: str, variants: Sequence[Batch], faults: list[Fault]) -> None:
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

    def _commit(self, end: ShardEnd) -> Sidecar:
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
    device = OnDevice(work)
    waiting: deque[Encoding | ShardEnd | ShardAnew | Fault] = deque()  # in their order
    pending: deque[Future[Sidecar | None]] = deque()

    def finish_one() -> None:
        sidecar = pending.popleft().result()
        if sidecar is not None:
            done(sidecar)
            reports.shard(sidecar, tally.expected(summary.plan.bytes_to_do))

    def write(event: ShardEnd | ShardAnew | Fault) -> None:
        if isinstance(event, Fault):
            pending.append(pool.submit(committer.note, event))
        elif isinstance(event, ShardAnew):
            pending.append(pool.submit(committer.begin_anew))
        elif event.problem:
            pending.append(pool.submit(committer.give_up, event.shard, event.problem))
            reports.skip(event.problem)
        else:
            pending.append(pool.submit(committer.commit, event))

    def write_encoded(encoding: Encoding) -> None:
        with summary.timing("encode_seconds"):
            parts = device.finish(encoding)
        summary.in_parts += len(parts) > 1
        for batches, faults in parts:
            pending.append(pool.submit(committer.add, encoding.shard, batches, faults))
        reports.images(encoding.images, tally.expected(summary.plan.bytes_to_do))

    def write_all_but(under_way: int) -> None:
        """Hand over to the writing thread, in order, until so many batches are left on the device."""
        while waiting and (device.under_way > under_way or not isinstance(waiting[0], Encoding)):
            event = waiting.popleft()
            if isinstance(event, Encoding):
                write_encoded(event)
            else:
                write(event)
            with summary.timing("waited_for_disk"):
                while len(pending) > WRITES_AHEAD:
                    finish_one()

    with ThreadPoolExecutor(1, "inpaint_data-write") as pool, closing(work.events(shards, tally)) as events:

        def next_event() -> Any:
            with summary.timing("waited_for_pictures"):
                return next(events, None)

        try:
            while (event := next_event()) is not None:
                if isinstance(event, ShardEnd | ShardAnew | Fault):
                    waiting.append(event)
                else:
                    summary.note_untold(event)
                    with summary.timing("encode_seconds"):
                        waiting.append(device.begin(event))
                write_all_but(device.depth)
            write_all_but(0)
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
