"""Plan of a caching job: the shards to do, which are new or whose input has changed."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from inpaint_data.durable import MAX_NAME_BYTES
from inpaint_data.errors import ShardError, UsageError
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import CACHE_FILE, Sidecar, committed, differences
from inpaint_data.pipeline.survey import Survey
from inpaint_data.ranks import Part
from inpaint_data.shards.naming import NamedShard, shard_identity, shard_size, shard_stamp, shard_stem
from inpaint_data.shown import shown

STAMPS = ".stamps-"


@dataclass
class Plan:
    """Input shards of one process by their state.

    `new` ones and `stale` ones (the input has changed since) are to do, `done` ones are not, and `unreadable` ones
    (shard -> reason) cannot be. `removed` are cached shards, by name, that are not among the inputs any more; they stay
    with their `removed_samples`. `made_otherwise` has, a line each with how many shards that are done, what
    moves the last bits of latents and is another one now.
    """

    part: Part = field(default_factory=Part)
    inputs: int = 0  # of all processes
    done: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    removed_samples: int = 0
    made_otherwise: Counter[str] = field(default_factory=Counter)
    bytes_of: dict[str, int] = field(default_factory=dict)  # of the shards to do
    bytes_to_do: int = 0
    survey: Survey | None = None  # of a dry run, of the shards to do
    bytes_expected: int | None = None
    seconds_expected: float | None = None
    storage: list[tuple[str, str]] = field(default_factory=list)  # of a dry run, see `storage_costs`

    @property
    def todo(self) -> list[str]:
        return [*self.new, *self.stale]

    @property
    def shards_to_do(self) -> int:
        return len(self.new) + len(self.stale)

    def take_on(self, shard: str, size: int, is_stale: bool = False) -> None:
        """This process does it."""
        (self.stale if is_stale else self.new).append(shard)
        self.bytes_of[shard] = size
        self.bytes_to_do += size

    def give_away(self, shard: str) -> None:
        """Another process does it, or nobody can."""
        (self.new if shard in self.new else self.stale).remove(shard)
        self.bytes_to_do -= self.bytes_of.pop(shard)

    def table(self) -> str:
        rows = [
            ("done", f"{len(self.done)} shards"),
            ("to do", f"{len(self.new)} new shards, {len(self.stale)} whose input has changed"),
            *([("unreadable", f"{len(self.unreadable)} shards")] if self.unreadable else []),
            ("removed", f"{len(self.removed)} cached shards have no input any more"),
        ]
        if self.survey is not None:
            rows += self.survey.lines()
        if self.bytes_expected is not None and self.seconds_expected is not None:
            rows.append(("expected", f"{self.bytes_expected / 1e6:.0f} MB in {self.seconds_expected:.0f} s"))
        lines = [f"  {name:<12} {value}" for name, value in [*rows, *self.storage]]
        lines += [f"  stale        {shard}" for shard in self.stale]
        lines += [f"  unreadable   {reason}" for reason in self.unreadable.values()]
        lines += [f"  removed      {shard}" for shard in self.removed]
        lines += self.other_making()
        return "\n".join(map(shown, lines))

    def other_making(self) -> list[str]:
        """Lines of a table for `made_otherwise`."""
        return [f"  last bits    {line} ({count} shards)" for line, count in self.made_otherwise.items()]


class Stamps:
    """The state of the inputs when they were last hashed, so that only changed ones are hashed again.

    Kept beside the shards, one file for each process of a job, a line for each shard, written as soon as it is known,
    to a store now and then; may be deleted.

    Args:
        folder: of the cache.
        rank: of this process; None writes nothing.
    """

    def __init__(self, folder: CacheFolder, rank: int | None) -> None:
        root = folder.root
        self._folder, self._sent = folder, time.monotonic()
        self._path = None if rank is None else root / f"{STAMPS}{rank}"
        self._known: dict[tuple[str, str], str] = {}  # stem and stamp -> sha256
        self._before: dict[str, str] = {}  # stem -> stamp, of shards that are still to be read
        self._current: dict[str, tuple[str, str]] = {}  # stem -> stamp and sha256
        for path in sorted(root.glob(f"{STAMPS}[0-9]*")):
            with suppress(OSError):
                for line in path.read_bytes().splitlines():
                    with suppress(ValueError, TypeError):  # a kill may have torn it
                        stem, stamp, sha256 = json.loads(line)
                        self._known[str(stem), str(stamp)] = str(sha256)

    def sha256(self, shard: str) -> str:
        """The hash of a shard's bytes, computed only if its stamp has changed."""
        stem, stamp = shard_stem(shard), shard_stamp(shard)
        known = self._known.get((stem, stamp))
        if known is None:
            known = shard_identity(shard).sha256
            self._add(stem, stamp, known)
        self._current[stem] = (stamp, known)
        return known

    def will_read(self, shard: str) -> None:
        """Look at a shard before its bytes are read, so that a change in between is noticed."""
        self._before[shard_stem(shard)] = shard_stamp(shard)

    def was_read(self, stem: str, sha256: str) -> None:
        """Keep the hash that was computed while a shard was cached."""
        stamp = self._before[stem]
        self._add(stem, stamp, sha256)
        self._current[stem] = (stamp, sha256)

    def _add(self, stem: str, stamp: str, sha256: str) -> None:
        self._known[stem, stamp] = sha256
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(b"\n" + _line(stem, stamp, sha256))  # behind a line that a kill may have torn
            if self._folder.place != self._folder.root and time.monotonic() - self._sent > self._folder.pause:
                self._sent = time.monotonic()
                self._folder.write(self._path.name, self._path.read_bytes())

    def save(self) -> None:
        """Write the file anew, without what has become old."""
        if self._path is not None:
            lines = (_line(stem, *self._current[stem]) for stem in sorted(self._current))
            self._folder.write(self._path.name, b"".join(lines))


def _line(stem: str, stamp: str, sha256: str) -> bytes:
    return json.dumps([stem, stamp, sha256]).encode() + b"\n"


def plan_shards(
    inputs: Sequence[str], folder: CacheFolder, stamps: Stamps, made_with: Mapping[str, Any], part: Part | None = None
) -> Plan:
    """Compare a process's part of the inputs with the committed shards: by size, and by hash if the size is the same.

    Raises:
        UsageError: the sidecar of an input would be the cache's own file, or have a longer name than files can have; or
            an input was renamed.
        CacheError: a sidecar is damaged.
    """
    part = part or Part()
    cached = {sidecar.shard: sidecar for sidecar in map(Sidecar.read, committed(folder.root))}
    names = {_name(shard) for shard in inputs}
    removed = [sidecar for name, sidecar in sorted(cached.items()) if name not in names]
    plan = Plan(part, len(inputs))
    if part.rank == 0:
        plan.removed = [sidecar.shard for sidecar in removed]
        plan.removed_samples = sum(len(sidecar.keys) for sidecar in removed)
    for shard in inputs[part.rank :: part.world]:
        if f"{shard_stem(shard)}.json" == CACHE_FILE:
            raise UsageError(f"{shard}: its sidecar would be the cache's own {CACHE_FILE}; rename the shard")
        if len(os.fsencode(f"{shard_stem(shard)}.json")) > MAX_NAME_BYTES:
            raise UsageError(
                f"{shard}: its name is too long for a cache's files; rename it to {MAX_NAME_BYTES - 5} bytes or less"
            )
        try:
            _place(plan, shard, cached.get(_name(shard)), folder, stamps, made_with)
        except ShardError as error:
            plan.unreadable[shard] = str(error)
    _refuse_renamed(plan, removed, folder.name, stamps)
    return plan


def _place(
    plan: Plan, shard: str, sidecar: Sidecar | None, folder: CacheFolder, stamps: Stamps, made_with: Mapping[str, Any]
) -> None:
    """Add a shard to the plan. Raises ShardError if it cannot be read."""
    size = shard_size(shard)
    if sidecar is None or not is_whole(folder, sidecar):
        is_stale = False
    elif size == sidecar.input["size"] and stamps.sha256(shard) == sidecar.input["sha256"]:
        plan.done.append(shard)
        plan.made_otherwise.update(differences(sidecar.made_with or made_with, made_with))
        return
    else:
        is_stale = True
    stamps.will_read(shard)
    plan.take_on(shard, size, is_stale)


def _refuse_renamed(plan: Plan, removed: Sequence[Sidecar], root: str, stamps: Stamps) -> None:
    """Raise UsageError if a new input has the bytes of a removed one: its samples would be in the cache twice."""
    by_content = {(sidecar.input["size"], sidecar.input["sha256"]): sidecar.shard for sidecar in removed}
    sizes = {size for size, _ in by_content}
    renamed: list[tuple[str, str]] = []
    for shard in list(plan.new) if removed else []:
        try:
            size = shard_size(shard)
            old = by_content.get((size, stamps.sha256(shard))) if size in sizes else None
        except ShardError as error:
            plan.give_away(shard)
            plan.unreadable[shard] = str(error)
            continue
        if old:
            renamed.append((shard, old))
    if renamed:
        shard, old = renamed[0]
        more = f", and {len(renamed) - 1} more are so" if len(renamed) > 1 else ""
        raise UsageError(
            f"shards: {shard} has the very bytes that are cached as {old}, whose input is gone{more}; "
            f"{_way_back(shard)}, or delete {old} and {old.removesuffix('.tar')}.json from {root}, and it is cached "
            "under its new name",
            ("shards",),
        )


def check_exact(plan: Plan, exact: bool) -> None:
    """Raises UsageError if equal bytes are asked for, and what is there was made with what moves the last ones."""
    if exact and plan.made_otherwise:
        lines = [f"{line} ({count} shards)" for line, count in plan.made_otherwise.items()]
        raise UsageError(
            f"exact: shards that are there differ from this run in what moves the last bits: {'; '.join(lines)}; run "
            "with what they were made with, delete them, or leave exact out",
            ("job", "exact"),
        )


def _way_back(shard: str) -> str:
    if isinstance(shard, NamedShard):
        return f"it is {_name(shard)} now, since another input has its name: cache that one elsewhere"
    return "rename it back"


def _name(shard: str) -> str:
    return f"{shard_stem(shard)}.tar"


def is_whole(folder: CacheFolder, sidecar: Sidecar) -> bool:
    """True if the tar of a sidecar exists in its size; `verify` checks more."""
    return folder.tar_size(sidecar.shard) == int(sidecar.output["size"])
