"""The batches of an epoch, read ahead: one rank's share, from where an earlier run stopped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from inpaint_data.ahead import ahead
from inpaint_data.batch import is_batch, pinned
from inpaint_data.errors import InpaintDataError, SampleError, UsageError
from inpaint_data.order import Batches, Consumed, counts_of, left_over, permutation, share_of, steps_of
from inpaint_data.training.mixture import Mixture, Places, Planned, Rows, whole
from inpaint_data.training.resume import Resume, Streamed

HOPELESS = 8  # bad batches without a good one before them end the run
AHEAD = 2  # batches; what a batch takes in memory is little beside what its reading may take in time


@dataclass(frozen=True)
class Pass:
    """One pass over a source, as things are when it begins.

    Attributes:
        epoch: which pass over the data it is.
        batch_size: samples in a batch on each rank.
        rank, world: this rank and how many there are.
        seed: of the order.
        train: a new order every epoch, by (seed, epoch); otherwise the source's own.
        consumed: what an earlier run took from that epoch.
        streamed: the same where shards come one after another.
    """

    epoch: int
    batch_size: int
    rank: int = 0
    world: int = 1
    seed: int = 0
    train: bool = True
    consumed: Sequence[Consumed] = ()
    streamed: Streamed | None = None


class TrainingSource(Protocol):
    """What is loaded from: caches, image shards, a cache with fresh masks, or several of these."""

    buckets: Any  # (N,) whole numbers, of every row

    @property
    def sizes(self) -> Rows: ...  # (N, 2), height and width of every row

    def __len__(self) -> int: ...

    def planned(self, plan: Sequence[Planned], batch_size: int) -> Iterator[Any]:
        """A batch for each of the planned ones, in their order; None where no sample of it can be used."""


class EpochLoader:
    """Batches of a source, once for each time it is iterated.

    Every rank gets the same number of batches. In training what does not fill a batch for each rank waits for another
    epoch's order; in evaluation some ranks get a batch twice, as with torch's DistributedSampler.

    Args:
        source: what is loaded from.
        next_pass: says how the next pass is to be; asked when its first batch is, and by `len`. Nothing is frozen
            before: ranks, epoch and batch size are those of that moment.
        finish: what else is done to a batch, given what its samples are drawn with, before it is handed out.
        processes: how many DataLoader workers read; 0 reads in a thread.
        mixture: what an epoch has of the source's rows; left out, each once.

    Attributes:
        current: the pass that is under way, or was last.
        passes: how many were begun.
        handed_out: batches of that pass, on this rank.
        skipped: batches of that pass on this rank that an earlier run took.

    Raises:
        UsageError: fewer batches than ranks, when it is asked for its length or iterated.
    """

    def __init__(
        self,
        source: TrainingSource,
        next_pass: Callable[[], Pass],
        finish: Callable[[Any, Sequence[int]], Any] | None = None,
        processes: int = 0,
        mixture: Mixture | None = None,
    ) -> None:
        self.source, self.next_pass, self.finish, self.processes = source, next_pass, finish, processes
        self.mixture = mixture
        self._bucket_sizes = counts_of(source.buckets)
        self.current: Pass | None = None
        self.passes = self.handed_out = self.skipped = 0

    def __len__(self) -> int:
        """Batches of a whole epoch on each rank."""
        return self.steps(self.next_pass())

    def steps(self, this: Pass) -> int:
        """How many batches such a pass has on each rank, whatever was consumed before."""
        if self.mixture is not None and this.train:
            count = self.mixture.least_batches(this.batch_size)
        else:
            count = int((-(-self._bucket_sizes // this.batch_size)).sum())  # as many as `Batches` makes
        what = f"{len(self.source)} samples make {count} batches of {this.batch_size}"
        return steps_of(count, this.world, this.train, what)

    def left(self, this: Pass) -> int:
        """How many of a pass's batches on each rank an earlier run did not take."""
        places = self._places(this)
        return self._left_in(self._batches(places, this), places, this)

    def _left_in(self, batches: Batches, places: Places, this: Pass) -> int:
        if not this.consumed:
            return self.steps(this)
        surplus = 0
        if self.mixture is not None:  # some of its epochs have more batches than every epoch gives
            sizes = counts_of(places.buckets)
            surplus = int((-(-sizes // this.batch_size)).sum()) - self.mixture.least_batches(this.batch_size)
        return max(0, len(batches) - surplus) // this.world

    def _places(self, this: Pass) -> Places:
        if self.mixture is not None and this.train:
            return self.mixture.places(this.seed, this.epoch)
        return whole(self.source.buckets, this.epoch)

    def _batches(self, places: Places, this: Pass) -> Batches:
        order = permutation(len(places), this.seed, this.epoch) if this.train else np.arange(len(places))
        rest = left_over(order, places.buckets, this.consumed)
        return Batches(rest, places.buckets, this.batch_size)

    def __iter__(self) -> Iterator[Any]:
        # A generator: Lightning calls iter() before it knows the epoch that it resumes, and next() after.
        this = self.current = self.next_pass()
        self.passes += 1
        self.handed_out = 0
        places, hope = self._places(this), Hope(this.world)
        batches = self._batches(places, this)
        left = self._left_in(batches, places, this)
        self.skipped = self.steps(this) - left
        plan = _Plan(places, batches, share_of(len(batches), left, this.rank, this.world))
        for planned, batch in zip(plan, read_ahead(_Planned(self.source, plan, this), self.processes), strict=True):
            hope.check(batch, len(plan))
            if batch is None and not this.train:
                continue  # Lightning would hand it to validation_step; in training it counts it as a step of nothing
            if batch is not None and self.finish is not None:
                batch = self.finish(batch, drawn_with(batch) or planned.numbers.tolist())
            self.handed_out += 1
            yield batch

    def place(self, resume: Resume, steps: int) -> dict[str, Any]:
        """For a checkpoint: what was taken of the epoch, `steps` of this run's batches on each rank with it."""
        assert self.current is not None
        return resume.state(self.current.epoch, Consumed(self.current.batch_size, steps * self.current.world))

    # With these two Lightning does not warn that the loader cannot resume; the position is kept by the DataModule,
    # since `estimated_stepping_batches` makes Lightning drop what it keeps of loaders.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def drawn_with(batch: Mapping[str, Any]) -> list[int] | None:
    """The number that each sample of pictures is drawn with; None for a batch of a cache, which does not say."""
    if "drawn_with" in batch:
        return [row[0] for row in batch["drawn_with"]]
    return [batch["variants"][0]] * len(batch["__key__"]) if "variants" in batch else None


class Hope:
    """Ends a run that would go on without data, for ever or on one rank of several."""

    def __init__(self, world: int) -> None:
        self._world, self._bad, self._good = world, 0, False

    def check(self, batch: Any, planned: int) -> None:
        """Raises SampleError where no further batch is to be waited for."""
        if batch is not None:
            self._good = True
            return
        if self._world > 1:
            raise SampleError("every sample of a batch is bad, and the other ranks cannot wait; cache the shards")
        self._bad += 1
        # A Trainer that counts steps would go through such epochs for ever.
        if not self._good and self._bad == min(HOPELESS, planned):
            raise SampleError(
                f"no sample of the first {self._bad} batches can be used; the log names each with its reason"
            )


class _Plan(Sequence[Planned]):
    """The batches to be, each made when it is asked for: an epoch has millions."""

    def __init__(self, places: Places, batches: Batches, share: Sequence[int]) -> None:
        self.places, self.batches, self.share = places, batches, share

    def __len__(self) -> int:
        return len(self.share)

    @overload
    def __getitem__(self, index: int) -> Planned: ...
    @overload
    def __getitem__(self, index: slice) -> "_Plan": ...
    def __getitem__(self, index: int | slice) -> "Planned | _Plan":
        if isinstance(index, slice):
            return _Plan(self.places, self.batches, self.share[index])
        return self.places.batch(self.batches[self.share[index]])


class AsDataLoader(DataLoader[Any]):
    """A loader as a torch DataLoader, which Fabric insists on. Ranks and order are the loader's own matter."""

    def __init__(self, loader: Any) -> None:
        super().__init__(_Batches(loader), batch_size=None, collate_fn=_as_it_is)
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        """Without None, which a Trainer knows to pass over and other loops do not."""
        return (batch for batch in self.loader if batch is not None)


class _Batches(IterableDataset[Any]):
    """What another DataLoader around this dataset iterates, such as Accelerate makes."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        if self.loader.next_pass().world > 1:
            raise UsageError(
                "this loader deals its batches out to ranks itself, and another around it would deal each rank's share "
                "out again; iterate it as it is, without accelerator.prepare()"
            )
        return iter(self.loader)


class _Planned(IterableDataset[Any]):
    """The batches of a plan; in a DataLoader's worker every so many-th, which the loader puts in order again."""

    def __init__(self, source: TrainingSource, plan: Sequence[Planned], this: Pass) -> None:
        self.source, self.plan, self.this = source, plan, this

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        mine = self.plan if worker is None else self.plan[worker.id :: worker.num_workers]
        yield from self.source.planned(mine, self.this.batch_size)


def read_ahead(dataset: IterableDataset[Any], processes: int) -> Iterator[Any]:
    """The items of a dataset, read ahead by a thread or by worker processes; batches in pinned memory for a GPU."""
    gpu = torch.cuda.is_available()
    if processes:
        loader = DataLoader(_ErrorsToo(dataset), batch_size=None, num_workers=processes, collate_fn=_as_it_is)
        for item in _pinned(iter(loader), gpu):
            if isinstance(item, InpaintDataError):
                raise item
            yield item
        return
    reading = ahead(_pinned(iter(dataset), gpu), AHEAD)
    try:
        yield from reading
    finally:
        reading.close()


class _ErrorsToo(IterableDataset[Any]):
    """The items of a dataset, and the error that ended them, which torch would make a traceback of."""

    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except InpaintDataError as error:
            yield error


def _as_it_is(batch: Any) -> Any:
    """In place of torch's own, which would look at every byte of carried members."""
    return batch


def _pinned(batches: Iterator[Any], gpu: bool) -> Iterator[Any]:
    for batch in batches:
        yield pinned(batch) if gpu and is_batch(batch) else batch
