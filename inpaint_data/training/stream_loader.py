"""The batches of shards that come one after another, as many on every rank, from where an earlier run stopped."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from inpaint_data.errors import UsageError
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.streamed import Reader, StreamedPart, StreamedShards
from inpaint_data.shards.naming import shard_stem
from inpaint_data.training.loader import Hope, Pass, drawn_with, read_ahead
from inpaint_data.training.resume import Resume, Start, Streamed
from inpaint_data.training.settings import LoadSettings
from inpaint_data.training.sources import FaultLog

_log = logging.getLogger(__name__)


class StreamLoader:
    """Batches of streamed shards, once for each time it is iterated; `epoch_batches` of them on every rank.

    Args:
        shards: what is read.
        epoch_batches: in an epoch, on each rank.
        next_pass: says how the next pass is to be; asked when its first batch is.
        finish: what else is done to a batch, given what its samples are drawn with, before it is handed out.
        processes: how many DataLoader workers read; 0 reads in a thread.
        threads: how many decode, in each that reads.

    Attributes:
        current, passes, handed_out, skipped: as those of `EpochLoader`.

    Raises:
        UsageError: fewer shards of a source than readers, when it is iterated; or a checkpoint of other sources.
    """

    def __init__(
        self,
        shards: StreamedShards,
        epoch_batches: int,
        next_pass: Callable[[], Pass],
        finish: Callable[[Any, Sequence[int]], Any],
        processes: int,
        threads: int,
    ) -> None:
        self.shards, self.epoch_batches, self.next_pass = shards, epoch_batches, next_pass
        self.finish, self.processes, self.threads = finish, processes, threads
        self.current: Pass | None = None
        self.passes = self.handed_out = self.skipped = 0
        none = [0] * len(shards.parts)
        self._deepest = none  # of each source, shards of the first reader that came so far
        self._start = Start(0, none)

    def __len__(self) -> int:
        return self.epoch_batches

    def steps(self, this: Pass) -> int:  # noqa: ARG002 - as EpochLoader's
        """How many batches a pass has on each rank, whatever was consumed before."""
        return self.epoch_batches

    def left(self, this: Pass) -> int:
        """How many of a pass's batches on each rank an earlier run did not take."""
        return self.epoch_batches - min(self.epoch_batches, this.streamed.steps if this.streamed else 0)

    def __iter__(self) -> Iterator[Any]:
        this = self.current = self.next_pass()
        self.passes += 1
        readers = this.world * max(1, self.processes)
        parts = self.shards.parts
        for part in parts:
            if readers > len(part.shards):
                raise UsageError(
                    f"{part.name}: {len(part.shards)} shards are fewer than the {readers} that would read them ("
                    f"{this.world} ranks of {max(1, self.processes)}); use fewer num_workers, workers: threads, or "
                    "make smaller shards"
                )
        none = [0] * len(parts)
        self.skipped, self.handed_out, self._deepest = self.epoch_batches - self.left(this), 0, list(none)
        before = this.streamed or Streamed(0, readers, this.batch_size, none, Start(0, none))
        if len(before.begun) != len(parts):
            raise UsageError(
                f"the checkpoint is of {len(before.begun)} sources, and these are {len(parts)}; resume with the "
                "same, or from the end of an epoch"
            )
        self._start = before.start
        if (before.readers, before.batch_size) != (readers, this.batch_size):
            _log.warning(
                "the checkpoint is of %d readers and batches of %d, and these are %d and %d: the epoch goes on with "
                "the shards that were not begun",
                before.readers, before.batch_size, readers, this.batch_size,
            )  # fmt: skip
            least = [min(begun, len(part.shards)) for begun, part in zip(before.begun, parts, strict=True)]
            self._start = Start(self.skipped, least)
        begun = self._start.begun
        source = _Stream(self, this, self.skipped - self._start.steps, begun, readers)
        depths = [
            {
                _name_of(shard): number // readers
                for number, shard in reversed(list(enumerate(self.shards.order(part, this.epoch)[begun[part] :])))
            }
            for part in range(len(parts))
        ]
        hope = Hope(this.world)
        for batch in read_ahead(source, self.processes):
            hope.check(batch, self.epoch_batches)
            if batch is not None:
                # Where shards of two sources have one name, it counts for both.
                for number, depth_of in enumerate(depths):
                    of_batch = [1 + depth_of[shard] for shard in batch["__shard__"] if shard in depth_of]
                    self._deepest[number] = max(self._deepest[number], *of_batch, 0)
                batch = self.finish(batch, drawn_with(batch) or ())
            self.handed_out += 1
            yield batch

    def place(self, resume: Resume, steps: int) -> dict[str, Any]:
        """For a checkpoint: what was taken of the epoch, `steps` of this run's batches with it.

        Ranks differ by little in how far they are, so those of the next shard of each reader count as begun too.
        """
        assert self.current is not None
        readers, batch_size = self.current.world * max(1, self.processes), self.current.batch_size
        begun = [
            begun + (deepest + 1) * readers * bool(deepest)
            for begun, deepest in zip(self._start.begun, self._deepest, strict=True)
        ]
        taken = Streamed(self.skipped + steps, readers, batch_size, begun, self._start)
        return resume.state_of_stream(self.current.epoch, taken, self.current.world)

    # As EpochLoader's, so that Lightning does not warn.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Stream(IterableDataset[Any]):
    """The batches of a rank; in a DataLoader's worker every so many-th, which the loader puts in order again."""

    def __init__(self, loader: StreamLoader, this: Pass, skipped: int, begun: Sequence[int], readers: int) -> None:
        self.shards, self.threads, self.this = loader.shards, loader.threads, this
        self.steps, self.skipped, self.begun, self.readers = loader.left(this), skipped, begun, readers

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
    """The loader of shards that come one after another."""
    stream = StreamedShards(parts, own, loading.seed, loading.shuffle_buffer, FaultLog())
    threads = 1 if loading.processes else max(1, loading.num_workers)
    assert loading.epoch_batches is not None
    return StreamLoader(stream, loading.epoch_batches, next_pass, finish, loading.processes, threads)


def check_streamed(loading: LoadSettings, is_streamed: bool) -> None:
    """Raises UsageError where there are no image shards to come one after another, and they are asked for."""
    if loading.epoch_batches is not None and not is_streamed:
        raise UsageError(
            "epoch_batches: is for image shards that come one after another, and source is none; leave it out",
            ("loading", "epoch_batches"),
        )
