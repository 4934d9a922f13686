"""The batches of shards that come one after another, as many on every rank, from where an earlier run stopped."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from inpaint_data.errors import UsageError
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.streamed import Reader, StreamedPart, StreamedShards
from inpaint_data.shards.fetching import Fetching
from inpaint_data.shards.naming import shard_stem
from inpaint_data.training.loader import Hope, Pass, drawn_with, read_ahead
from inpaint_data.training.resume import Resume, Start, Streamed
from inpaint_data.training.settings import LoadSettings
from inpaint_data.training.sources import FaultLog

_log = logging.getLogger(__name__)


class StreamLoader:
    """Batches of streamed shards, once for each time it is iterated; as many on every rank.

    Args:
        shards: what is read.
        epoch_batches: in an epoch, on each rank; None is as many as the counts of the shards make.
        next_pass: says how the next pass is to be; asked when its first batch is.
        finish: what else is done to a batch, given what its samples are drawn with, before it is handed out.
        processes: how many DataLoader workers read; 0 reads in a thread.
        threads: how many decode, in each that reads.

    Attributes:
        current, passes, handed_out, skipped: as those of `EpochLoader`.

    Raises:
        UsageError: fewer shards of a source than readers, fewer samples than make a batch for each, or a checkpoint of
            other sources.
    """

    def __init__(
        self,
        shards: StreamedShards,
        epoch_batches: int | None,
        next_pass: Callable[[], Pass],
        finish: Callable[[Any, Sequence[int]], Any],
        processes: int,
        threads: int,
    ) -> None:
        self.shards, self.epoch_batches, self.next_pass = shards, epoch_batches, next_pass
        self.finish, self.processes, self.threads = finish, processes, threads
        self.current: Pass | None = None
        self.passes = self.handed_out = self.skipped = 0
        self._none: list[list[int]] = [[] for _ in shards.parts]
        self._deepest = [0] * len(shards.parts)  # of each source, shards of the first reader that came so far
        self._start = Start(0, self._none)

    def __len__(self) -> int:
        return self.steps(self.next_pass())

    def steps(self, this: Pass) -> int:
        """How many batches a pass has on each rank, whatever was consumed before."""
        steps = self._steps_behind(self._none, this) if self.epoch_batches is None else self.epoch_batches
        if not steps:
            assert self.shards.counts is not None
            raise UsageError(
                f"source: {self.shards.counts.sum()} samples do not make a batch of {this.batch_size} for each of the "
                f"{self._readers(this)} that read them; use a smaller batch_size or fewer of them"
            )
        return steps

    def _steps_behind(self, begun: Sequence[Sequence[int]], this: Pass) -> int:
        """How many steps the shards make that were not begun: all readers get as many samples, and full batches."""
        assert self.shards.counts is not None
        samples = int(self.shards.counts[self.shards.order(0, this.epoch, begun[0])].sum())
        workers = max(1, self.processes)
        return samples // (this.world * workers) // this.batch_size * workers

    def left(self, this: Pass) -> int:
        """How many of a pass's batches on each rank an earlier run did not take."""
        before = self._before(this)
        if before is None:
            return self.steps(this)
        if self.epoch_batches is not None:
            return max(0, self.epoch_batches - before.steps)
        if before.dealt != self._new(this).dealt:
            return self._steps_behind(before.begun, this)
        return max(0, self._steps_behind(before.start.begun, this) - (before.steps - before.start.steps))

    def _before(self, this: Pass) -> Streamed | None:
        """What an earlier run took of the same sources."""
        before, parts = this.streamed, self.shards.parts
        if before is not None and len(before.begun) != len(parts):
            raise UsageError(
                f"the checkpoint is of {len(before.begun)} sources, and these are {len(parts)}; resume with the "
                "same, or from the end of an epoch"
            )
        return before

    def _readers(self, this: Pass) -> int:
        return this.world * max(1, self.processes)

    def _new(self, this: Pass) -> Streamed:
        is_counted = self.shards.counts is not None
        return Streamed(0, self._readers(this), this.batch_size, self._none, Start(0, self._none), is_counted)

    def __iter__(self) -> Iterator[Any]:
        this = self.current = self.next_pass()
        self.passes += 1
        readers = self._readers(this)
        for part in self.shards.parts:
            if readers > len(part.shards):
                raise UsageError(
                    f"{part.name}: {len(part.shards)} shards are fewer than the {readers} that would read them ("
                    f"{this.world} ranks of {max(1, self.processes)}); use fewer num_workers, workers: threads, or "
                    "make smaller shards"
                )
        steps = self.steps(this)
        self.skipped, self.handed_out = steps - self.left(this), 0
        self._deepest = [0] * len(self.shards.parts)
        before = self._before(this) or self._new(this)
        self._start = before.start
        if before.dealt != self._new(this).dealt:
            _log.warning(
                "the checkpoint is of %d readers and batches of %d, and these are %d and %d: the epoch goes on with "
                "the shards that were not begun",
                before.readers, before.batch_size, readers, this.batch_size,
            )  # fmt: skip
            self._start = Start(self.skipped, before.begun)
        yield from self._batches(this, steps)

    def _batches(self, this: Pass, steps: int) -> Iterator[Any]:
        depths = [self._depths(part, this) for part in range(len(self.shards.parts))]
        hope = Hope(this.world)
        for batch in read_ahead(_Stream(self, this, steps), self.processes):
            hope.check(batch, steps)
            if batch is not None:
                # Where shards of two sources have one name, it counts for both.
                for part, depth_of in enumerate(depths):
                    of_batch = [1 + depth_of[shard] for shard in batch["__shard__"] if shard in depth_of]
                    self._deepest[part] = max(self._deepest[part], *of_batch, 0)
                batch = self.finish(batch, drawn_with(batch) or ())
            self.handed_out += 1
            yield batch

    def _depths(self, part: int, this: Pass) -> dict[str, int]:
        """How many shards of a source its reader reads before each, by the names that batches have."""
        shards, order = self.shards.parts[part].shards, self.shards.order(part, this.epoch, self._start.begun[part])
        return {
            _name_of(shards[shard]): number // self._readers(this)
            for number, shard in reversed(list(enumerate(order.tolist())))
        }

    def place(self, resume: Resume, steps: int) -> dict[str, Any]:
        """For a checkpoint: what was taken of the epoch, `steps` of this run's batches with it."""
        this = self.current
        assert this is not None
        more = self._begun(this, self.skipped + steps - self._start.steps)
        begun = [sorted({*first, *then}) for first, then in zip(self._start.begun, more, strict=True)]
        taken = replace(self._new(this), steps=self.skipped + steps, begun=begun, start=self._start)
        return resume.state_of_stream(this.epoch, taken, this.world)

    def _begun(self, this: Pass, steps: int) -> list[Iterable[int]]:
        """The shards of each source that these readers have begun after so many steps of theirs.

        Where counts are known this is a function of steps alone. Where not, ranks differ by little in how far they are,
        so those of the next shard of each reader count as begun too.
        """
        readers, start = self._readers(this), self._start.begun
        if self.shards.counts is not None:
            batches = -(-steps // max(1, self.processes))
            return [self.shards.begun(Reader(this.epoch, 0, readers, start), batches, this.batch_size)]
        counts = [(deepest + 1) * readers * bool(deepest) for deepest in self._deepest]
        return [self.shards.order(part, this.epoch, start[part])[:count].tolist() for part, count in enumerate(counts)]

    # As EpochLoader's, so that Lightning does not warn.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Stream(IterableDataset[Any]):
    """The batches of a rank; in a DataLoader's worker every so many-th, which the loader puts in order again."""

    def __init__(self, loader: StreamLoader, this: Pass, steps: int) -> None:
        self.shards, self.threads, self.this = loader.shards, loader.threads, this
        self.steps, self.skipped = steps - loader.skipped, loader.skipped - loader._start.steps
        self.begun, self.readers = loader._start.begun, loader._readers(this)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        # The loader asks its workers in turn, and the first one now for the batch that is next.
        first = self.skipped + number
        turn = first % count
        reader = Reader(self.this.epoch, self.this.rank * count + turn, self.readers, self.begun)
        batches = self.shards.batches(reader, self.this.batch_size, first // count, self.threads)
        yield from islice(batches, len(range(number, self.steps, count)))


def _name_of(shard: str) -> str:
    """A shard as batches name it."""
    return f"{shard_stem(shard)}.tar"


def stream_loader(
    parts: Sequence[StreamedPart],
    own: Sequence[Stage],
    loading: LoadSettings,
    next_pass: Callable[[], Pass],
    finish: Callable[[Any, Any], Any],
) -> StreamLoader:
    """The loader of shards that come one after another; of one source with known counts, or with `epoch_batches`."""
    stream = StreamedShards(parts, own, loading.seed, loading.shuffle_buffer, FaultLog(), Fetching(*loading.copies))
    threads = 1 if loading.processes else max(1, loading.num_workers)
    return StreamLoader(stream, loading.epoch_batches, next_pass, finish, loading.processes, threads)


def check_streamed(loading: LoadSettings, is_streamed: bool) -> None:
    """Raises UsageError where there are no image shards to come one after another, and they are asked for."""
    if loading.epoch_batches is not None and not is_streamed:
        raise UsageError(
            "epoch_batches: is for image shards that come one after another, and source is none; leave it out",
            ("loading", "epoch_batches"),
        )
