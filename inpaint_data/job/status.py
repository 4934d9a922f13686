"""How far a cache is, read from its folder while its job runs or after it."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from inpaint_data.errors import CacheError, ShardError, UsageError
from inpaint_data.job.reports import PROGRESS
from inpaint_data.latent_cache.folder import CacheFolder, opened
from inpaint_data.latent_cache.format import Sidecar, committed, read_cache_file, totals
from inpaint_data.latent_cache.lock import Holder, holders_of
from inpaint_data.shown import shown

LISTED = 3  # faults in the table
SOON = 0.1  # seconds after which a file that is being written is whole
Part = dict[str, Any]  # what a process's progress file says


@dataclass
class Status:
    """A cache at one moment.

    Attributes:
        root: its folder.
        state: "under way", "complete", or "stopped".
        in_cache: shards, samples, quarantined, filtered and bytes of what is committed.
        faults: the last quarantined samples, as (shard, key, reason).
        parts: what each process says of its own part.
        holders: who writes to it.
    """

    root: str
    state: str
    in_cache: dict[str, int]
    faults: list[tuple[str, str | None, str]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    holders: list[Holder] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Images a second of all processes together."""
        return rate_of(self.parts)

    @property
    def seconds_left(self) -> float | None:
        """Until the slowest process is done; None where one does not know yet."""
        return seconds_left_of(self.parts)

    def table(self) -> str:
        """For a person to read."""
        counts = self.in_cache
        rows = [
            ("state", self.state),
            ("the cache", ", ".join(f"{count} {name}" for name, count in counts.items())),
        ]
        if self.parts:
            inputs, todo = max(part["inputs"] for part in self.parts), sum(part["shards"] for part in self.parts)
            done, left_out = (sum(part[name] for part in self.parts) for name in ("shards_done", "left_out"))
            text = f"{done} of this run's {todo}, {left_out} of them left out; {inputs} inputs in all"
            rows.append(("shards", text))
            images, expected = (sum(part[name] for part in self.parts) for name in ("images", "images_expected"))
            rows.append(("images", f"{images} of about {max(expected, images)}, {self.rate:.1f} images/s"))
            left = self.seconds_left
            rows.append(("to go", "unknown yet" if left is None else str(timedelta(seconds=round(left)))))
            oldest = max(time.time() - part["updated"] for part in self.parts)
            rows.append(("as of", f"{oldest:.0f} s ago"))
        for holder in self.holders:
            life = f"gave a sign of life {holder.seconds_since_sign:.0f} s ago"
            state = life if holder.is_alive else "is dead; the next run takes its place"
            rows.append((f"process {holder.rank}", f"{holder.process} on {holder.host} {state}"))
        rows += [("quarantined", f"{shard}, {key!r}: {reason}") for shard, key, reason in self.faults]
        if self.state == "stopped":
            rows.append(("to go on", "run the same cache command again; what is finished is kept"))
        return "\n".join(shown(f"  {name:<12} {value}") for name, value in rows)

    def to_json(self) -> str:
        """The same as one JSON object."""
        return json.dumps(asdict(self) | {"images_per_second": self.rate, "seconds_left": self.seconds_left})


def status_of(root: str | Path) -> Status:
    """How far the cache in a folder, or at a URL, is.

    Raises:
        UsageError: no such folder, nothing of a cache in it, or its store does not answer.
    """
    with opened(root) as folder:
        return _status_of(folder)


def _status_of(folder: CacheFolder) -> Status:
    fix = "name the one that `inpaint-data cache` writes to"
    if not folder.is_there():
        raise UsageError(f"root: {folder.name}: no such folder, or nothing in it; {fix}", ("root",))
    sidecars, holders = [], holders_of(folder.place)
    for path in committed(folder.root):
        with suppress(CacheError, OSError):  # one that is being replaced, or damaged, which `verify` tells
            sidecars.append(Sidecar.read(path))
    parts = parts_of(folder)
    is_complete, is_there = False, bool(sidecars or parts or holders)
    with suppress(CacheError):
        is_complete = read_cache_file(folder.root).totals is not None
        is_there = True
    if not is_there:
        raise UsageError(f"root: {folder.name} has nothing of a cache; {fix}", ("root",))
    living = any(holder.is_alive for holder in holders)
    faults = [
        (sidecar.shard, entry.key, entry.reason)
        for sidecar in sorted(sidecars, key=lambda sidecar: sidecar.shard)
        for entry in sidecar.quarantined
    ]
    state = "under way" if living else "complete" if is_complete else "stopped"
    return Status(folder.name, state, totals(sidecars), faults[-LISTED:], parts, holders)


def rate_of(parts: Sequence[Part]) -> float:
    """Images a second of all processes together."""
    return float(sum(part["images_per_second"] for part in parts))


def seconds_left_of(parts: Sequence[Part]) -> float | None:
    """Until the slowest process is done; None where one does not know yet."""
    left = [part["seconds_left"] for part in parts]
    return None if not left or None in left else float(max(left))


def parts_of(folder: CacheFolder) -> list[Part]:
    """What each process said last; nothing where its store does not answer."""
    for _ in range(2):
        found = []
        with suppress(ShardError):
            found = [_part(data) for data in folder.noted(PROGRESS).values()]
        if None not in found:
            break
        time.sleep(SOON)
    return [part for part in found if part is not None]


def _part(data: bytes) -> Part | None:
    """What a process said; None where the file is just being written."""
    with suppress(ValueError, KeyError, TypeError):
        part = json.loads(data)
        whole = ("inputs", "already", "shards", "shards_done", "left_out", "images", "images_expected")
        real = ("images_per_second", "updated")
        return dict(part) | {name: int(part[name]) for name in whole} | {name: float(part[name]) for name in real}
    return None
