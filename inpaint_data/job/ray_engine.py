"""Shards as tasks of a Ray cluster: actors with an autoencoder each, and another one's turn where one dies."""

import logging
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from inpaint_data.errors import CacheError, InpaintDataError, UsageError
from inpaint_data.job.engines import Order
from inpaint_data.job.plan import Plan
from inpaint_data.job.progress import Summary
from inpaint_data.job.reports import Pace, Reports
from inpaint_data.job.settings import JobSettings
from inpaint_data.job.shard_job import Committer, cache_shards
from inpaint_data.job.work import Work
from inpaint_data.latent_cache.folder import CacheFolder, opened
from inpaint_data.latent_cache.format import Sidecar
from inpaint_data.latent_cache.lock import Lock
from inpaint_data.shards.naming import shard_stem

ANSWER = 30.0  # seconds for a cluster to answer
TRIES = 4  # of a shard whose workers die
AT_HAND = 2  # shards of a worker: the one that it does, and the next
PATIENCE = 60.0  # seconds without an event, after which the wait is told
_log = logging.getLogger(__name__)


@dataclass
class Done:
    """What a worker says of a shard that it did, or could not do."""

    summary: Summary
    sidecars: list[Sidecar]
    host: str


class CachingWorker:
    """An actor: one autoencoder on a device, or a share of it. Its class's name is what Ray's dashboard shows."""

    def __init__(self, make: Callable[[], Work]) -> None:
        from ray.util.metrics import Counter as Metric

        self._work = make()
        self._open = ExitStack()
        self._folder: CacheFolder | None = None
        names = {"images": "encoded", "shards": "committed", "quarantined": "samples that are left out"}
        self._metrics = {name: Metric(f"inpaint_data_{name}", description=text) for name, text in names.items()}

    def settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those of the cache that it makes, and what moves the last bits."""
        from inpaint_data.job.caching import settings_of

        return settings_of(self._work).to_json(), self._work.made_with

    def cache(self, shard: str, size: int, place: str, lock: Lock, fingerprint: str) -> Done:
        """Do a shard."""
        if self._folder is None:
            self._folder = self._open.enter_context(opened(place, look=False))
        plan = Plan(inputs=1)
        plan.take_on(shard, size)
        summary, sidecars = Summary(plan), list[Sidecar]()
        committer = Committer(self._folder, lock, fingerprint, self._work, summary)
        before = self._work.encoder.autoencoder.retries
        cache_shards(self._work, committer, summary, [shard], sidecars.append, Reports(plan, Pace(1), []))
        summary.retried -= before
        counts = {"images": summary.cached, "shards": len(sidecars), "quarantined": len(summary.quarantined)}
        for name, count in counts.items():
            if count:  # no metric takes a zero
                self._metrics[name].inc(count)
        return Done(summary, sidecars, platform.node())


class OnRay:
    """The workers of a job on a cluster.

    A worker has two shards at a time, and gets the next when one is done: so none waits, and no list of tasks grows. A
    worker that dies is begun anew by Ray wherever there is room, and others do its shards meanwhile.
    """

    def __init__(self, workers: list[Any]) -> None:
        self._workers = workers
        self._ready = {worker.settings.remote(): worker for worker in workers}
        self.settings, self.made_with = self._first()

    def _first(self) -> tuple[dict[str, Any], dict[str, Any]]:
        import ray

        while True:
            ready, _ = ray.wait(list(self._ready), timeout=PATIENCE)
            if ready:
                try:
                    answer: tuple[dict[str, Any], dict[str, Any]] = ray.get(ready[0])
                    return answer
                except Exception as error:
                    raise _cause(error) from None
            _log.warning(
                "no worker has begun after %.0f s; does the cluster have room for one? See `ray status`", PATIENCE
            )

    def run(self, shards: Iterable[str], order: Order) -> None:
        """As an engine's."""
        problem = None
        try:
            largest_first = sorted(shards, key=order.summary.plan.bytes_of.__getitem__, reverse=True)
            _Run(self, deque(largest_first), order).to_the_end()
        except BaseException as error:
            problem = str(error) or type(error).__name__
            raise
        finally:
            order.reports.end(problem)


class _Run:
    """One pass over a job's shards."""

    def __init__(self, engine: OnRay, shards: deque[str], order: Order) -> None:
        self.shards, self.order, self.summary, self.reports = shards, order, order.summary, order.reports
        self._arguments = (str(order.folder.place), order.lock, order.fingerprint)
        self._starting = dict(engine._ready)  # the first answer of a worker -> that
        self._tasks: dict[Any, tuple[str, Any]] = {}  # what is under way -> shard and worker
        self._tries = Counter[str]()  # of a shard
        self._deaths = Counter[str]()  # of a worker that did not get as far as its first answer
        self._count = len(engine._workers)
        self._idle: list[Any] = []  # workers, when nothing is left to give
        self._bytes = 0

    def to_the_end(self) -> None:
        import ray

        while self.shards or self._tasks:
            ready, _ = ray.wait([*self._tasks, *self._starting], timeout=PATIENCE)
            if not ready:
                _log.info("%d shards are under way, %d workers are not there", len(self._tasks), len(self._starting))
            for reference in ready:
                if reference in self._starting:
                    self._begin(reference)
                else:
                    self._end(reference)

    def _begin(self, reference: Any) -> None:
        """A worker is there, at first or again."""
        import ray

        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except _died() as error:
            self._begin_again(worker, str(error))
            return
        except Exception as error:
            raise _cause(error) from None
        for _ in range(AT_HAND if len(self.shards) > self._count else 1):
            self._give(worker)

    def _begin_again(self, worker: Any, reason: str) -> None:
        """Wait for a worker that died before it was ready, but not for ever."""
        self._deaths[worker._actor_id.hex()] += 1
        if self._deaths[worker._actor_id.hex()] < TRIES:
            self._starting[worker.settings.remote()] = worker
            return
        last = reason.strip().splitlines()[-1] if reason.strip() else "no word of it"
        if not (self._starting or self._tasks or self._idle):
            raise CacheError(f"no worker can begin ({last}); see Ray's logs; finished shards are kept")
        _log.warning("a worker cannot begin (%s); the others go on without it", last)

    def _give(self, worker: Any) -> None:
        if not self.shards:
            if worker not in self._idle and all(worker is not other for _, other in self._tasks.values()):
                self._idle.append(worker)
            return
        shard = self.shards.popleft()
        task = worker.cache.options(name=f"cache {shard_stem(shard)}.tar")
        self._tasks[task.remote(shard, self.summary.plan.bytes_of[shard], *self._arguments)] = (shard, worker)

    def _end(self, reference: Any) -> None:
        import ray

        shard, worker = self._tasks.pop(reference)
        try:
            done: Done = ray.get(reference)
        except _died() as error:
            self._again(shard, str(error))
            if worker not in self._starting.values():
                self._starting[worker.settings.remote()] = worker
            while self._idle and self.shards:
                self._give(self._idle.pop())
            return
        except Exception as error:
            raise _cause(error) from None
        self._take(shard, done)
        self._give(worker)

    def _again(self, shard: str, reason: str) -> None:
        self._tries[shard] += 1
        first = reason.strip().splitlines()[0] if reason.strip() else "no word of it"
        if self._tries[shard] == TRIES:
            problem = f"{shard}: {TRIES} workers died while they did it ({first}); see Ray's logs, and its pictures"
            self.summary.unreadable[shard] = problem
            self.reports.skip(problem)
            return
        _log.warning("%s: its worker died (%s); another one does it", shard, first)
        self.shards.appendleft(shard)

    def _take(self, shard: str, done: Done) -> None:
        for sidecar in done.sidecars:
            if not self.order.folder.is_there_now(f"{shard_stem(shard)}.json"):
                raise CacheError(
                    f"out: {self.order.folder.name} on {done.host} is not the one that is here; name a folder that all "
                    "nodes share, or a bucket such as s3://bucket/cache"
                )
            self.order.done(sidecar)
        self._bytes += self.summary.plan.bytes_of[shard]
        self.summary.add(done.summary)
        expected = self.summary.plan.bytes_to_do / max(1, self._bytes) * self.summary.cached
        self.reports.images(done.summary.cached, expected)
        for sidecar in done.sidecars:
            self.reports.shard(sidecar, expected)
        for problem in done.summary.unreadable.values():
            self.reports.skip(problem)


@contextmanager
def on_ray(job: JobSettings, make: Callable[[], Work]) -> Iterator[OnRay]:
    """The workers of a job, gone when the block ends.

    Raises:
        UsageError: Ray is not installed, no cluster can be reached, or it has no room for a worker.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("engine: ray is not installed; pip install 'inpaint_data[ray]'", ("job", "engine")) from None
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(job.ray_address)
    workers: list[Any] = []
    try:
        workers = _workers(job, make)
        yield OnRay(workers)
    finally:
        for worker in workers:
            ray.kill(worker)
        if is_ours:
            ray.shutdown()


def _connect(address: str | None) -> None:
    import ray

    _look_for(address)
    is_main = threading.current_thread() is threading.main_thread()
    ends = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        if is_main:
            signal.signal(signal.SIGTERM, ends)  # Ray takes it, and ends without a word
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise _no_cluster(address, str(error).strip().splitlines()[0]) from None


def _look_for(address: str | None) -> None:
    """Raises UsageError where no cluster answers: Ray itself would try for minutes, and heed no signal."""
    if address is None:
        return
    if match := re.fullmatch(r"(?P<host>[^/]+):(?P<port>\d+)", address):
        try:
            socket.create_connection((match["host"], int(match["port"])), timeout=ANSWER).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, str(error)) from None
        return
    look = [sys.executable, "-c", f"import ray; ray.init({address!r}, log_to_driver=False)"]
    try:
        said = subprocess.run(look, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=ANSWER)
    except subprocess.TimeoutExpired:
        raise _no_cluster(address, f"no answer in {ANSWER:.0f} s") from None
    if said.returncode:
        raise _no_cluster(address, said.stderr.strip().splitlines()[-1].partition(": ")[2])


def _no_cluster(address: str | None, reason: str) -> UsageError:
    return UsageError(
        f"ray_address: no cluster at {address!r} ({reason}); start one with `ray start --head`, name its address, or "
        "leave ray_address out for one of this machine alone",
        ("job", "ray_address"),
    )


def _workers(job: JobSettings, make: Callable[[], Work]) -> list[Any]:
    import ray

    has = ray.cluster_resources()
    cpus = max(1, job.num_workers)
    gpus = job.ray_gpus if has.get("GPU", 0) else 0
    room = int(has["GPU"] / gpus) if gpus else int(has.get("CPU", 0) // cpus)
    if not (count := job.ray_workers or room):
        raise UsageError(
            f"engine: the cluster has {has.get('CPU', 0):.0f} CPUs and {has.get('GPU', 0):.0f} GPUs, and a worker "
            f"needs {cpus} and {gpus}; use fewer num_workers, or add nodes",
            ("job", "engine"),
        )
    # Each is told to begin anew by itself; which shard it does then, the driver says.
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": 0}
    kind = ray.remote(CachingWorker)
    return [kind.options(name=f"caching-{number}", **options).remote(make) for number in range(count)]


def _died() -> tuple[type[BaseException], ...]:
    """What Ray raises where a worker, or its node, is gone."""
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
    )


def _cause(error: Exception) -> Exception:
    """What a worker raised, without Ray's report around it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, InpaintDataError | OSError):
        return cause
    return CacheError(f"a worker failed: {str(cause or error).strip().splitlines()[-1]}")
