"""The table that `make bench` prints: what a row is, and how contenders are timed side by side."""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

RED, YELLOW, GREEN, PLAIN = "\033[31m", "\033[33m", "\033[32m", "\033[0m"
NOISE = 1.25  # how far a ratio may be from the one that is known, on machines that others use too


@dataclass(frozen=True)
class Row:
    """One ratio of the table.

    Args:
        work: what is done, and what it is compared with.
        before: what it was at a9fda91, as words.
        measured: the figure of this run.
        reach: what it is to be: at most, or with `higher` at least; None where no target was set.
        unit: behind the figures: "x", " s", " MB".
        higher: whether more is better.
        known: what is measured where `reach` is none or is not reached; docs/performance.md says what bounds it.
    """

    work: str
    before: str
    measured: float
    reach: float | None
    unit: str = "x"
    higher: bool = False
    known: float | None = None

    @property
    def is_reached(self) -> bool:
        if self.reach is None:
            return self.is_as_known
        return self.measured >= self.reach if self.higher else self.measured <= self.reach

    @property
    def is_as_known(self) -> bool:
        if self.known is None:
            return False
        return self.measured * NOISE >= self.known if self.higher else self.measured <= self.known * NOISE

    def line(self) -> str:
        """The row, red where it is neither reached nor as known."""
        colour, verdict = GREEN, "as known" if self.reach is None else "reached"
        if not self.is_reached:
            colour, verdict = (YELLOW, "bounded, see docs") if self.is_as_known else (RED, "REGRESSED")
        if not sys.stdout.isatty() and "FORCE_COLOR" not in os.environ:
            colour = ""
        sign = ">=" if self.higher else "<="
        reach = f"{'-':>11}" if self.reach is None else f"{sign} {self.reach:>5g}{self.unit:<3}"
        figures = f"{self.before:>16}  {self.measured:>9.3g}{self.unit:<3} {reach:<11}"
        return f"{colour}{self.work:<66} {figures} {verdict}{PLAIN if colour else ''}"


HEAD = f"{'work, and what it is compared with':<66} {'at a9fda91':>16}  {'measured':>12} {'to reach':>11}"


CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def pin() -> None:
    """Keep this process on one core, with one thread in every library that is loaded."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def spread() -> None:
    """Let this process have all of its cores again."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, CORES)


def side_by_side(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Median seconds of each contender, taken in turn, so that a busy machine slows all alike; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            started = clock()
            run()
            if number:
                times[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def script(rows: Callable[[bool], Iterator[Row]], about: str | None) -> None:
    """Print the rows of one part, as a script of its own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="larger data and more rounds")
    options = parser.parse_args()
    print(HEAD, flush=True)
    for row in rows(options.full):
        print(row.line(), flush=True)


def chosen_parts(parser: argparse.ArgumentParser, only: str, parts: Collection[str]) -> list[str]:
    """The parts that `--only` names, each once; ends the program where there is no such part."""
    chosen = list(dict.fromkeys(name.strip() for name in only.split(",") if name.strip()))
    if not chosen or (unknown := [name for name in chosen if name not in parts]):
        what = f"there is no part {unknown[0]!r}" if chosen else "names no part"
        parser.error(f"--only: {what}; choose from {', '.join(parts)}")
    return chosen
