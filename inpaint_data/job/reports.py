"""What a job tells while it runs: to a person, to a log of one JSON line an event, and to `inpaint-data status`."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from io import FileIO
from typing import Any, Protocol

from inpaint_data.errors import ShardError, UsageError
from inpaint_data.job.plan import Plan
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import Quarantined, Sidecar
from inpaint_data.shards.stores import file_here
from inpaint_data.shown import shown

PROGRESS = ".progress-"
_retries = logging.getLogger("inpaint_data.shards.store_errors")


@dataclass
class Pace:
    """How far a process is with its shards, and how fast.

    Attributes:
        shards: to do.
        done: of those, with the ones that were left out.
        images: encoded.
        expected: the estimate of how many images there will be.
        retries: how often a store was asked again.
    """

    shards: int
    done: int = 0
    images: int = 0
    expected: float = 0.0
    quarantined: int = 0
    filtered: int = 0
    left_out: int = 0
    retries: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self.started, 1e-9)

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def seconds_left(self) -> float | None:
        """None while there is no image."""
        left = max(0.0, self.expected - self.images) if self.done < self.shards else 0.0
        return left / self.rate if self.images else None


class Watcher(Protocol):
    """Whoever is told."""

    def images(self, pace: Pace) -> None:
        """Some more were encoded."""

    def shard(self, sidecar: Sidecar, pace: Pace) -> None:
        """One is committed."""

    def skip(self, problem: str, pace: Pace) -> None:
        """One is left out."""

    def retry(self, reason: str, pace: Pace) -> None:
        """A store is asked again; told by whichever thread asks."""

    def end(self, problem: str | None, pace: Pace) -> None:
        """The work is done, or ended by a problem."""


class Reports:
    """Tells all watchers of one job's process, whose plan may change while it runs."""

    def __init__(self, plan: Plan, pace: Pace, watchers: Sequence[Watcher]) -> None:
        self.plan, self.pace, self.watchers = plan, pace, watchers
        self._listener = _Listener(self._retry)

    def _retry(self, reason: str) -> None:
        self.pace.retries += 1
        for watcher in self.watchers:
            watcher.retry(reason, self.pace)

    def images(self, count: int, expected: float) -> None:
        self.pace.images += count
        self.pace.shards = self.plan.shards_to_do
        self.pace.expected = expected
        for watcher in self.watchers:
            watcher.images(self.pace)

    def shard(self, sidecar: Sidecar, expected: float) -> None:
        pace = self.pace
        pace.done += 1
        pace.shards = self.plan.shards_to_do
        pace.expected = expected
        pace.quarantined += len(sidecar.quarantined)
        pace.filtered += len(sidecar.filtered)
        for watcher in self.watchers:
            watcher.shard(sidecar, pace)

    def skip(self, problem: str) -> None:
        self.pace.done += 1
        self.pace.left_out += 1
        for watcher in self.watchers:
            watcher.skip(problem, self.pace)

    def end(self, problem: str | None) -> None:
        self._listener.close()
        for watcher in self.watchers:
            watcher.end(problem, self.pace)


class _Listener(logging.Filter):
    """Hears that a store is asked again, until it is closed, and changes nothing in what is logged."""

    def __init__(self, told: Callable[[str], None]) -> None:
        super().__init__()
        self._told, self._level, self._logged_from = told, _retries.level, _retries.getEffectiveLevel()
        _retries.addFilter(self)
        _retries.setLevel(min(logging.INFO, self._logged_from))

    def filter(self, record: logging.LogRecord) -> bool:
        self._told(shown(record.getMessage()))
        return record.levelno >= self._logged_from

    def close(self) -> None:
        _retries.removeFilter(self)
        _retries.setLevel(self._level)


def check_log(path: str | None) -> None:
    """Raises UsageError for a log that cannot be written to."""
    if path is not None:
        _opened(path).close()


def _opened(path: str) -> FileIO:
    try:
        # A line is written at once, so that those of several processes do not mix.
        return file_here(path, "log_json").open("ab", buffering=0)
    except OSError as error:
        raise UsageError(
            f"log_json: cannot write to {path} ({error.strerror}); name a file in a folder that there is",
            ("job", "log_json"),
        ) from None


class JsonLog:
    """Appends a JSON line for each event to a file, which the processes of a job may share.

    Events: start, shard, fault, left_out, retry, end; each with its time in UTC and the process's rank.

    Args:
        path: the file.
        cache: its folder or URL, for the first line.
        plan: what is to do.

    Raises:
        UsageError: the file cannot be written to.
    """

    def __init__(self, path: str, cache: str, plan: Plan) -> None:
        self._rank, self._file = plan.part.rank, _opened(path)
        self.write(
            "start",
            cache=shown(cache),
            world=plan.part.world,
            shards=len(plan.todo),
            already=len(plan.done),
            unreadable=len(plan.unreadable),
        )

    def write(self, event: str, **fields: Any) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"event": event, "time": now, "rank": self._rank} | fields, ensure_ascii=False)
        with suppress(OSError, ValueError):  # a log that is full, gone or closed ends no work
            self._file.write(line.encode("utf-8", "surrogateescape") + b"\n")

    def images(self, pace: Pace) -> None:
        pass

    def shard(self, sidecar: Sidecar, pace: Pace) -> None:
        for on_purpose, entries in ((False, sidecar.quarantined), (True, sidecar.filtered)):
            for entry in entries:
                self._fault(sidecar.shard, entry, on_purpose)
        self.write(
            "shard",
            shard=shown(sidecar.shard),
            samples=len(sidecar.keys),
            quarantined=len(sidecar.quarantined),
            filtered=len(sidecar.filtered),
            bytes=int(sidecar.output["size"]),
            **numbers_of(pace),
        )

    def _fault(self, shard: str, entry: Quarantined, on_purpose: bool) -> None:
        key = None if entry.key is None else shown(entry.key)
        self.write("fault", shard=shown(shard), key=key, reason=shown(entry.reason), on_purpose=on_purpose)

    def skip(self, problem: str, pace: Pace) -> None:
        self.write("left_out", reason=shown(problem), **numbers_of(pace))

    def retry(self, reason: str, pace: Pace) -> None:  # noqa: ARG002 - of the protocol
        self.write("retry", reason=reason)

    def end(self, problem: str | None, pace: Pace) -> None:
        self.write("end", problem=None if problem is None else shown(problem), **numbers_of(pace))
        self._file.close()


class ProgressFile:
    """Keeps beside the cache how far this process is, for `status`; gone when the job ends by itself."""

    def __init__(self, folder: CacheFolder, plan: Plan) -> None:
        self._folder, self._name, self._plan, self._written = folder, f"{PROGRESS}{plan.part.rank}", plan, 0.0
        if plan.part.rank == 0:
            for name in folder.names():  # of a job with more processes
                number = name.removeprefix(PROGRESS)
                if name != number and number.isdecimal() and int(number) >= plan.part.world:
                    folder.clear(name)

    def images(self, pace: Pace) -> None:
        if time.monotonic() - self._written > self._folder.pause:
            self._write(pace)

    def shard(self, sidecar: Sidecar, pace: Pace) -> None:  # noqa: ARG002 - of the protocol
        self._write(pace)

    def skip(self, problem: str, pace: Pace) -> None:  # noqa: ARG002 - of the protocol
        self._write(pace)

    def retry(self, reason: str, pace: Pace) -> None:
        pass

    def end(self, problem: str | None, pace: Pace) -> None:  # noqa: ARG002 - of the protocol
        with suppress(OSError, ShardError):
            self._folder.clear(self._name)

    def _write(self, pace: Pace) -> None:
        self._written = time.monotonic()
        part = self._plan.part
        content = {"rank": part.rank, "world": part.world, "inputs": self._plan.inputs, "updated": time.time()}
        content |= {"already": len(self._plan.done), "quarantined": pace.quarantined, "retries": pace.retries}
        content |= numbers_of(pace)
        with suppress(OSError, ShardError):  # it is for a person's curiosity
            self._folder.note(self._name, json.dumps(content).encode())


def numbers_of(pace: Pace) -> dict[str, Any]:
    """How far a process is, for JSON."""
    left = pace.seconds_left
    return {
        "shards_done": pace.done,
        "shards": pace.shards,
        "left_out": pace.left_out,
        "images": pace.images,
        "images_expected": round(pace.expected),
        "images_per_second": round(pace.rate, 3),
        "seconds": round(pace.seconds, 1),
        "seconds_left": None if left is None else round(left, 1),
    }
