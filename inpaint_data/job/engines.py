"""Who does the shards: this process, or the workers of a Ray cluster. What they do is the same."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from inpaint_data.job.progress import Summary
from inpaint_data.job.reports import Reports
from inpaint_data.job.shard_job import Committer, cache_shards
from inpaint_data.job.work import Work
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import Sidecar
from inpaint_data.latent_cache.lock import Lock


@dataclass(frozen=True)
class Order:
    """What an engine needs to know of a job, beside its shards.

    Attributes:
        folder: of the cache.
        lock: that the job holds.
        fingerprint: of the cache.
        summary: what was done is added to it.
        done: told of each shard that is committed.
        reports: told of everything.
    """

    folder: CacheFolder
    lock: Lock
    fingerprint: str
    summary: Summary
    done: Callable[[Sidecar], None]
    reports: Reports


class Engine(Protocol):
    """Does shards."""

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the cache that it makes."""

    @property
    def made_with(self) -> dict[str, Any]:
        """What moves the last bits of what it makes."""

    def run(self, shards: Iterable[str], order: Order) -> None:
        """Encode and commit shards, each asked for when it is to be done.

        Raises:
            CacheError: a bad sample, with on_bad "raise"; the disk is full or gone.
        """


class Here:
    """This process."""

    def __init__(self, work: Work, settings: dict[str, Any]) -> None:
        self.work, self.settings = work, settings

    @property
    def made_with(self) -> dict[str, Any]:
        return self.work.made_with

    def run(self, shards: Iterable[str], order: Order) -> None:
        committer = Committer(order.folder, order.lock, order.fingerprint, self.work, order.summary)
        cache_shards(self.work, committer, order.summary, shards, order.done, order.reports)


@contextmanager
def engine_of(work: Work, settings: dict[str, Any], make: Callable[[], Work]) -> Iterator[Engine]:
    """The engine that the settings name, until the block ends.

    Args:
        work: of this process.
        settings: of the cache that it makes.
        make: makes the work anew, where another process is to do it.

    Raises:
        UsageError: Ray is not installed, or no cluster can be reached.
    """
    if work.job.engine == "here" or work.job.dry_run:
        yield Here(work, settings)
        return
    from inpaint_data.job.ray_engine import on_ray

    with on_ray(work.job, make) as engine:
        yield engine
