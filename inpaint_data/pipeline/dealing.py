"""How an epoch's shards are dealt out to those that read them one after another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """The samples [first, stop) of a shard, which is named by its place in the list of all; None is its end."""

    shard: int
    first: int = 0
    stop: int | None = None


def deal(order: Numbers, number: int, of: int, counts: Numbers | None = None) -> list[Piece]:
    """What reader `number` of `of` reads, in its order.

    Args:
        order: the epoch's shards.
        counts: samples of every shard. With them all readers get as many samples, give or take one, of neighbouring
            shards, and a shard may be parted; without them, whole shards in turn.
    """
    if counts is None:
        return [Piece(int(shard)) for shard in order[number::of]]
    ends = np.cumsum(counts[order])
    total = int(ends[-1]) if len(ends) else 0
    low, high = total * number // of, total * (number + 1) // of
    pieces = []
    for place in range(int(np.searchsorted(ends, low, "right")), int(np.searchsorted(ends, high, "left")) + 1):
        if place == len(order):
            break
        shard = int(order[place])
        count = int(counts[shard])
        start = int(ends[place]) - count
        first, stop = max(0, low - start), min(count, high - start)
        if first < stop:
            pieces.append(Piece(shard, first, None if stop == count else stop))
    return pieces


def begun_by(pieces: Sequence[Piece], samples: int, counts: Numbers) -> list[int]:
    """The shards of pieces that a reader has begun which has gone through so many samples of them."""
    begun = []
    for piece in pieces:
        if samples <= 0:
            break
        begun.append(piece.shard)
        samples -= (int(counts[piece.shard]) if piece.stop is None else piece.stop) - piece.first
    return begun
