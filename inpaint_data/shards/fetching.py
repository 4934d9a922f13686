"""Shards that are read one after another, fetched ahead into a mirror and let go of when they were read."""

from collections.abc import Generator, Sequence
from pathlib import Path

from inpaint_data.ahead import ahead
from inpaint_data.errors import ShardError
from inpaint_data.shards.mirror import Mirror, mirror_in, name_of_contents
from inpaint_data.shards.stores import is_remote, stored


class Fetching:
    """Local copies of remote shards, a few ahead of whoever reads them.

    Args:
        folder, limit: of the mirror, and of what all copies in it may take together; 0 keeps none.
    """

    def __init__(self, folder: str | None, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def copies(self, shards: Sequence[str]) -> Generator[tuple[str, Path | None], None, None]:
        """Each shard with its copy, which stays until the next one is asked for; None reads it where it lies.

        The first one is not waited for, nor any that has no room. While one is read, the next two are fetched.

        Raises:
            UsageError: the mirror cannot be written to.
        """
        if self.limit < 1 or not any(map(is_remote, shards)):
            yield from ((shard, None) for shard in shards)
            return
        held = _Held(mirror_in(self.folder), self.limit)
        rest = ahead(map(held.fetch, shards[1:]), 1)
        try:
            for number, shard in enumerate(shards):
                copy = next(rest) if number else held.found(shard)
                yield shard, copy
                held.release(copy)
        finally:
            held.close()
            rest.close()


class _Held:
    """The copies that one reader has asked for and has not let go of, also those that it never came to."""

    def __init__(self, mirror: Mirror, limit: int) -> None:
        self._mirror, self._limit = mirror, limit
        self._paths: list[Path] = []
        self._is_closed = False

    def found(self, shard: str) -> Path | None:
        """The copy that is there already."""
        name, size = _name_of(shard)
        return self._kept(self._mirror.copied(name, size) if name else None)

    def fetch(self, shard: str) -> Path | None:
        """The copy, made now; None where it cannot be made, for which whoever reads the shard sees the reason."""
        if self._is_closed:
            return None
        try:
            name, size = _name_of(shard)
            return self._kept(self._mirror.copy(shard, name, size, self._limit) if name else None)
        except ShardError:
            return None

    def _kept(self, path: Path | None) -> Path | None:
        if path is not None:
            self._paths.append(path)
            if self._is_closed:
                self.release(path)
        return path

    def release(self, path: Path | None) -> None:
        if path in self._paths:
            self._paths.remove(path)
            self._mirror.release(path)

    def close(self) -> None:
        self._is_closed = True
        for path in list(self._paths):
            self.release(path)


def _name_of(shard: str) -> tuple[str, int]:
    """The name and the size of a copy; no name where the store says too little for one."""
    if not is_remote(shard):
        return "", 0
    try:
        now = stored(shard)
    except ShardError:
        return "", 0
    if now.size is None or now.stamp is None:
        return "", 0
    return name_of_contents(shard, now.stamp), now.size
