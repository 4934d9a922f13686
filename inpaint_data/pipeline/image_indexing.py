"""Indexing of image shards: every sample's place and its pictures' sizes, so that training need not look for them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from inpaint_data.errors import ReplacedError, SampleError, ShardError, UsageError
from inpaint_data.pictures.formats import DECODERS, Decoding
from inpaint_data.pictures.geometry import Size
from inpaint_data.pipeline.faults import log
from inpaint_data.pipeline.shard_file import ShardFile
from inpaint_data.shards.image_index import EntryMaker, ShardEntry
from inpaint_data.shards.index_files import (
    is_still,
    name_in,
    place_beside,
    read_entries,
    status_now,
    write_entries,
)
from inpaint_data.shards.naming import expand_shards
from inpaint_data.shards.reading import CACHED, IMAGE_EXTENSIONS, Fault, Sample, ShardEnd, read_shard
from inpaint_data.shards.stores import FOLDER, is_remote
from inpaint_data.shards.streams import anew_if_replaced

Status = tuple[int | None, str | None]  # size and stamp of a shard
StatusOf = Callable[[str], Status]
AT_A_TIME = 8  # shards that are read
ANY = Decoding(tuple(DECODERS), max_pixels=2**60)  # settings leave out later what they leave out


@dataclass(frozen=True)
class Indexed:
    """The outcome of indexing.

    Attributes:
        place: of the index, a path or URL.
        new: shards that were read.
        entries: of all shards that were named.
    """

    place: str
    new: Sequence[str]
    entries: Sequence[ShardEntry]


def index_shards(source: str | Sequence[str], out: str | None = None) -> Indexed:
    """Write the index of image shards, reading only those that it does not have yet, or that were replaced.

    Args:
        source: a brace pattern, a glob, a folder, URLs, or a list of those.
        out: the index's path or URL; left out, it lies beside the shards, where training finds it.

    Raises:
        UsageError: there are none, they are a cache's or a folder of images, or the index cannot be written.
        ShardError: shards cannot be read; the index has the others.
    """
    shards = expand_shards(source)
    if shards[0].startswith(FOLDER):
        raise UsageError(
            f"{source}: is a folder of images; make shards of it with `inpaint-data pack`, and index those"
        )
    place = out or place_beside(shards)
    if place is None:
        raise UsageError(f"{shards[0]}: the index cannot lie beside it; say where with --out FILE")
    return index_at(place, shards)


def index_at(place: str, shards: Sequence[str], status_of: StatusOf = status_now, with_sizes: bool = True) -> Indexed:
    """`index_shards` of shards that are expanded already.

    Args:
        place: of the index, a path or URL.
        shards: paths or URLs.
        status_of: size and stamp of a shard.
        with_sizes: whether pictures are looked at for their sizes too.
    """
    known = _known(place)
    names = {shard: name_in(place, shard) for shard in shards}
    missing = [shard for shard in shards if not _is_known(known.get(names[shard]), status_of(shard))]
    made, problems = dict(known), list[ShardError]()
    entry_of = partial(_entry_or_error, status_of=status_of, with_sizes=with_sizes)
    try:
        with ThreadPoolExecutor(AT_A_TIME, "inpaint_data-index") as pool:
            for result in pool.map(lambda shard: entry_of(shard, names[shard]), missing):
                if isinstance(result, ShardError):
                    problems.append(result)
                else:
                    made[result.name] = result
    finally:  # whatever ends it, what was read need not be read again
        if made != known:
            write_entries(place, [made[name] for name in sorted(made)])
    if problems:
        raise ShardError(f"{problems[0]} ({len(problems)} of {len(shards)} shards; {place} has the others)")
    return Indexed(place, missing, [made[names[shard]] for shard in shards])


def _known(place: str) -> dict[str, ShardEntry]:
    """The entries that there are already; a damaged index is made anew."""
    try:
        return read_entries(place) or {}
    except ShardError as error:
        log.warning("%s; it is made anew", error)
        return {}


def _is_known(entry: ShardEntry | None, status: Status) -> bool:
    return entry is not None and is_still(entry, *status)


def _entry_or_error(shard: str, name: str, status_of: StatusOf, with_sizes: bool) -> ShardEntry | ShardError:
    try:
        return anew_if_replaced(partial(_entry, shard, name, status_of, with_sizes))
    except ShardError as error:
        return error


def _entry(shard: str, name: str, status_of: StatusOf, with_sizes: bool) -> ShardEntry:
    """The entry of a shard: all of a remote one is read, and of one that lies here little more than headers."""
    file, maker = ShardFile(shard), EntryMaker()
    size, stamp = status_of(shard)
    sha256 = None
    for item in read_shard(shard) if is_remote(shard) else file.locate():
        if isinstance(item, ShardEnd):
            size, sha256 = item.identity.size, item.identity.sha256
        elif isinstance(item, Fault):
            maker.faults.append(item)
        elif CACHED in item.members:
            raise UsageError(f"{shard}: is a shard of a latent cache; name the cache's folder, which must lie here")
        else:
            maker.add(item, _picture_sizes(file, item) if with_sizes else {})
    if not is_remote(shard) and (size, stamp) != status_of(shard):
        raise ReplacedError(f"{shard}: it was replaced while it was read; start again when nobody writes to it")
    assert size is not None  # since all of it was read, or its system says it
    return maker.entry(name, size, stamp, sha256)


def _picture_sizes(file: ShardFile, sample: Sample) -> dict[str, Size]:
    sizes = {}
    for member in sample.members:
        if member.rpartition(".")[2] in IMAGE_EXTENSIONS:
            with suppress(SampleError):  # why is said when it is decoded
                sizes[member] = file.size_of_member(sample, member, ANY)
    return sizes
