"""Image shards, what is known of them, and which way they are read: in any order, or one after another."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from inpaint_data.errors import UsageError
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.faults import log
from inpaint_data.pipeline.indexed import IndexedShards
from inpaint_data.pipeline.kept_index import kept_entries
from inpaint_data.pipeline.view_finder import ViewFinder
from inpaint_data.shards.foreign_counts import foreign_counts
from inpaint_data.shards.image_index import ShardEntry
from inpaint_data.shards.index_files import entries_for
from inpaint_data.shards.naming import shard_size
from inpaint_data.shards.stores import at_once, is_remote
from inpaint_data.shards.streams import gives_ranges
from inpaint_data.training.settings import LoadSettings
from inpaint_data.training.sources import shards_of

TOLD = 10**9  # bytes that are copied before the first batch


class ImageShards:
    """The image shards of a source.

    Args:
        name: of the source, for an error.
        source: paths or URLs.
        loading: how batches are loaded.
        train: whether they are of training.
        is_mixed: whether it is one of several sources, of which the index that is named need not be.

    Attributes:
        paths: of all shards, expanded.

    Raises:
        UsageError, ShardError: there are none, or they or their index cannot be read; here or when it is looked at.
    """

    def __init__(self, name: str, source: Any, loading: LoadSettings, train: bool, is_mixed: bool = False) -> None:
        self.name, self.loading, self.train, self.is_mixed = name, loading, train, is_mixed
        self.paths = shards_of(name, source)

    @property
    def _lies_elsewhere(self) -> bool:
        return any(map(is_remote, self.paths))

    @cached_property
    def entries(self) -> list[ShardEntry] | None:
        """What their index says of each; None where there is none."""
        return entries_for(self.paths, self.loading.index, may_be_of_others=self.is_mixed or not self.train)

    @cached_property
    def counts(self) -> list[int] | None:
        """Samples of each, where they are known and of use: a mixture that is streamed is drawn."""
        if self.is_mixed:
            return None
        if self.entries is not None:
            return list(map(len, self.entries))
        return foreign_counts(self.paths) if self.train and self._lies_elsewhere else None

    @property
    def has_counts_alone(self) -> bool:
        """Whether they lie elsewhere and nothing but counts is known, so that they come one after another."""
        return self.counts is not None and self.entries is None

    def indexed(self, settings: ExampleSettings, own: Sequence[Stage]) -> IndexedShards:
        """To be read in any order: by their index, or by headers, of remote ones by those of copies.

        The headers of many shards that lie here are read once, see `kept_entries`.

        Raises:
            UsageError, ShardError: there is no such way, or they cannot be read.
        """
        entries = self.entries
        if self._lies_elsewhere and not (entries is not None and gives_ranges(self.paths[0])):
            _check_room(self.name, self.paths, entries is not None, self.loading, self.train)
            entries = None  # of copies the headers tell
        elif entries is None and self.loading.mirror != "none" and not (own or settings.pictures.filters.caption):
            with_sizes = ViewFinder(settings.pictures).needs_sizes
            entries = kept_entries(self.paths, self.loading.mirror, with_sizes)
        return IndexedShards(self.paths, settings, own, *self.loading.copies, entries)


def _check_room(name: str, shards: Sequence[str], is_indexed: bool, loading: LoadSettings, train: bool) -> None:
    """Raises UsageError where remote shards must be copied before the first batch, and there is no room for them."""
    sizes = at_once(shard_size, [shard for shard in shards if is_remote(shard)])
    total, room = sum(sizes), loading.copies[1]
    if total <= room:
        if total > TOLD:
            log.warning("%s: %d shards are copied before the first batch, %.1f GB", name, len(sizes), total / 1e9)
        return
    problem = f"{name}: {len(sizes)} remote shards of {total:,} bytes are to be copied, and mirror_bytes is {room:,}"
    if is_indexed:
        raise UsageError(f"{problem}, and their server gives no parts of files; raise mirror_bytes")
    stream = ", or set loading: {epoch_batches: N} to take them as they come" if train else ""
    raise UsageError(f"{problem}; make their index with `inpaint-data index`{stream}, or raise mirror_bytes")
