"""Stores: where bytes come from, a local path or whatever fsspec opens. A new kind of store is opened here."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from inpaint_data.errors import UsageError
from inpaint_data.folders.files import files_below
from inpaint_data.shards.store_errors import is_absent, retried, unreadable

T = TypeVar("T")
SILENCE = 60  # seconds without a byte from a web server, after which a read has failed

FOLDER = "folder://"  # shards that are a folder of images in truth, see folder_shards.py
AT_A_TIME = 16  # questions to a store
ARCHIVES = (".tar.gz", ".tgz", ".zip")  # that people have where a .tar belongs
CACHE_FILE = "cache.json"  # what a folder of cached latents has
_OF_CONTENTS = ("etag", "generation", "md5hash", "contentmd5", "blobid", "sha", "checksum")
_TIMES = ("lastmodified", "mtime", "modified", "updated", "created")
_OF_TIMES = (*_TIMES, "ino")
_seen: dict[str, "Stored"] = {}  # by the last listing


@dataclass(frozen=True)
class Stored:
    """A file as a store describes it. None is what the store does not say.

    Attributes:
        size: in bytes.
        stamp: a text that changes when the contents do.
        etag: of HTTP, as the store writes it.
        modified: when it was written, in seconds since 1970 by the store's clock.
    """

    size: int | None
    stamp: str | None
    etag: str | None = field(default=None, compare=False)
    modified: float | None = field(default=None, compare=False)


def is_url(name: str) -> bool:
    return re.match(r"([A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://", name) is not None


def is_remote(name: str) -> bool:
    """Whether a shard's bytes lie elsewhere: it can only be read from its start, and copies of it are kept here."""
    return is_url(name) and not name.startswith(FOLDER)


def stored(url: str) -> Stored:
    """What the last listing saw of a remote file, or what the store says now.

    Raises:
        ShardError: the store does not answer, or has no such file.
    """
    return _seen.get(url) or stored_now(url)


@contextmanager
def asked(url: str) -> Iterator[None]:
    """A question to the store of a URL: whatever goes wrong in it becomes a ShardError that names the URL."""
    try:
        yield
    except Exception as error:  # every file system of fsspec has errors of its own
        raise unreadable(url, error) from None


def forget(url: str) -> None:
    """What was seen of a file is old."""
    _seen.pop(url, None)
    files, path = file_system(url)
    files.invalidate_cache(path)


def stored_now(url: str) -> Stored:
    """What the store says now of a remote file.

    Raises:
        ShardError: see `stored`.
    """
    with asked(url):
        files, path = file_system(url)
        files.invalidate_cache(path)
        return stored_of(retried(partial(files.info, path)))


def find(url: str, may_list: bool = True) -> list[str] | None:
    """The remote files that a URL names: itself, those of `tars_in` a folder, or what a pattern finds; None if absent.

    What the store says of each is kept for `stored`.

    Raises:
        ShardError: the store does not answer.
    """
    try:
        files, path = file_system(url)
        files.invalidate_cache()
        is_pattern = may_list and any(character in path for character in "*?[")
        if is_pattern and not retried(partial(files.exists, path), is_first=True):
            return _keep(files, retried(partial(files.glob, path, detail=True), is_first=True))
        info = retried(partial(files.info, path), is_first=True)
        if info["type"] == "directory":
            if not may_list:
                return None
            infos = retried(partial(files.find, path, detail=True), is_first=True)
            return _keep(files, {name: infos[name] for name in _shards_among(path.rstrip("/"), infos)})
        _seen[url] = stored_of(info)
        return [url]
    except Exception as error:  # as in asked
        if is_absent(error):
            return None
        raise unreadable(url, error) from None


def tars_in(folder: str) -> list[str]:
    """The tars in a local folder and below it, or else its archives of other kinds; sorted.

    Caches of latents that lie in it are no shards of images.
    """
    names = {name: os.path.join(folder, name) for name in files_below(Path(folder))}
    return sorted(names[name] for name in _shards_among("", names))


def _shards_among(folder: str, names: Iterable[str]) -> list[str]:
    """The tars among the files of a folder, or else the archives; without those of caches in it."""
    caches = tuple(f"{name.rpartition('/')[0]}/" for name in names if name.rpartition("/")[2] == CACHE_FILE)
    caches = tuple(cache for cache in caches if cache.strip("/") != folder.strip("/"))
    own = [name for name in names if not name.startswith(caches)]
    tars = [name for name in own if name.endswith(".tar")]
    return tars or [name for name in own if name.lower().endswith(ARCHIVES)]


def _keep(files: Any, infos: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The URLs of what a store has listed; what it says of them is kept."""
    for path, info in infos.items():
        if _marks(info, _OF_CONTENTS):  # times look otherwise when a file is asked for alone
            _seen[files.unstrip_protocol(path)] = stored_of(info)
    return sorted(files.unstrip_protocol(path) for path, info in infos.items() if info["type"] == "file")


def at_once(ask: Callable[[str], T], urls: Sequence[str]) -> list[T]:
    """What a question to a store gives for each URL, many at a time; the first error of them in their order."""
    if len(urls) < 2:
        return list(map(ask, urls))
    with ThreadPoolExecutor(AT_A_TIME, "inpaint_data-ask") as pool:
        return list(pool.map(ask, urls))


def is_there(url: str) -> bool:
    """Whether a store has a file or a folder of that name.

    Raises:
        ShardError: the store does not answer.
    """
    with asked(url):
        files, path = file_system(url)
        return bool(retried(partial(files.exists, path), is_first=True))


def read_if_there(url: str) -> bytes | None:
    """The bytes of a small remote file; None where there is none.

    Raises:
        ShardError: the store does not answer.
    """
    try:
        files, path = file_system(url)
        return bytes(retried(partial(files.cat_file, path), is_first=True))
    except Exception as error:  # as in asked
        if is_absent(error):
            return None
        raise unreadable(url, error) from None


def read_those_there(folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """The small files of those names in a remote folder, many at a time: name -> bytes; without those that are gone.

    Raises:
        ShardError: the store does not answer.
    """
    contents = at_once(lambda name: read_if_there(within(folder, name)), names)
    return {name: data for name, data in zip(names, contents, strict=True) if data is not None}


def read_folder(url: str, suffix: str) -> dict[str, bytes]:
    """The files of a remote folder whose names end so: name -> bytes; none where there is no such folder.

    Raises:
        ShardError: the store does not answer.
    """
    try:
        files, path = file_system(url)
        files.invalidate_cache()
        names = retried(partial(files.ls, path, detail=False), is_first=True)
        paths = [path for path in names if path.endswith(suffix)]
        return dict(
            at_once(lambda path: (path.rpartition("/")[2], bytes(retried(partial(files.cat_file, path)))), paths)
        )
    except Exception as error:  # as in asked
        if is_absent(error):
            return {}
        raise unreadable(url, error) from None


def within(folder: str, name: str) -> str:
    """The path or URL of a file in a folder; the query of a web address stays behind its path."""
    path, mark, query = folder.partition("?") if folder.startswith(("http://", "https://")) else (folder, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def folder_of(file: str) -> str:
    """The folder of a file, of a path or a URL; without the query of a web address, which is the file's."""
    path = file.partition("?")[0] if file.startswith(("http://", "https://")) else file
    return path.rpartition("/")[0] or "."


def file_systems() -> Any:
    """fsspec, which knows our own kind of URL too."""
    import fsspec  # only what lies elsewhere needs it

    fsspec.register_implementation("folder", "inpaint_data.shards.folder_shards.FolderShards", clobber=True)
    return fsspec


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path there."""
    fsspec = file_systems()
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # Without a word for as long a connection is broken; fsspec's own limit is five minutes for a whole file.
        known = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        options["client_kwargs"] = {"timeout": timeout, **known}
    files, path = fsspec.core.url_to_fs(url, **options)
    return files, path


def local_path(name: str | os.PathLike[str]) -> Path:
    """A path that a user gave, ~ expanded; shells do not where it is in a YAML, in quotes or behind an =."""
    return Path(os.path.expanduser(name))


def file_here(name: str, setting: str) -> Path:
    """The path of a file that a setting names to be written here.

    Raises:
        UsageError: it is a URL.
    """
    if is_url(name):
        raise UsageError(f"{setting}: {name} is a URL, and this is written here; name a file, and copy it there")
    return local_path(name)


def place_of(name: str) -> str:
    """A folder that a user named to write to: a URL, or a local path, ~ expanded and that of a file: URL."""
    if not is_url(name):
        return str(local_path(name))
    if re.match("(file|local)://", name):
        return str(file_system(name)[1])
    return name.rstrip("/")


def stored_of(info: Mapping[str, Any]) -> Stored:
    """What a store's own words for a file say of it."""
    size, marks = info.get("size"), _marks(info, _OF_CONTENTS) or _marks(info, _OF_TIMES)
    stamp = " ".join([f"size {size}", *marks]) if marks else None
    return Stored(size, stamp, info.get("ETag"), _modified(info))


def _modified(info: Mapping[str, Any]) -> float | None:
    for name, value in info.items():
        if re.sub("[^a-z]", "", str(name).lower()) in _TIMES:
            with suppress(TypeError, ValueError):
                when = datetime.fromisoformat(value) if isinstance(value, str) else value
                return when.timestamp() if isinstance(when, datetime) else float(when)
    return None


def _marks(info: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The fields of those names, which every store spells in its own way."""
    fields = {re.sub("[^a-z0-9]", "", str(name).lower()): value for name, value in info.items()}
    return [f"{name} {str(fields[name]).strip(chr(34))}" for name in names if fields.get(name)]
