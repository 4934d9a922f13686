"""Which samples of several sources make up an epoch: how often each comes, as a function of (seed, epoch).

A source that comes `repeats` times is there as a whole as often as that is a whole number. Of the rest, a share, each
epoch takes the next piece of an order that is drawn once: so all its samples come equally often in the long run, in
every bucket, and none twice for that share.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import numpy as np
import numpy.typing as npt

from inpaint_data.seeding import generator_for

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Planned:
    """A batch to be.

    Attributes:
        rows: of its samples, those of one source and one number beside each other.
        numbers: of each, in place of the epoch: what its mask, offset and noise are drawn with.
    """

    rows: Rows
    numbers: Rows

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Places:
    """What comes in an epoch, in no order yet: the row of each place, its number as in `Planned`, and its bucket.

    Attributes:
        of_several: whether rows are of several sources.
    """

    rows: Rows
    numbers: Rows
    buckets: Rows
    of_several: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, places: Rows) -> Planned:
        """The batch of some places."""
        rows, numbers = self.rows[places], self.numbers[places]
        if self.of_several:
            order = np.lexsort((rows, numbers))
            rows, numbers = rows[order], numbers[order]
        return Planned(rows, numbers)


def whole(buckets: Rows, epoch: int) -> Places:
    """The places of one source: each of its samples once."""
    count = len(buckets)
    return Places(np.arange(count), np.broadcast_to(np.int64(epoch), count), buckets)


class Mixture:
    """What an epoch has of several sources.

    Args:
        parts: which source each row is of.
        buckets: the bucket of each row.
        repeats: how often each source comes in an epoch, on average.
    """

    def __init__(self, parts: Rows, buckets: Rows, repeats: Sequence[Fraction]) -> None:
        self._buckets, self.repeats = buckets, list(repeats)
        self._rows = [np.flatnonzero(parts == part) for part in range(len(repeats))]
        self._least = Counter[int]()  # samples of each bucket that every epoch has
        for rows, times in zip(self._rows, self.repeats, strict=True):
            of_part, sizes = np.unique(buckets[rows], return_counts=True)
            for bucket, size in zip(of_part.tolist(), sizes.tolist(), strict=True):
                self._least[bucket] += size * floor(times) + floor(times % 1 * size)

    def places(self, seed: int, epoch: int) -> Places:
        """Those of an epoch."""
        rows, numbers = [], []
        for part, repeats in enumerate(self.repeats):
            # As many numbers for each epoch, so that no two passes of any epochs have the same.
            first = epoch * ceil(repeats)
            passes = [self._rows[part]] * floor(repeats)
            if share := repeats % 1:
                passes.append(self._piece(part, share, seed, epoch))
            rows += passes
            numbers += [np.full(len(again), first + number) for number, again in enumerate(passes)]
        all_rows = np.concatenate(rows)
        return Places(all_rows, np.concatenate(numbers), self._buckets[all_rows], of_several=True)

    def _piece(self, part: int, share: Fraction, seed: int, epoch: int) -> Rows:
        """The rows of a source that come in an epoch for a share of it."""
        rng = generator_for(seed, str(part), 0, "mixture")
        order: Rows = rng.permutation(self._rows[part])
        of_order, pieces = self._buckets[order], []
        for bucket in np.unique(of_order):
            group = order[of_order == bucket]
            count = share * len(group)  # of an epoch, on average
            # Begun anywhere, so that small buckets do not all come in the same epochs.
            begin = Fraction(int(rng.integers(2**32)), 2**32)
            start, end = floor(epoch * count + begin), floor((epoch + 1) * count + begin)
            pieces.append(group[(start % len(group) + np.arange(end - start)) % len(group)])
        return np.concatenate(pieces)

    def least_batches(self, batch_size: int) -> int:
        """How many batches every epoch has at least, as `Batches` makes them; some have a few more."""
        return sum(-(-count // batch_size) for count in self._least.values())


def repeats_of(
    lengths: Sequence[int], weights: Sequence[float | None], repeats: Sequence[float], ends: bool
) -> list[Fraction]:
    """How often each of several sources comes in an epoch.

    Args:
        lengths: how many samples each has.
        weights: how often each comes beside the others; where none is given, `repeats` alone decide.
        repeats: how often each is gone through in an epoch, or in the part of it that it lasts.
        ends: with weights, whether the epoch ends when the first source was gone through; else when all were, those
            that are sooner through beginning again.
    """
    exact = [Fraction(str(number)) for number in repeats]
    if all(weight is None for weight in weights):
        return exact
    shares = [Fraction(1 if weight is None else str(weight)) for weight in weights]
    lasts = [times * length / share for times, length, share in zip(exact, lengths, shares, strict=True)]
    unit = min(lasts) if ends else max(lasts)
    return [unit * share / length for share, length in zip(shares, lengths, strict=True)]
