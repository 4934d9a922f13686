"""The batches of an epoch, read ahead: one rank's share, from where an earlier run stopped."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from inpaint_data.ahead import ahead
from inpaint_data.batch import is_batch, pinned
from inpaint_data.errors import SampleError, UsageError
from inpaint_data.order import Batches, Consumed, left_over, permutation

HOPELESS = 8  # bad batches without a good one before them end the run
AHEAD = 2  # batches; what a batch takes in memory is little beside what its reading may take in time
Rows = npt.NDArray[np.int64]


class TrainingSource(Protocol):
    """What is loaded from: a cache, image shards, or a cache with fresh masks."""

    buckets: Rows  # of every row

    def __len__(self) -> int: ...

    def planned(self, plan: Sequence[Rows], epoch: int, batch_size: int) -> Iterator[Any]:
        """A batch for each of the planned ones, in their order; None where no sample of it can be used."""


class EpochLoader:
    """Batches of a source, once for each time it is iterated.

    Every rank gets the same number of batches. In training what does not fill a batch for each rank waits for another
    epoch's order; in evaluation some ranks get a batch twice, as with torch's DistributedSampler.

    Args:
        source: what is loaded from.
        batch_size: samples in a batch on each rank.
        seed: of the order.
        train: a new order every epoch, by (seed, epoch); otherwise the source's own.
        epoch: asked when the first batch of a pass is.
        ranks: this rank and how many there are.
        consumed: what an earlier run took from that epoch.
        finish: what else is done to a batch, before it is handed out.
        processes: how many DataLoader workers read; 0 reads in a thread.

    Raises:
        UsageError: fewer batches than ranks.
    """

    def __init__(
        self,
        source: TrainingSource,
        batch_size: int,
        seed: int,
        train: bool,
        epoch: Callable[[], int],
        ranks: tuple[int, int],
        consumed: Callable[[int], Sequence[Consumed]] = lambda _: (),
        finish: Callable[[Any, int], Any] = lambda batch, _: batch,
        processes: int = 0,
    ) -> None:
        self.source, self.batch_size, self.seed, self.train = source, batch_size, seed, train
        self._epoch, (self.rank, self.world), self._consumed, self._finish = epoch, ranks, consumed, finish
        self._processes = processes
        self.handed_out = 0  # batches of this pass, on this rank
        count = len(Batches(np.arange(len(source)), source.buckets, batch_size))
        if train and count < self.world:
            raise UsageError(
                f"{len(source)} samples make {count} batches of {batch_size}, fewer than one for each of {self.world} "
                "ranks; use fewer ranks or a smaller batch_size"
            )
        self._steps = count // self.world if train else -(-count // self.world)

    def __len__(self) -> int:
        """Batches of a whole epoch on each rank."""
        return self._steps

    def left(self, epoch: int) -> int:
        """How many of an epoch's batches on each rank an earlier run did not take."""
        return self._steps_of(self._batches(epoch), epoch)

    def _steps_of(self, batches: Batches, epoch: int) -> int:
        return len(batches) // self.world if self._consumed(epoch) else len(self)

    def _batches(self, epoch: int) -> Batches:
        count = len(self.source)
        order = permutation(count, self.seed, epoch) if self.train else np.arange(count)
        return Batches(
            left_over(order, self.source.buckets, self._consumed(epoch)), self.source.buckets, self.batch_size
        )

    def __iter__(self) -> Iterator[Any]:
        # A generator: Lightning calls iter() before it knows the epoch that it resumes, and next() after.
        epoch = self._epoch()
        self.handed_out = 0
        batches = self._batches(epoch)
        last = len(batches) - 1
        rows = (step * self.world + self.rank for step in range(self._steps_of(batches, epoch)))
        plan = [batches[min(number, last)] for number in rows]
        for batch in read_ahead(_Planned(self.source, plan, epoch, self.batch_size), self._processes):
            self._check(batch, len(plan))
            finished = None if batch is None else self._finish(batch, epoch)
            self.handed_out += 1
            yield finished

    def _check(self, batch: Any, planned: int) -> None:
        """Raises SampleError where a run would go on without data, for ever or on one rank of several."""
        if batch is not None:
            self._good = True
            return
        if self.world > 1:
            raise SampleError("every sample of a batch is bad, and the other ranks cannot wait; cache the shards")
        if self.handed_out == 0:
            self._good = False
        # A Trainer that counts steps would go through such epochs for ever.
        if not self._good and self.handed_out + 1 == min(HOPELESS, planned):
            raise SampleError(
                f"no sample of the first {self.handed_out + 1} batches can be used; the log names each with its reason"
            )

    _good = False  # whether this pass had a batch that can be used

    # With these two Lightning does not warn that the loader cannot resume; the position is kept by the DataModule,
    # since `estimated_stepping_batches` makes Lightning drop what it keeps of loaders.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Planned(IterableDataset[Any]):
    """The batches of a plan; in a DataLoader's worker every so many-th, which the loader puts in order again."""

    def __init__(self, source: TrainingSource, plan: Sequence[Rows], epoch: int, batch_size: int) -> None:
        self.source, self.plan, self.epoch, self.batch_size = source, plan, epoch, batch_size

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        mine = self.plan if worker is None else self.plan[worker.id :: worker.num_workers]
        yield from self.source.planned(mine, self.epoch, self.batch_size)


def read_ahead(dataset: IterableDataset[Any], processes: int) -> Iterator[Any]:
    """The items of a dataset, read ahead by a thread or by worker processes; batches in pinned memory for a GPU."""
    gpu = torch.cuda.is_available()
    if processes:
        yield from _pinned(iter(DataLoader(dataset, batch_size=None, num_workers=processes, collate_fn=_as_it_is)), gpu)
        return
    reading = ahead(_pinned(iter(dataset), gpu), AHEAD)
    try:
        yield from reading
    finally:
        reading.close()


def _as_it_is(batch: Any) -> Any:
    """In place of torch's own, which would look at every byte of carried members."""
    return batch


def _pinned(batches: Iterator[Any], gpu: bool) -> Iterator[Any]:
    for batch in batches:
        yield pinned(batch) if gpu and is_batch(batch) else batch
