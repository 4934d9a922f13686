"""Which way image shards are loaded: in any order, where every sample's place is known, or one after another."""

from collections.abc import Callable, Sequence
from typing import Any

from inpaint_data.errors import UsageError
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.faults import log
from inpaint_data.pipeline.indexed import IndexedShards
from inpaint_data.pipeline.streamed import StreamedShards
from inpaint_data.shards.fetching import Fetching
from inpaint_data.shards.foreign_counts import foreign_counts
from inpaint_data.shards.index_files import entries_for
from inpaint_data.shards.naming import shard_size
from inpaint_data.shards.stores import at_once, is_remote
from inpaint_data.shards.streams import gives_ranges
from inpaint_data.training.loader import EpochLoader, Pass
from inpaint_data.training.settings import LoadSettings
from inpaint_data.training.sources import PARAMETERS, FaultLog, ImageSource, shards_of
from inpaint_data.training.stream_loader import StreamLoader

TOLD = 10**9  # bytes that are copied before the first batch


def image_loader(
    stage: str,
    source: Any,
    settings: ExampleSettings,
    own: Sequence[Stage],
    loading: LoadSettings,
    next_pass: Callable[[], Pass],
    finish: Callable[[Any, int], Any],
) -> EpochLoader | StreamLoader:
    """The loader of a stage's image shards.

    One after another where `epoch_batches` asks for it, or where shards lie elsewhere and nothing but counts is known;
    else in any order, by their index, by headers, or of remote ones by those of copies.

    Raises:
        UsageError, ShardError: there is no such way, or the shards or their index cannot be read.
    """
    name, train = PARAMETERS[stage], stage == "fit"
    shards = shards_of(name, source)
    processes = loading.num_workers if loading.workers == "processes" else 0
    threads = 1 if processes else max(1, loading.num_workers)
    entries = entries_for(shards, loading.index, may_be_of_others=not train)
    counts: Sequence[int] | None = None if entries is None else list(map(len, entries))
    is_asked = train and loading.epoch_batches is not None
    lies_elsewhere = any(map(is_remote, shards))
    if train and lies_elsewhere and entries is None:
        counts = foreign_counts(shards)
    if is_asked or (counts is not None and entries is None):
        fetching = Fetching(*loading.copies)
        stream = StreamedShards(
            shards, settings, own, loading.seed, loading.shuffle_buffer, FaultLog(), fetching, counts
        )
        return StreamLoader(stream, loading.epoch_batches, next_pass, finish, processes, threads)
    if lies_elsewhere and not (entries is not None and gives_ranges(shards[0])):
        _check_room(name, shards, entries is not None, loading, train)
        entries = None  # of copies the headers tell
    indexed = IndexedShards(shards, settings, own, *loading.copies, entries)
    return EpochLoader(ImageSource(indexed, None if train else 0, threads), next_pass, finish, processes)


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
