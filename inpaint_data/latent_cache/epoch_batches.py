"""Batches of a cache for any loop: each time they are iterated, those of another epoch."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

from inpaint_data.errors import UsageError
from inpaint_data.order import Batches, check_batch_size, permutation, share_of, steps_of
from inpaint_data.ranks import part_of_run

if TYPE_CHECKING:
    from inpaint_data.latent_cache.reader import LatentCache


class Rows(list[int]):
    """The rows of a batch, and the epoch that its variants and noise are drawn with, also in a worker process."""

    epoch: int


class EpochBatches(BatchSampler):
    """A DataLoader's `batch_sampler`: the rows of each batch of an epoch, every batch from one bucket.

    Each pass over it is an epoch: the one that `set_epoch`, its own or the cache's, has named since its last pass, or
    else the next one. The rows take their epoch with them, so that several may be iterated at once. Every rank gets as
    many batches.

    Args:
        sampler: says the rank, the number of ranks and the epoch, as torch's DistributedSampler over the cache does,
            which Lightning and Fabric put here; None where `rank`, `world` and `set_epoch` do.
        batch_size: samples in a batch.
        drop_last: leave out batches that are not full; else what is left of each bucket makes a smaller one.
        cache: what the rows are of; None is the sampler's dataset.
        shuffle: by (the cache's seed, epoch), leaving out what does not make a batch for each rank, other samples every
            epoch; or in the order of the cache, some ranks getting a batch twice. None is what was asked of the cache.
        rank, world: this process and how many there are. A distributed run gives both, unless Lightning, Fabric or
            Accelerate sets the loader up. Accelerate deals the batches out itself, so for it they are those of all
            ranks, in training full ones alone, since it would fill up others with samples of the epoch's beginning.

    Raises:
        UsageError: a batch_size below 1, or a rank that there is not; fewer batches than ranks, or several processes
            without `rank` and `world`, when it is iterated or asked for its length.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        drop_last: bool = False,
        cache: "LatentCache | None" = None,
        shuffle: bool | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        check_batch_size(batch_size)
        if (rank is None) != (world is None) or (rank is not None and world is not None and not 0 <= rank < world):
            raise UsageError(
                f"rank: {rank!r} of world {world!r} is not a process; give both, the rank from 0 to world - 1"
            )
        # Lightning, Fabric and Accelerate look for set_epoch there.
        self.sampler: Any = self if sampler is None else sampler
        self.batch_size, self.drop_last = batch_size, drop_last
        self.cache: LatentCache = sampler.dataset if cache is None else cache
        self.shuffle = self.cache.shuffled if shuffle is None else shuffle
        self._rank, self._world = rank, world
        self.epoch = 0  # of the next pass
        self._seen = 0  # how often the cache's own epoch had been set

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is."""
        self.epoch = epoch

    def _ranks(self) -> tuple[int, int]:
        if self._rank is not None and self._world is not None:
            return self._rank, self._world
        if self.sampler is not self:
            return self.sampler.rank, self.sampler.num_replicas
        is_group = torch.distributed.is_available() and torch.distributed.is_initialized()
        count = torch.distributed.get_world_size() if is_group else part_of_run().world
        if count > 1:
            raise UsageError(
                f"rank: there are {count} processes, and batches() was not told which this is; give rank= and world="
            )
        return 0, 1

    def _drops_last(self, dealt_to: int) -> bool:
        return self.drop_last or (self.shuffle and dealt_to > 1)

    def _share(self, dealt_to: int) -> Sequence[int]:
        """The numbers of this rank's batches; where another deals them out, of all ranks'."""
        sizes = self.cache.bucket_counts
        drop_last = self._drops_last(dealt_to)
        count = int((sizes // self.batch_size if drop_last else -(-sizes // self.batch_size)).sum())
        rank, world = (0, dealt_to) if dealt_to else self._ranks()
        what = f"{len(self.cache)} samples make {count} {'full ' if drop_last else ''}batches of {self.batch_size}"
        steps = steps_of(count, world, self.shuffle, what)
        self.cache.check_ranks(world)
        if dealt_to:
            return range(steps * world if self.shuffle else count)
        return share_of(count, steps, rank, world)

    def __len__(self) -> int:
        return len(self._share(_dealt_to()))

    def __iter__(self) -> Iterator[list[int]]:
        dealt_to = _dealt_to()
        share = self._share(dealt_to)
        if self.sampler is self and self._seen != self.cache.times_set:
            self.epoch, self._seen = self.cache.epoch, self.cache.times_set
        epoch = self.sampler.epoch
        if self.sampler is self:
            self.epoch = epoch + 1
        count = len(self.cache)
        order = permutation(count, self.cache.seed, epoch) if self.shuffle else np.arange(count)
        batches = Batches(order, self.cache.buckets, self.batch_size, self._drops_last(dealt_to))
        for number in share:
            rows = Rows(batches[number].tolist())
            rows.epoch = epoch
            yield rows


def _dealt_to() -> int:
    """To how many processes Accelerate deals out what is asked for at this moment; 0 where it is not the one who asks.

    It wraps a batch sampler without a word to it, so whoever calls is looked at.
    """
    dealer = getattr(sys.modules.get("accelerate.data_loader"), "BatchSamplerShard", None)
    frame = sys._getframe(2) if dealer is not None else None
    for _ in range(4):  # a progress bar or a counter of batches may lie between
        if frame is None:
            break
        asking = frame.f_locals.get("self")
        if isinstance(asking, dealer):  # type: ignore[arg-type]
            return int(asking.num_processes)
        frame = frame.f_back
    return 0
