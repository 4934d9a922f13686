"""Names of shards: which ones a pattern, a folder or a list names, and what can be known of each without reading it."""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import braceexpand

from inpaint_data.errors import ShardError, UsageError
from inpaint_data.folders.files import IMAGES, first_of
from inpaint_data.shards.store_errors import reason_of, unreadable
from inpaint_data.shards.stores import ARCHIVES, at_once, file_systems, find, is_there, is_url, stored, tars_in
from inpaint_data.shards.streams import anew_if_replaced, open_stream, status_of
from inpaint_data.shards.tar import TarStream


@dataclass(frozen=True)
class ShardIdentity:
    """The bytes that a shard was made of: their number and their sha256 in hex."""

    size: int
    sha256: str


class NamedShard(str):
    """A shard, by its path or URL, that has the file name of another one; `name` is what it is called in its stead.

    It stays the same through pickling, and through stages as the `__url__` of samples.
    """

    name: str

    def __new__(cls, url: str, name: str) -> "NamedShard":
        shard = super().__new__(cls, url)
        shard.name = name
        return shard

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.name


def expand_shards(spec: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """The shards that a brace pattern, a glob, a folder, a path, a URL of fsspec or a list of these names.

    In the order given; globs and folders sorted. A folder gives the tars in it and below it. Shards of
    one file name in several folders are `NamedShard`s: part-0/00000.tar and part-1/00000.tar are part-0-00000 and
    part-1-00000. Only names that are not the only one get their folder in front, and as many folders as it takes.

    Raises:
        UsageError: nothing or not everything is there, a shard comes twice, two have the same name and folders, a name
            is not a .tar, or a URL would run a command.
    """
    specs: Sequence[Any] = [spec] if isinstance(spec, str | os.PathLike) or not isinstance(spec, Sequence) else spec
    if strange := [item for item in specs if not isinstance(item, str | os.PathLike)]:
        raise UsageError(f"shards: {strange[0]!r} is not a path; give a path, a pattern, a folder, or a list of those")
    names = list(map(os.fspath, specs))
    expanded = at_once(_expand_one, names) if any(map(is_url, names)) else list(map(_expand_one, names))
    shards = list(chain.from_iterable(expanded))
    if not shards:
        raise UsageError("shards: the list is empty; name at least one shard")
    return _told_apart(shards)


def _told_apart(shards: Sequence[str]) -> list[str]:
    """The shards with different names."""
    names = list(map(shard_stem, shards))
    places: set[tuple[str, str]] = set()
    for shard, name in zip(shards, names, strict=True):
        if (name, _place(shard)) in places:
            raise UsageError(f"shards: {shard} is named twice; name it once")
        places.add((name, _place(shard)))
    folders = [0] * len(shards)  # how many stand in front of each name
    while (counts := Counter(names)) and len(counts) < len(names):
        for number, name in enumerate(names):
            if counts[name] > 1:
                folders[number] += 1
        longer = [_name_with(shard, count) for shard, count in zip(shards, folders, strict=True)]
        if longer == names:
            alike = [shard for shard, name in zip(shards, names, strict=True) if counts[name] > 1]
            raise UsageError(
                f"shards: {alike[0]} and {alike[1]} would both be cached as {shard_stem(alike[0])}.tar; rename one"
            )
        names = longer
    return [
        NamedShard(shard, name) if count else shard for shard, name, count in zip(shards, names, folders, strict=True)
    ]


def _name_with(shard: str, count: int) -> str:
    """The stem of a shard with up to so many of its folders in front."""
    if not count:
        return shard_stem(shard)
    path = _path(shard).partition("://")[2] if is_url(shard) else os.path.abspath(shard)
    folders = [folder for folder in path.split("/")[:-1] if folder]
    return "-".join([*folders[-count:], shard_stem(shard)]).lstrip(".")


def shard_identity(url: str) -> ShardIdentity:
    """Size and sha256 of a shard, streamed."""

    def read() -> ShardIdentity:
        with open_stream(url) as stream:
            source = TarStream(url, stream)
            return ShardIdentity(source.skip_to_end(), source.sha256.hexdigest())

    return anew_if_replaced(read)


def shard_size(url: str) -> int:
    """Size of a shard in bytes, without reading it where its store says it."""
    if not is_url(url):
        return status_of_shard(url).st_size
    size = stored(url).size
    return shard_identity(url).size if size is None else size


def shard_stamp(url: str) -> str:
    """A text that changes when the shard does: its times and size, the store's own stamp, or if need be its sha256."""
    if not is_url(url):
        status = status_of_shard(url)
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
    return stored(url).stamp or f"sha256 {shard_identity(url).sha256}"


def status_of_shard(path: str) -> os.stat_result:
    """What the system says of a local shard. Raises ShardError where it has none."""
    try:
        return status_of(path)
    except OSError as error:
        raise unreadable(path, error) from None


def shard_stem(url: str) -> str:
    """File name without `.tar`, and without what a web address has after ? or #; of a `NamedShard`, its name."""
    if isinstance(url, NamedShard):
        return url.name
    return _path(url).rstrip("/").rpartition("/")[2].removesuffix(".tar")


def _path(url: str) -> str:
    return re.split("[?#]", url)[0] if url.startswith(("http://", "https://")) else url


def _place(shard: str) -> str:
    return shard if is_url(shard) else os.path.realpath(shard)


def _expand_one(spec: str) -> list[str]:
    if not spec.strip():
        raise UsageError("shards: a name is empty; name a .tar, a folder, a glob or a brace pattern")
    if not is_url(spec):
        spec = os.path.expanduser(spec)
    if spec.strip().lower().startswith("pipe:"):
        raise UsageError(f"shards: {spec!r} would run a command; name a file or a URL that fsspec opens, such as s3://")
    if is_url(spec):
        _check_protocols(spec)
    try:
        names = list(braceexpand.braceexpand(spec)) if "{" in spec and not _is_there(spec) else [spec]
    except ValueError as error:
        raise UsageError(f"shards: {spec!r} is not a brace pattern: {error}; write it like {{0000..0012}}") from error
    matches = at_once(_matches, names) if is_url(spec) else list(map(_matches, names))
    missing = [name for name, shards in zip(names, matches, strict=True) if not shards]
    if missing:
        listed = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        share = f" ({len(missing)} of the {len(names)} in {spec})" if len(names) > 1 else ""
        raise UsageError(f"shards: no such file: {listed}{share}; correct the name, or make the shards first")
    return [shard for shards in matches for shard in shards]


def _in_folder(folder: str) -> list[str]:
    """The tars in a local folder, or the shards that its images are read as, or else archives of other kinds."""
    from inpaint_data.shards.folder_shards import folder_as_shards  # which builds on this module

    shards = tars_in(folder)
    if shards and shards[0].endswith(".tar"):
        if picture := first_of(Path(folder), IMAGES):
            where = os.path.relpath(os.path.dirname(shards[0]), folder)
            raise UsageError(
                f"shards: {folder} has shards ({shards[0]}) and pictures ({picture}), and one of them is meant; "
                f"give the shards as {os.path.normpath(os.path.join(folder, where, '*.tar'))}, or make shards of the "
                f"pictures with `inpaint-data pack {folder} --out shards`"
            )
        return shards
    try:
        found = folder_as_shards(folder) or shards
        if not found and first_of(Path(folder), IMAGES):
            raise UsageError(
                f"{folder}: none of its pictures can be used; `inpaint-data pack {folder} --dry_run` says why"
            )
        if not found and glob.glob(os.path.join(glob.escape(folder), "**", "*.parquet"), recursive=True):
            raise UsageError(
                f"{folder} has parquet tables; make shards of them with `inpaint-data pack {folder} --out DIR`"
            )
        return found
    except (UsageError, ShardError) as error:
        raise UsageError(f"shards: {error}") from None


def _check_protocols(url: str) -> None:
    for protocol in re.findall(r"(?:^|::)([A-Za-z][\w+.-]*)(?=::|://)", url):
        try:
            file_systems().get_filesystem_class(protocol)
        except (ValueError, ImportError) as error:
            reason = reason_of(f"{protocol}://", error)
            raise UsageError(f"shards: {url} cannot be opened: {reason}; see fsspec for the protocol's name") from None


def _is_there(name: str) -> bool:
    try:
        return is_there(name) if is_url(name) else os.path.exists(name)
    except ShardError as error:
        raise UsageError(f"shards: {error}") from None


def _matches(name: str) -> list[str]:
    """One file, the tars in a folder, or what a glob finds; nothing where a file is missing."""
    if is_url(name):
        can_list = not name.startswith(("http://", "https://")) and "::" not in name  # the web's ? is not a glob
        try:
            shards = find(name, can_list)
        except ShardError as error:
            raise UsageError(f"shards: {error}") from None
    elif os.path.isfile(name):
        shards = [name]
    elif os.path.isdir(name):
        shards = _in_folder(name)
    else:
        shards = sorted(glob.glob(name, recursive=True)) if any(map(name.__contains__, "*?[")) else None
    if shards == []:
        there = f"{name} has no .tar" if os.path.isdir(name) else f"there is no {name} with shards"
        raise UsageError(f"shards: {there}; name a folder or a pattern that has some")
    packed = [shard for shard in shards or [] if shard.lower().endswith(ARCHIVES)]
    if packed and packed == shards != [name]:
        raise UsageError(
            f"shards: {name} has no .tar, but {len(packed)} compressed, such as {packed[0]}; unpack .tar.gz and .tgz "
            "with gunzip, and what is in a .zip, then `inpaint-data pack` its folder"
        )
    for shard in shards or []:
        if not _path(shard).endswith(".tar"):
            raise UsageError(f"shards: {shard} does not end in .tar; unpack .tar.gz with gunzip, leave other files out")
    return shards or []
