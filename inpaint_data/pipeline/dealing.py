"""How an epoch's shards are dealt out to those that read them one after another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """The samples [first, stop) of a shard, which is named by its place in the list of all; None is its end."""

    shard: int
    first: int = 0
    stop: int | None = None


def deal(order: Numbers, number: int, of: int, counts: Numbers | None = None) -> list[Part]:
    """What reader `number` of `of` reads, in its order.

    Args:
        order: the epoch's shards.
        counts: samples of every shard. With them all readers get as many samples, give or take one, of neighbouring
            shards, and a shard may be parted; without them, whole shards in turn.
    """
    if counts is None:
        return [Part(int(shard)) for shard in order[number::of]]
    ends = np.cumsum(counts[order])
    total = int(ends[-1]) if len(ends) else 0
    low, high = total * number // of, total * (number + 1) // of
    parts = []
    for place in range(int(np.searchsorted(ends, low, "right")), int(np.searchsorted(ends, high, "left")) + 1):
        if place == len(order):
            break
        shard = int(order[place])
        count = int(counts[shard])
        start = int(ends[place]) - count
        first, stop = max(0, low - start), min(count, high - start)
        if first < stop:
            parts.append(Part(shard, first, None if stop == count else stop))
    return parts


def begun_by(parts: Sequence[Part], samples: int, counts: Numbers) -> list[int]:
    """The shards of parts that a reader has begun which has gone through so many samples of them."""
    begun = []
    for part in parts:
        if samples <= 0:
            break
        begun.append(part.shard)
        samples -= (int(counts[part.shard]) if part.stop is None else part.stop) - part.first
    return begun
