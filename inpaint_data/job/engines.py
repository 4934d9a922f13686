"""Who does the shards: this process, or the workers of a Ray cluster. What they do is the same."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from inpaint_data.job.progress import Summary
from inpaint_data.job.reports import Reports
from inpaint_data.job.shard_job import Committer, Work, cache_shards
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import Sidecar
from inpaint_data.latent_cache.lock import Lock


class Engine(Protocol):
    """Does shards.

    Attributes:
        work: what is done to each; of Ray's workers on their devices.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the cache that it makes."""

    @property
    def made_with(self) -> dict[str, Any]:
        """What moves the last bits of what it makes."""

    def run(
        self,
        shards: Iterable[str],
        folder: CacheFolder,
        lock: Lock,
        fingerprint: str,
        summary: Summary,
        done: Callable[[Sidecar], None],
        reports: Reports,
    ) -> None:
        """Encode and commit shards.

        Args:
            shards: asked for one after another, when they are to be done.
            folder: of the cache.
            lock: that the job holds.
            fingerprint: of the cache.
            summary: what was done is added to it.
            done: told of each one that is committed.
            reports: told of everything.

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

    def run(
        self,
        shards: Iterable[str],
        folder: CacheFolder,
        lock: Lock,
        fingerprint: str,
        summary: Summary,
        done: Callable[[Sidecar], None],
        reports: Reports,
    ) -> None:
        committer = Committer(folder, lock, fingerprint, self.work, summary)
        cache_shards(self.work, committer, summary, shards, done, reports)


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
