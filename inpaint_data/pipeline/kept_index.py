"""The index of shards that lie here, kept in the user's cache folder: only the first start reads their headers."""

import os
from collections.abc import Sequence
from pathlib import Path

from inpaint_data.errors import InpaintDataError
from inpaint_data.pipeline.image_indexing import Status, index_at
from inpaint_data.shards.image_index import ShardEntry
from inpaint_data.shards.index_files import common_folder
from inpaint_data.shards.mirror import default_folder, flock, name_of_contents
from inpaint_data.shards.naming import status_of_shard
from inpaint_data.shards.stores import FOLDER, is_url

WORTH = 2**30  # bytes of shards: the headers of less are read in a second
FOLDER_NAME = "index"


def kept_entries(shards: Sequence[str], mirror: str | None, with_sizes: bool) -> list[ShardEntry] | None:
    """The index's entry of each shard, made where there is none yet, or where shards are not what they were.

    Processes that begin together wait for the one that reads. The shards' own folder is never written to.

    Args:
        shards: paths, already expanded.
        mirror: the folder of copies, in which it lies too; None is the user's.
        with_sizes: whether the sizes of pictures are asked for.

    Returns:
        None where an index is not worth it or cannot be kept; headers then say what there is, and what is wrong.
    """
    if any(is_url(shard) or shard.startswith(FOLDER) for shard in shards):
        return None
    try:
        if sum(status_of_shard(shard).st_size for shard in shards) < WORTH:
            return None
        folder = Path(os.path.abspath(Path(mirror).expanduser() if mirror else default_folder().parent)) / FOLDER_NAME
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"{name_of_contents(str(common_folder(shards)), f'{with_sizes=}')}.npz"
        with place.with_suffix(".lock").open("a") as lock:
            flock(lock.fileno())
            try:
                return list(index_at(str(place), shards, _status_here, with_sizes).entries)
            finally:
                flock(lock.fileno(), hold=False)  # closing is not enough where a child was forked meanwhile
    except (OSError, ImportError, InpaintDataError):
        return None


def _status_here(shard: str) -> Status:
    """Size and stamp of a shard on this machine: the time of its last change, which no copying tool can set back."""
    status = status_of_shard(shard)
    return status.st_size, f"changed_ns {status.st_ctime_ns} {status.st_mtime_ns}"
