"""Which samples make the batches of an epoch, in which order, and on which rank.

All of it is a pure function of (seed, epoch) and of what was consumed before: never of ranks, workers or time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import UsageError
from inpaint_data.seeding import generator_for

Rows = npt.NDArray[np.int64]
Buckets = npt.NDArray[np.integer[Any]]
PART = 2**20  # samples that are counted at a time, since NumPy makes numbers of 64 bits of them


@dataclass(frozen=True)
class Consumed:
    """The first `batches` batches, over all ranks together, of what was left then, cut to `batch_size`."""

    batch_size: int
    batches: int


def check_batch_size(batch_size: int) -> None:
    """Raises UsageError unless it is a number of samples."""
    if type(batch_size) is not int or batch_size < 1:
        raise UsageError(f"batch_size: {batch_size!r} is not a positive whole number; give 1 or more")


def permutation(count: int, seed: int, epoch: int, again: int = 0, source: int = 0) -> Rows:
    """The order of an epoch: 0...count - 1, each once; another one for each pass `again` within it, and each source."""
    name = (str(again) if again else "") + (f" of source {source}" if source else "")
    rows: Rows = generator_for(seed, name, epoch, "order").permutation(count)
    return rows


class Batches:
    """Samples in some order cut into batches, each from one bucket; `batches[i]` are the rows of batch i.

    A batch stands where its last sample stood in the order. What is left of each bucket, fewer than `batch_size`, makes
    a batch of its own at the end, these in the same order: so it is chance, another one every epoch, which of them is
    the odd one that several ranks leave out, and no small bucket is left out for ever.

    Args:
        order: rows of the dataset.
        buckets: the bucket of every row of the dataset.
        batch_size: samples in a batch.
        drop_last: leave those at the end out.
    """

    def __init__(self, order: Rows, buckets: Buckets, batch_size: int, drop_last: bool = False) -> None:
        of_order = buckets[order]
        whole: list[Rows] = []  # of each bucket, (batches, batch_size) places
        tails: list[Rows] = []
        for bucket in np.flatnonzero(counts_of(of_order)):
            places = np.flatnonzero(of_order == bucket)
            count = len(places) // batch_size * batch_size
            whole.append(places[:count].reshape(-1, batch_size))
            tails += [places[count:]] if count < len(places) and not drop_last else []
        self._whole = np.concatenate(whole) if whole else np.zeros((0, batch_size), np.int64)
        if len(whole) > 1:
            self._whole = self._whole[np.argsort(self._whole[:, -1])]
        self._order, self._tails = order, sorted(tails, key=lambda places: int(places[-1]))

    def __len__(self) -> int:
        return len(self._whole) + len(self._tails)

    def __getitem__(self, index: int) -> Rows:
        count = len(self._whole)
        rows: Rows = self._order[self._whole[index] if index < count else self._tails[index - count]]
        return rows


def counts_of(buckets: Buckets) -> Rows:
    """How many samples each bucket has, by its number; buckets are numbered from 0 on."""
    parts = (np.bincount(buckets[start : start + PART]) for start in range(0, len(buckets), PART))
    counts = np.zeros(int(buckets.max()) + 1 if len(buckets) else 0, np.int64)
    for part in parts:
        counts[: len(part)] += part
    return counts


def steps_of(batches: int, world: int, train: bool, what: str) -> int:
    """How many of an epoch's batches each of `world` ranks gets, all as many.

    In training what does not make a batch for each rank is left out, in evaluation some ranks get a batch twice, as
    with torch's DistributedSampler.

    Args:
        what: the batches are, for the error.

    Raises:
        UsageError: fewer batches than ranks in training, or none.
    """
    if not batches or (train and batches < world):
        ranks = f"fewer than one for each of {world} ranks; use fewer ranks or" if world > 1 else "which is none; use"
        raise UsageError(f"{what}, {ranks} a smaller batch_size")
    return batches // world if train else -(-batches // world)


def share_of(batches: int, steps: int, rank: int, world: int) -> Sequence[int]:
    """The numbers of one rank's batches; where there are fewer than `steps` for each, the last one again."""
    share = range(rank, rank + steps * world, world)
    return share if not share or share[-1] < batches else [min(number, batches - 1) for number in share]


def left_over(order: Rows, buckets: Buckets, consumed: Sequence[Consumed]) -> Rows:
    """What remains of an epoch's order, still in that order, after some of its batches were consumed."""
    for part in consumed:
        batches = Batches(order, buckets, part.batch_size)
        used = np.zeros(len(buckets), bool)
        for index in range(min(part.batches, len(batches))):
            used[batches[index]] = True
        order = order[~used[order]]
    return order
