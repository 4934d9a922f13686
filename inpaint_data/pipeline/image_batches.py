"""Decoded batches of image shards, prepared by threads while the device works on earlier ones."""

import logging
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Full, Queue
from typing import Any, TypeVar

from inpaint_data.pictures.examples import Example, ImageBatch, collate, prepare
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.settings import SampleSettings
from inpaint_data.shards.reading import Fault, Sample, ShardIdentity, read_shard
from inpaint_data.shards.tar import stored_size

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class ShardEnd:
    """Follows the last batch of a shard: what was in it and what did not come through."""

    shard: str
    samples_in: int = 0
    identity: ShardIdentity | None = None
    faults: list[Fault] = field(default_factory=list)
    decode_seconds: float = 0.0


class ImageBatches:
    """The batches of some shards, once for each time it is iterated. Each is of one size.

    Threads, not processes: the decoders let go of Python's lock, and no picture is copied between processes.
    Order and contents of the batches do not depend on the number of threads.

    Args:
        shards: paths or URLs, already expanded.
        settings: what decides the pixels.
        batch_size: samples in a batch; a shard's last one of each size may have fewer.
        threads: how many decode at a time.
        variants: the mask variants of every sample.
    """

    def __init__(
        self,
        shards: Sequence[str],
        settings: SampleSettings,
        batch_size: int,
        threads: int,
        variants: Sequence[int],
    ) -> None:
        self.shards, self.settings, self.batch_size, self.threads = list(shards), settings, batch_size, max(1, threads)
        self.variants = list(variants)
        self.bytes_read = self.samples_read = 0  # of all shards so far

    def __iter__(self) -> Iterator[ImageBatch]:
        for event in self.events():
            if not isinstance(event, ShardEnd):
                yield event
                continue
            for fault in event.faults:
                warn_of(fault)

    def expected_samples(self, total_bytes: int) -> float:
        """How many samples `total_bytes` of shards have, by the mean size of those read so far."""
        return total_bytes / max(1, self.bytes_read) * self.samples_read

    def events(self) -> Generator[ImageBatch | ShardEnd, None, None]:
        """The batches with a `ShardEnd` behind each shard."""
        return ahead(self._batches(), depth=2)

    def _batches(self) -> Iterator[ImageBatch | ShardEnd]:
        waiting: dict[Size, list[Example]] = {}
        for item in self._examples():
            if isinstance(item, Example):
                size = item.geometry.target_size
                waiting.setdefault(size, []).append(item)
                if len(waiting[size]) == self.batch_size:
                    yield collate(waiting.pop(size), self.variants, self.settings.seed)
                continue
            for size in sorted(waiting):
                yield collate(waiting.pop(size), self.variants, self.settings.seed)
            yield item

    def _examples(self) -> Iterator[Example | ShardEnd]:
        with ThreadPoolExecutor(self.threads) as pool:
            pending: deque[Future[tuple[list[Example | Fault], float]] | ShardEnd] = deque()
            ends: dict[str, ShardEnd] = {}

            def next_done() -> Iterator[Example | ShardEnd]:
                first = pending.popleft()
                if isinstance(first, ShardEnd):
                    yield first
                    return
                results, seconds = first.result()
                for result in results:
                    shard = ends[result.shard]
                    shard.decode_seconds += seconds / len(results)
                    if isinstance(result, Fault):
                        shard.faults.append(result)
                    else:
                        yield result

            for item in self._read(ends):
                if isinstance(item, Sample):
                    pending.append(pool.submit(_timed, item, self.settings, self.variants))
                else:
                    pending.append(item)
                while len(pending) > 2 * self.threads:
                    yield from next_done()
            while pending:
                yield from next_done()

    def _read(self, ends: dict[str, ShardEnd]) -> Iterator[Sample | ShardEnd]:
        for shard in self.shards:
            end = ends[shard] = ShardEnd(shard)
            for item in self._with_identity(end):
                if isinstance(item, Fault):
                    end.faults.append(item)
                    end.samples_in += item.key is not None
                    continue
                end.samples_in += 1
                self.bytes_read += stored_size(item.members.values())
                self.samples_read += 1
                yield item
            yield end

    @staticmethod
    def _with_identity(end: ShardEnd) -> Generator[Sample | Fault, None, None]:
        end.identity = yield from read_shard(end.shard)


def _timed(sample: Sample, settings: SampleSettings, variants: list[int]) -> tuple[list[Example | Fault], float]:
    started = time.perf_counter()
    return prepare(sample, settings, variants), time.perf_counter() - started


def warn_of(fault: Fault) -> None:
    """Say which sample is missing from a batch; a job would quarantine it."""
    log.warning("%s, sample %r is left out: %s", fault.shard, fault.key, fault.reason)


def ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Run `items` in a thread of its own, up to `depth` ahead of whoever iterates; its errors surface there."""
    done, stopped = object(), threading.Event()
    queue: Queue[Any] = Queue(depth)

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((done, None))
        except BaseException as error:
            put((done, error))

    thread = threading.Thread(target=run, name="inpaint_data-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
