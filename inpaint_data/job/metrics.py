"""What a job tells a logger of metrics while it runs: a curve for each figure, of all its processes together."""

import logging
import time
from typing import Any, Protocol

from inpaint_data.job.plan import Plan
from inpaint_data.job.reports import Pace, numbers_of
from inpaint_data.job.status import parts_of, seconds_left_of
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import Sidecar
from inpaint_data.shown import shown

EVERY = 5.0  # seconds between two points of a curve
COUNTS = ("images", "shards_done", "left_out", "quarantined", "retries")
_log = logging.getLogger(__name__)


class MetricsLogger(Protocol):
    """Draws curves: each of Lightning's loggers is one."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Take figures by name; `step` is how many images are encoded."""

    def save(self) -> None:
        """Write what it was given."""

    def finalize(self, status: str) -> None:
        """The job is done ("success"), or ended by a problem ("failed")."""


class Metrics:
    """Tells a logger the figures of all processes; for process 0, since Lightning's loggers heed no other.

    What the others have done is read from their progress files. A logger that fails ends no work: it is told no more.

    Args:
        logger: who is told.
        folder: of the cache.
        plan: of this process.
    """

    def __init__(self, logger: MetricsLogger, folder: CacheFolder, plan: Plan) -> None:
        self._logger: MetricsLogger | None = logger
        self._folder, self._rank = folder, plan.part.rank
        self._every = max(EVERY, folder.pause)
        self._started, self._told = time.time(), float("-inf")
        self._others: dict[int, dict[str, Any]] = {}  # rank -> what it said last; its file goes when it is done

    def images(self, pace: Pace) -> None:
        self._tell(pace)

    def shard(self, sidecar: Sidecar, pace: Pace) -> None:  # noqa: ARG002 - of the protocol
        self._tell(pace)

    def skip(self, problem: str, pace: Pace) -> None:  # noqa: ARG002 - of the protocol
        self._tell(pace)

    def retry(self, reason: str, pace: Pace) -> None:
        pass

    def end(self, problem: str | None, pace: Pace) -> None:
        self._tell(pace, at_once=True)
        self._call("finalize", "success" if problem is None else "failed")

    def _tell(self, pace: Pace, at_once: bool = False) -> None:
        if self._logger is None or (time.monotonic() - self._told < self._every and not at_once):
            return
        self._told = time.monotonic()
        figures = self._figures(pace)
        self._call("log_metrics", {f"cache/{name}": value for name, value in figures.items()}, int(figures["images"]))
        self._call("save")

    def _figures(self, pace: Pace) -> dict[str, float]:
        """Name -> figure, of all processes; the seconds to go are left out while one process does not know them."""
        present = [
            part
            for part in parts_of(self._folder)
            if part.get("rank") != self._rank and part["updated"] >= self._started  # older: of a job that was killed
        ]
        self._others |= {int(part["rank"]): part for part in present}
        own = numbers_of(pace) | {"quarantined": pace.quarantined, "retries": pace.retries}
        parts = [own, *self._others.values()]
        figures = {name: float(sum(part.get(name, 0) for part in parts)) for name in COUNTS}
        figures["images_per_second"] = figures["images"] / pace.seconds
        left = seconds_left_of([own, *present])
        return figures if left is None else figures | {"seconds_left": left}

    def _call(self, method: str, *arguments: Any) -> None:
        if self._logger is None:
            return
        try:
            getattr(self._logger, method)(*arguments)
        except Exception as error:  # of whatever it is made of: a full disk, a network
            name = type(self._logger).__name__
            self._logger = None
            _log.warning("%s: %s; it is told no more of this job, which goes on", name, shown(error))
