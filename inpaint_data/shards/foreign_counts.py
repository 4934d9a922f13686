"""How many samples shards have, as what other tools wrote beside them says: webdataset's wids, Megatron-Energon.

wids: `{"wids_version": 1, "shardlist": [{"url": …, "nsamples": …}]}`, of `widsindex create` and by hand.
Energon: `.nv-meta/.info.json`, `{"shard_counts": {name: samples}}`, of `energon prepare`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inpaint_data.errors import ShardError
from inpaint_data.shards.index_files import common_folder
from inpaint_data.shards.stores import at_once, is_url, read_if_there

NAMES = ("shardindex.json", "dataset.json", "shards.json", ".nv-meta/.info.json")


def foreign_counts(shards: Sequence[str]) -> list[int] | None:
    """Samples of each shard, from the first file beside them that says it of all; None where there is none."""
    folder = common_folder(shards)
    if folder is None:
        return None
    for data in at_once(_read, [f"{folder}/{name}" for name in NAMES]):
        counts = _counts(data) if data is not None else {}
        of_files = {re.split("[/:]", name)[-1]: count for name, count in counts.items()}
        is_plain = len(of_files) == len(counts)  # no two of one file name
        found = [_count_of(shard, folder, counts, of_files if is_plain else {}) for shard in shards]
        if found and all(count is not None for count in found):
            return [count for count in found if count is not None]
    return None


def _read(place: str) -> bytes | None:
    """The bytes of a small file; None where there is none, or it may not be read: nobody needs it."""
    try:
        return read_if_there(place) if is_url(place) else Path(place).read_bytes()
    except (OSError, ShardError):
        return None


def _counts(data: bytes) -> Mapping[str, int]:
    """Samples of each shard by the name that the file has for it; nothing where it is of neither kind."""
    try:
        content: Any = json.loads(data)
        if "shard_counts" in content:
            counts = dict(content["shard_counts"])
        else:
            lists = [content, *content.get("datasets", [])]
            counts = {shard["url"]: shard["nsamples"] for part in lists for shard in part.get("shardlist", [])}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    is_counted = all(type(count) is int and count >= 0 and isinstance(name, str) for name, count in counts.items())
    return counts if is_counted else {}


def _count_of(shard: str, folder: str, counts: Mapping[str, int], of_files: Mapping[str, int]) -> int | None:
    """By its path below the folder, its whole URL, or its file's name: `widsindex` has names such as file:0.tar."""
    below = str(shard).removeprefix(f"{folder}/")
    names = (below, f"./{below}", str(shard))
    return next((counts[name] for name in names if name in counts), of_files.get(below))
