"""Plan of a caching job: the shards to do, which are new or whose input has changed."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from inpaint_data.durable import MAX_NAME_BYTES, write_file
from inpaint_data.errors import UsageError
from inpaint_data.latent_cache.format import CACHE_FILE, Sidecar, committed
from inpaint_data.shards.reading import shard_identity, shard_size, shard_stamp, shard_stem
from inpaint_data.shown import shown

STAMPS = ".stamps-"


@dataclass
class Plan:
    """Input shards by their state.

    `new` ones and `stale` ones (the input has changed since) are to do, `done` ones are not. `removed` are cached
    shards, by name, that are not among the inputs any more; they stay.
    """

    done: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    bytes_expected: int | None = None
    seconds_expected: float | None = None

    @property
    def todo(self) -> list[str]:
        return [*self.new, *self.stale]

    def table(self) -> str:
        rows = [
            ("done", f"{len(self.done)} shards"),
            ("to do", f"{len(self.new)} new shards, {len(self.stale)} whose input has changed"),
            ("removed", f"{len(self.removed)} cached shards have no input any more"),
        ]
        if self.bytes_expected is not None and self.seconds_expected is not None:
            rows.append(("expected", f"{self.bytes_expected / 1e6:.0f} MB in {self.seconds_expected:.0f} s"))
        lines = [f"  {name:<12} {value}" for name, value in rows]
        lines += [f"  stale        {shard}" for shard in self.stale]
        lines += [f"  removed      {shard}" for shard in self.removed]
        return "\n".join(map(shown, lines))


class Stamps:
    """The state of the inputs when they were last hashed, so that only changed ones are hashed again.

    Kept beside the shards, one file for each process of a job; may be deleted.
    """

    def __init__(self, root: Path, rank: int) -> None:
        self._path = root / f"{STAMPS}{rank}"
        self._known: dict[str, list[str]] = {}
        for path in sorted(root.glob(f"{STAMPS}[0-9]*")):
            with suppress(OSError, ValueError):
                self._known |= json.loads(path.read_bytes())

    def sha256(self, shard: str) -> str:
        """The hash of a shard's bytes, computed only if its stamp has changed."""
        stamp = shard_stamp(shard)
        known = self._known.get(shard_stem(shard))
        if known is None or known[0] != stamp:
            self._known[shard_stem(shard)] = known = [stamp, shard_identity(shard).sha256]
        return known[1]

    def save(self) -> None:
        write_file(self._path, json.dumps(self._known, sort_keys=True).encode())


def plan_shards(inputs: Sequence[str], root: Path, stamps: Stamps) -> Plan:
    """Compare the inputs with the committed shards at `root`: by size, and by hash if the size is the same.

    Raises:
        UsageError: the sidecar of an input would be the cache's own file, or have a longer name than files can have.
        CacheError: a sidecar is damaged.
    """
    cached = {sidecar.shard: sidecar for sidecar in map(Sidecar.read, committed(root))}
    plan = Plan()
    for shard in inputs:
        name = f"{shard_stem(shard)}.tar"
        if f"{shard_stem(shard)}.json" == CACHE_FILE:
            raise UsageError(f"{shard}: its sidecar would be the cache's own {CACHE_FILE}; rename the shard")
        if len(os.fsencode(f"{shard_stem(shard)}.json")) > MAX_NAME_BYTES:
            raise UsageError(
                f"{shard}: its name is too long for a cache's files; rename it to {MAX_NAME_BYTES - 5} bytes or less"
            )
        sidecar = cached.pop(name, None)
        if sidecar is None or not _is_whole(root, sidecar):
            plan.new.append(shard)
        elif _is_same(shard, sidecar, stamps):
            plan.done.append(shard)
        else:
            plan.stale.append(shard)
    plan.removed = sorted(cached)
    return plan


def _is_whole(root: Path, sidecar: Sidecar) -> bool:
    """True if the tar of a sidecar exists in its size; `verify` checks more."""
    with suppress(OSError):
        return (root / sidecar.shard).stat().st_size == int(sidecar.output["size"])
    return False


def _is_same(shard: str, sidecar: Sidecar, stamps: Stamps) -> bool:
    return bool(shard_size(shard) == sidecar.input["size"] and stamps.sha256(shard) == sidecar.input["sha256"])
