"""Batches of a cache for any loop: each time they are iterated, those of another epoch."""

from collections.abc import Iterator
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
        rank, world: this process and how many there are. A distributed run gives both, unless Lightning or Fabric sets
            the loader up; 0 and 1 where Accelerate does, which deals the batches out itself.

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
                f"rank: there are {count} processes, and batches() was not told which this is; give rank= and "
                "world=, or rank=0 and world=1 where Accelerate deals the batches out"
            )
        return 0, 1

    def _steps(self, world: int) -> int:
        sizes = np.unique(self.cache.buckets, return_counts=True)[1]
        count = int((sizes // self.batch_size if self.drop_last else -(-sizes // self.batch_size)).sum())
        return steps_of(
            count, world, self.shuffle, f"{len(self.cache)} samples make {count} batches of {self.batch_size}"
        )

    def __len__(self) -> int:
        return self._steps(self._ranks()[1])

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = self._ranks()
        self.cache.check_ranks(world)
        if self.sampler is self and self._seen != self.cache.times_set:
            self.epoch, self._seen = self.cache.epoch, self.cache.times_set
        epoch = self.sampler.epoch
        if self.sampler is self:
            self.epoch = epoch + 1
        count = len(self.cache)
        order = permutation(count, self.cache.seed, epoch) if self.shuffle else np.arange(count)
        batches = Batches(order, self.cache.buckets, self.batch_size, self.drop_last)
        for number in share_of(len(batches), self._steps(world), rank, world):
            rows = Rows(batches[number].tolist())
            rows.epoch = epoch
            yield rows
