"""The batches of an epoch, read ahead by a thread: one rank's share, from where an earlier run stopped."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import SampleError, UsageError
from inpaint_data.order import Batches, Consumed, left_over, permutation
from inpaint_data.pipeline.image_batches import ahead

HOPELESS = 8  # bad batches without a good one before them end the run
AHEAD = 2  # batches; what a batch takes in memory is little beside what its reading may take in time


class Source(Protocol):
    """What is loaded from: a cache, image shards, or a cache with fresh masks."""

    epoch: int
    buckets: npt.NDArray[np.int64]

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Any: ...


class EpochLoader:
    """Batches of a map-style source, once for each time it is iterated.

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
        finish: what else is done to a batch, in the thread.

    Raises:
        UsageError: fewer batches than ranks.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        train: bool,
        epoch: Callable[[], int],
        ranks: tuple[int, int],
        consumed: Callable[[int], Sequence[Consumed]] = lambda _: (),
        finish: Callable[[Any, int], Any] = lambda batch, _: batch,
    ) -> None:
        self.source, self.batch_size, self.seed, self.train = source, batch_size, seed, train
        self._epoch, (self.rank, self.world), self._consumed, self._finish = epoch, ranks, consumed, finish
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
        self.source.epoch = epoch
        self.handed_out = 0
        reading = ahead(self._read(epoch), AHEAD)
        try:
            for batch in reading:
                self.handed_out += 1
                yield batch
        finally:
            reading.close()

    def _read(self, epoch: int) -> Iterator[Any]:
        batches, good = self._batches(epoch), 0
        steps = self._steps_of(batches, epoch)
        for step in range(steps):
            rows = batches[min(step * self.world + self.rank, len(batches) - 1)].tolist()
            batch = self.source.__getitems__(rows)
            good += batch is not None
            if batch is None and self.world > 1:
                raise SampleError("every sample of a batch is bad, and the other ranks cannot wait; cache the shards")
            # A Trainer that counts steps would go through such epochs for ever.
            if not good and step + 1 == min(HOPELESS, steps):
                raise SampleError(
                    f"no sample of the first {step + 1} batches can be used; the log names each with its reason"
                )
            yield None if batch is None else self._finish(batch, epoch)

    # With these two Lightning does not warn that the loader cannot resume; the position is kept by the DataModule,
    # since `estimated_stepping_batches` makes Lightning drop what it keeps of loaders.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
