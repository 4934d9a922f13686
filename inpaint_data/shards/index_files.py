"""Where the index of image shards lies, and whether it is still of the shards that are there."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from inpaint_data.durable import write_file
from inpaint_data.errors import ReplacedError, ShardError, UsageError
from inpaint_data.shards.image_index import ShardEntry, decoded, encoded
from inpaint_data.shards.naming import status_of_shard
from inpaint_data.shards.store_errors import is_absent, is_refused, retried, unreadable
from inpaint_data.shards.store_writing import put_file
from inpaint_data.shards.stores import FOLDER, file_system, folder_of, is_url, local_path, stored

INDEX_FILE = "shards.index.npz"
AGAIN = "run `inpaint-data index` on the shards again, it reads only what is new"


def place_beside(shards: Sequence[str]) -> str | None:
    """The path or URL of the index beside shards: in the folder that all of them lie in or below.

    None where it can lie in none: of addresses with a query, of folders of images, or of no common store.
    """
    folder = common_folder(shards)
    return None if folder is None else f"{folder}/{INDEX_FILE}"


def common_folder(shards: Sequence[str]) -> str | None:
    if any(shard.startswith(FOLDER) or (is_url(shard) and re.search(r"[?#]|::", shard)) for shard in shards):
        return None
    common: list[str] = []
    for parts in zip(*(folder_of(_whole(shard)).split("/") for shard in shards), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    is_here = not any(map(is_url, shards))
    if not is_here and len(common) < (3 if not common or common[0] != "file:" else 4):
        return None  # not even the bucket
    return "/".join(common)


def _whole(shard: str) -> str:
    return str(shard) if is_url(shard) else os.path.abspath(shard)


def name_in(place: str, shard: str) -> str:
    """What a shard is called in the index at `place`."""
    return _below(folder_of(_whole(place)), shard)


def _below(folder: str | None, shard: str) -> str:
    return _whole(shard).removeprefix(f"{folder}/")


def read_entries(place: str) -> dict[str, ShardEntry] | None:
    """The entries of the index at a path or URL, by the names of shards; None where there is none.

    Raises:
        ShardError: it is damaged, or its store does not answer.
    """
    data = _read(place)
    # Many web servers answer whatever they are asked for with a page.
    if data is None or (place.startswith(("http://", "https://")) and not data.startswith(b"PK")):
        return None
    try:
        return {entry.name: entry for entry in decoded(data)}
    except ValueError as error:
        reason = (
            "it is a file of another kind" if "allow_pickle" in str(error) else error
        )  # NumPy's advice is for others
        raise ShardError(
            f"{place}: damaged, or not an index of shards ({reason}); name another one, or delete it and "
            f"{AGAIN.partition(',')[0]}"
        ) from None


def _read(place: str) -> bytes | None:
    if not is_url(place):
        try:
            return local_path(place).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(place, error) from None
    try:
        files, path = file_system(place)
        return bytes(retried(partial(files.cat_file, path), is_first=True))
    except Exception as error:  # as in stores.asked
        # S3 refuses what is not there to whoever may not list the bucket.
        if is_absent(error) or is_refused(error):
            return None
        raise unreadable(place, error) from None


def write_entries(place: str, entries: Sequence[ShardEntry]) -> None:
    """Write an index, whole or not at all.

    Raises:
        UsageError: it cannot be written there.
    """
    data = encoded(entries)
    fix = "write it elsewhere with --out FILE, which training is told by loading: {index: FILE}"
    try:
        if not is_url(place):
            write_file(local_path(place), data)
            return
        with TemporaryDirectory() as folder:
            path = Path(folder) / INDEX_FILE
            path.write_bytes(data)
            put_file(path, place)
    except (OSError, ShardError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{place}: ")
        raise UsageError(f"{place}: the index cannot be written ({reason}); {fix}") from None


def entries_for(
    shards: Sequence[str], named: str | None = None, may_be_of_others: bool = False
) -> list[ShardEntry] | None:
    """The index's entry of each shard: of the index that is named, or of the one beside them; None where there is none.

    Args:
        shards: paths or URLs, already expanded.
        named: path or URL of an index.
        may_be_of_others: whether the one beside the shards is taken where the named one has none of them.

    Raises:
        UsageError: the one that is named is not there, or not of these shards.
        ShardError: it is damaged, lacks shards, or some were replaced since it was made.
    """
    place = named or place_beside(shards)
    entries = read_entries(place) if place is not None else None
    if place is None or entries is None:
        if named is None:
            return None
        raise UsageError(f"index: {named}: no such file; make it with `inpaint-data index SHARDS --out {named}`")
    folder = common_folder(shards)
    found = [_entry_of(shard, entries, place, folder) for shard in shards]
    missing = [shard for shard, entry in zip(shards, found, strict=True) if entry is None]
    if len(missing) == len(shards):
        if named is not None and may_be_of_others:
            return entries_for(shards)
        raise UsageError(f"{place}: it is the index of other shards, and has not even {missing[0]}; {AGAIN}")
    if missing:
        raise ShardError(f"{place}: it has no {missing[0]}, nor {len(missing) - 1} others of {len(shards)}; {AGAIN}")
    known = [entry for entry in found if entry is not None]
    for shard, entry in zip(shards, known, strict=True):
        if not is_still(entry, *status_now(shard)):
            raise ReplacedError(f"{shard}: it was replaced since its index was made, {place}; {AGAIN}")
    return known


def _entry_of(shard: str, entries: Mapping[str, ShardEntry], place: str, folder: str | None) -> ShardEntry | None:
    """A shard's entry: below the index's folder, by its whole path, or below the folder of all shards.

    The last is of an index that was made beside the shards, and copied.
    """
    names = (name_in(place, shard), _whole(shard), _below(folder, shard))
    return next((entries[name] for name in names if name in entries), None)


def status_now(shard: str) -> tuple[int | None, str | None]:
    """Size and stamp of a shard, as its store says them without reading it."""
    if is_url(shard):
        now = stored(shard)
        return now.size, now.stamp
    status = status_of_shard(shard)
    return status.st_size, f"mtime_ns {status.st_mtime_ns}"


def is_still(entry: ShardEntry, size: int | None, stamp: str | None) -> bool:
    """Whether a shard is the one of its entry, as far as sizes and stamps of one kind tell."""
    if size is not None and size != entry.size:
        return False
    return not stamp or not entry.stamp or _kind(stamp) != _kind(entry.stamp) or stamp == entry.stamp


def _kind(stamp: str) -> str:
    """Of shards that were copied to another store stamps of one kind are not those of the other."""
    match = re.match(r"(?:size \S+ )?(\w+)", stamp)
    return match[1] if match else ""
