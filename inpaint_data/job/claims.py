"""Who does which shard: each process its own ones, the largest first, and then those that nobody has begun."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from inpaint_data.errors import CacheError, ShardError
from inpaint_data.job.plan import Plan, Stamps, is_whole
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import Sidecar, sidecar_path
from inpaint_data.latent_cache.lock import Lock
from inpaint_data.ranks import LAUNCHED, Part
from inpaint_data.shards.naming import shard_size, shard_stem

_log = logging.getLogger(__name__)


class Claims:
    """Hands out the shards that this process does. What others begin is theirs, as long as they live.

    Args:
        plan: of this process; what others take of it, and what is done of theirs, changes it.
        inputs: all shards.
        folder: of the cache.
        lock: which this process holds.
        stamps: of the inputs.
    """

    def __init__(self, plan: Plan, inputs: Sequence[str], folder: CacheFolder, lock: Lock, stamps: Stamps) -> None:
        self.plan, self.inputs, self.folder, self.lock, self.stamps = plan, inputs, folder, lock, stamps
        self.helped = 0
        self.committed: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        part = self.plan.part
        if part.world == 1:
            yield from self.plan.todo
            return
        for shard in sorted(self.plan.todo, key=self.plan.bytes_of.__getitem__, reverse=True):
            if self._is_ours(shard, is_new=shard in self.plan.new):
                yield shard
            else:
                self.plan.give_away(shard)
        for shard in self._of_others(part):
            if self._is_ours(shard, is_new=True):
                self.helped += 1
                yield shard

    def _of_others(self, part: Part) -> Iterator[str]:
        """Those that lack in the cache by now; the last ones of the next process first, which gets to them last."""
        is_told = LAUNCHED in os.environ
        self.folder.look(names_alone=True)
        names = self.folder.names()
        for step in range(1, part.world):
            for shard in reversed(self.inputs[(part.rank + step) % part.world :: part.world]):
                if f"{shard_stem(shard)}.json" in names and self._is_done(shard):
                    continue
                if not is_told and not self.lock.has_company():
                    is_told = True
                    _log.warning(
                        "%s, as RANK and WORLD_SIZE or Slurm's variables in the environment say, but no other process "
                        "writes to %s at the moment: this one begins their shards too",
                        part, self.folder.name,
                    )  # fmt: skip
                yield shard

    def _is_ours(self, shard: str, is_new: bool) -> bool:
        """Claim a shard; False if it is another's, or was done by one."""
        stem = shard_stem(shard)
        if not self.lock.claim(stem):
            return False
        if is_new and self._is_done(shard):
            self.lock.release(stem)
            return False
        if shard not in self.plan.bytes_of:
            try:
                self.plan.take_on(shard, shard_size(shard))
                self.stamps.will_read(shard)
            except ShardError as error:
                self.plan.unreadable[shard] = str(error)
                return False
        return True

    def _is_done(self, shard: str) -> bool:
        """Whether it is in the cache by now, whoever did it."""
        stem = shard_stem(shard)
        if not self.folder.is_there_now(f"{stem}.json"):
            return False
        path = sidecar_path(self.folder.root, stem)
        if not path.exists():
            return True  # in a store, since this process looked there
        with suppress(CacheError):
            return is_whole(self.folder, Sidecar.read(path))
        return False

    def done(self, sidecar: Sidecar) -> None:
        """A shard is committed."""
        stem = sidecar.shard.removesuffix(".tar")
        self.stamps.was_read(stem, sidecar.input["sha256"])
        self.committed.add(stem)
        if self.plan.part.world > 1:
            self.lock.release(stem)
