"""Progress of a job for a person: a bar or plain lines while it runs, a table at its end."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from tqdm import tqdm

from inpaint_data.batch import ImageBatch
from inpaint_data.job.plan import Plan
from inpaint_data.job.reports import Pace
from inpaint_data.latent_cache.format import Quarantined, Sidecar
from inpaint_data.listener import tell
from inpaint_data.shards.naming import shard_stem
from inpaint_data.shown import shown

LISTED = 10  # of each kind, in a table
NAMED = 3  # samples of each kind of `Seen`
EMPTY, FULL, NO_CAPTION, TOO_LONG = "empty masks", "full masks", "no caption", "long caption"
UNTOLD = "no own text"
SECONDS = ("decode_seconds", "encode_seconds", "write_seconds", "waited_for_pictures", "waited_for_disk")


class Progress:
    """Tells a person on stderr: a bar on a terminal, else a line for each shard."""

    def __init__(self, pace: Pace) -> None:
        self._bar = None
        if pace.shards and sys.stderr is not None and sys.stderr.isatty():
            layout = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
            # It stops by itself when its terminal is closed.
            self._bar = tqdm(total=1, bar_format=layout, desc=_counts(pace), file=sys.stderr)

    def images(self, pace: Pace) -> None:
        if self._bar is not None:
            self._bar.total, self._bar.n = max(pace.expected, pace.images), pace.images
            self._bar.set_description_str(_counts(pace), refresh=True)

    def shard(self, sidecar: Sidecar, pace: Pace) -> None:
        if self._bar is not None:
            return
        left = pace.seconds_left
        to_go = "" if left is None else f", {timedelta(seconds=round(left))} to go"
        self._say(
            f"shard {pace.done}/{pace.shards} {shown(sidecar.shard)}: {len(sidecar.keys)} cached, "
            f"{len(sidecar.quarantined)} quarantined, {pace.rate:.1f} images/s{to_go}\n"
        )

    def skip(self, problem: str, pace: Pace) -> None:  # noqa: ARG002 - of the protocol
        self._say(f"left out: {problem}\n")

    def retry(self, reason: str, pace: Pace) -> None:
        pass

    def end(self, problem: str | None, pace: Pace) -> None:  # noqa: ARG002 - of the protocol
        if self._bar is not None:
            self._bar.close()

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        tell("stderr", text)


def _counts(pace: Pace) -> str:
    return f"shard {min(pace.done + 1, pace.shards)}/{pace.shards}, {pace.images} images, {pace.rate:.1f} images/s"


@dataclass
class Seen:
    """Counts of what is cached and seldom meant, with the first samples of each."""

    masks: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, shard: str, key: str) -> None:
        self.counts[kind] += 1
        first, name = self.first.setdefault(kind, []), f"{shard_stem(shard)}/{key}"
        if len(first) < NAMED and name not in first:
            first.append(name)

    def add(self, other: "Seen") -> None:
        self.masks += other.masks
        self.counts += other.counts
        for kind, names in other.first.items():
            self.first[kind] = [*self.first.get(kind, []), *names][:NAMED]

    def of(self, kind: str) -> str:
        """The first samples, for a line of a table."""
        names = self.first.get(kind, [])
        return ", ".join(names) + (", …" if self.counts[kind] > len(names) else "")


@dataclass
class Summary:
    """The counts and times of a run. Seconds of stages overlap, so they add up to more than `seconds`."""

    plan: Plan = field(default_factory=Plan)
    dry_run: bool = False
    shards: int = 0
    retried: int = 0
    in_parts: int = 0  # batches that did not fit into memory
    unreadable: dict[str, str] = field(default_factory=dict)  # shard -> reason
    helped: int = 0  # shards of other processes
    without_samples: list[str] = field(default_factory=list)  # shards that have none, usable or not
    missing: list[int] = field(default_factory=list)  # places of the input shards that are not in the cache
    samples_in: int = 0
    cached: int = 0
    quarantined: list[tuple[str, Quarantined]] = field(default_factory=list)
    filtered: list[tuple[str, Quarantined]] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    untold: Seen = field(default_factory=Seen)  # masks that got the scene's caption for want of their own
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    waited_for_pictures: float = 0.0  # seconds in which nothing could be encoded, since nothing was decoded
    waited_for_disk: float = 0.0  # likewise, since too much waited to be written
    seconds: float = 0.0
    bytes: int = 0
    in_cache: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to one of `SECONDS`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)

    @property
    def masks(self) -> int:
        return self.seen.masks

    def add(self, other: "Summary") -> None:
        """Count what another process did of this run."""
        for name in ("shards", "retried", "in_parts", "samples_in", "cached", "bytes", *SECONDS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unreadable |= other.unreadable
        self.without_samples += other.without_samples
        self.quarantined += other.quarantined
        self.filtered += other.filtered
        self.seen.add(other.seen)
        self.untold.add(other.untold)

    def note_untold(self, batch: ImageBatch) -> None:
        """Count the masks of a batch that should have a caption of their own, and of which nothing says one."""
        for row, masks in enumerate(batch.get("untold", [])):
            for _ in range(sum(masks)):
                self.untold.note(UNTOLD, batch["__shard__"][row], batch["__key__"][row])

    def table(self) -> str:
        """For a person to read; of a dry run, the plan."""
        if self.dry_run:
            return self.plan.table()
        part = self.plan.part
        mine = len(range(part.rank, self.plan.inputs, part.world))
        share = f"{part}: {mine} of {self.plan.inputs} shards are mine"
        share += f", and it did {self.helped} of others" if self.helped else ""
        rows = [
            *([("this process", share)] if part.world > 1 else []),
            ("shards", f"{self.shards} cached, {len(self.plan.done)} were already there"),
            *([("unreadable", f"{len(self.unreadable)} shards, left out")] if self.unreadable else []),
            ("samples in", f"{self.samples_in}"),
            ("cached", f"{self.cached}"),
            ("quarantined", f"{len(self.quarantined)}"),
            *([("filtered", self._filtered())] if self.filtered else []),
            *self._seen(),
            ("retried", f"{self.retried} in float32"),
            *([("in parts", f"{self.in_parts} batches, which did not fit into memory")] if self.in_parts else []),
            ("decoding", f"{self.decode_seconds:.1f} s, all threads together"),
            ("encoding", f"{self.encode_seconds:.1f} s"),
            ("writing", f"{self.write_seconds:.1f} s"),
            (
                "idle",
                f"{self.waited_for_pictures:.1f} s without a picture, {self.waited_for_disk:.1f} s behind the disk",
            ),
            ("altogether", f"{self.seconds:.1f} s, {self.cached / max(self.seconds, 1e-9):.1f} images/s"),
            ("written", f"{self.bytes / 1e6:.1f} MB"),
            ("the cache", ", ".join(f"{count} {name}" for name, count in self.in_cache.items())),
        ]
        lines = [f"  {name:<12} {value}" for name, value in rows]
        lines += [f"  quarantined  {shard}, {bad.key!r}: {bad.reason}" for shard, bad in self.quarantined[:LISTED]]
        if len(self.quarantined) > LISTED:
            lines.append(f"  ... and {len(self.quarantined) - LISTED} more, in the sidecars")
        lines += [f"  unreadable   {reason}" for reason in list(self.unreadable.values())[:LISTED]]
        lines += [f"  no samples   {shard} has none; is it whole?" for shard in self.without_samples[:LISTED]]
        removed = self.plan.removed
        lines += [f"  no input     {name} is not among the input shards; it stays" for name in removed[:LISTED]]
        if removed:
            lines.append(
                f"  no input     {self.plan.removed_samples} samples of the cache are in {len(removed)} such shards"
            )
        lines += self.plan.other_making()
        if self.missing:
            lines.append(f"  not complete {self._missing()}")
        return "\n".join(map(shown, lines))

    def _missing(self) -> str:
        part = self.plan.part
        text = f"{len(self.missing)} of {self.plan.inputs} input shards are not in the cache"
        ranks = Counter(number % part.world for number in self.missing)
        if part.world == 1 or set(ranks) == {part.rank}:
            return text
        shares = ", ".join(f"{count} of process {rank}" for rank, count in sorted(ranks.items())[:LISTED])
        shares += ", …" if len(ranks) > LISTED else ""
        return f"{text} yet: {shares}; others are at work on them, or they cannot be read"

    def _filtered(self) -> str:
        counts = Counter(entry.reason.partition(":")[0] for _, entry in self.filtered)
        return f"{len(self.filtered)}: {', '.join(f'{count} by {name}' for name, count in sorted(counts.items()))}"

    def _seen(self) -> list[tuple[str, str]]:
        masks, counts = self.seen.masks, self.seen.counts
        texts = {
            EMPTY: f"{counts[EMPTY]} of {masks}, where nothing is to be repainted: {self.seen.of(EMPTY)}",
            FULL: f"{counts[FULL]} of {masks}, where nothing is kept: {self.seen.of(FULL)}",
            TOO_LONG: f"{counts[TOO_LONG]} of {self.cached} samples, cut short: {self.seen.of(TOO_LONG)}",
            NO_CAPTION: f"{counts[NO_CAPTION]} of {self.cached} samples: {self.seen.of(NO_CAPTION)}",
        }
        rows = [(kind, text) for kind, text in texts.items() if counts[kind]]
        if count := self.untold.counts[UNTOLD]:
            first = self.untold.of(UNTOLD)
            rows.append((UNTOLD, f"{count} masks of objects of which captions finds none, so the scene's: {first}"))
        return rows
