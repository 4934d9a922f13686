"""Stores: where bytes come from, a local path or whatever fsspec opens. A new kind of store is opened here."""

import glob
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from inpaint_data.errors import ReplacedError, ShardError, UsageError
from inpaint_data.shards.store_errors import REPLACED, Broken, is_absent, retried, unreadable

T = TypeVar("T")
SILENCE = 60  # seconds without a byte from a web server, after which a read has failed

AT_A_TIME = 16  # questions to a store
PIECE = 2**20
_OF_CONTENTS = ("etag", "generation", "md5hash", "contentmd5", "blobid", "sha", "checksum")
_OF_TIMES = ("lastmodified", "mtime", "modified", "updated", "created", "ino")
_seen: dict[str, "Stored"] = {}  # by the last listing


@dataclass(frozen=True)
class Stored:
    """A file as a store describes it. None is what the store does not say.

    Attributes:
        size: in bytes.
        stamp: a text that changes when the contents do.
        etag: of HTTP, as the store writes it.
    """

    size: int | None
    stamp: str | None
    etag: str | None = field(default=None, compare=False)


def is_url(name: str) -> bool:
    return re.match(r"([A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://", name) is not None


def stored(url: str) -> Stored:
    """What the last listing saw of a remote file, or what the store says now.

    Raises:
        ShardError: the store does not answer, or has no such file.
    """
    return _seen.get(url) or stored_now(url)


def stored_now(url: str) -> Stored:
    """What the store says now of a remote file.

    Raises:
        ShardError: see `stored`.
    """
    try:
        files, path = file_system(url)
        files.invalidate_cache(path)
        return _stored(retried(partial(files.info, path)))
    except Exception as error:  # every file system of fsspec has errors of its own
        raise unreadable(url, error) from None


def find(url: str, may_list: bool = True) -> list[str] | None:
    """The remote files that a URL names: itself, the tars of a folder, or what a pattern finds; None if it is absent.

    What the store says of each is kept for `stored`.

    Raises:
        ShardError: the store does not answer.
    """
    try:
        files, path = file_system(url)
        files.invalidate_cache()
        is_pattern = may_list and any(character in path for character in "*?[")
        if is_pattern and not retried(partial(files.exists, path), is_first=True):
            return _listed(files, path)
        info = retried(partial(files.info, path), is_first=True)
        if info["type"] == "directory":
            return _listed(files, f"{glob.escape(path.rstrip('/'))}/*.tar") if may_list else None
        _seen[url] = _stored(info)
        return [url]
    except Exception as error:  # as in stored_now
        if is_absent(error):
            return None
        raise unreadable(url, error) from None


def _listed(files: Any, pattern: str) -> list[str]:
    infos = retried(partial(files.glob, pattern, detail=True), is_first=True)
    for path, info in infos.items():
        if _marks(info, _OF_CONTENTS):  # times look otherwise when a file is asked for alone
            _seen[files.unstrip_protocol(path)] = _stored(info)
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
    try:
        files, path = file_system(url)
        return bool(retried(partial(files.exists, path), is_first=True))
    except Exception as error:  # as in stored_now
        raise unreadable(url, error) from None


def read_if_there(url: str) -> bytes | None:
    """The bytes of a small remote file; None where there is none.

    Raises:
        ShardError: the store does not answer.
    """
    try:
        files, path = file_system(url)
        return bytes(retried(partial(files.cat_file, path), is_first=True))
    except Exception as error:  # as in stored_now
        if is_absent(error):
            return None
        raise unreadable(url, error) from None


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
    except Exception as error:  # as in stored_now
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


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path there."""
    import fsspec  # only what lies elsewhere needs it

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


def local_root(root: str | os.PathLike[str]) -> Path:
    """The folder of a cache that must lie here.

    Raises:
        UsageError: it is a URL.
    """
    if is_url(os.fspath(root)):
        raise UsageError(f"{root}: is a URL, and this works on a local folder; copy the cache here and name that")
    return local_path(root)


def status_of(path: str) -> os.stat_result:
    """What the system says of a local file.

    Raises:
        OSError: there is none, or it is no plain file: a pipe would wait for its writer, /dev/zero never end.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a file")
    return status


@contextmanager
def open_stream(url: str) -> Iterator[IO[bytes]]:
    """The bytes of a file from its start; only those of a local one can be skipped.

    Raises:
        ShardError: it cannot be opened. Reading a remote one raises it too, and ReplacedError where the file was
            replaced meanwhile.
    """
    try:
        if not is_url(url):
            status_of(url)
        stream: Any = _Remote(url) if is_url(url) else open(url, "rb")  # noqa: SIM115 - closed below
    except Exception as error:  # as in stored_now
        raise unreadable(url, error) from None
    with closing(stream):
        yield stream


class _Remote:
    """The bytes of a remote file, from its start to its end: those of one file, or an error.

    Where a connection breaks it is read on from the byte that was reached, if the store can do that and says that the
    file is still the same; otherwise from the start, and the bytes that were read before are compared.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._stored = stored(url)
        self._file: Any = None
        self._offset = self._checksum = 0
        self._has_ranges = self._stored.stamp is not None
        self._has_ended = self._is_pinned = False
        try:
            retried(self._open)
        except Exception as error:  # as in stored_now
            raise self._named(error) from None

    def read(self, count: int) -> bytes:
        """Up to that many bytes; none at the end."""
        if self._has_ended:
            return b""
        try:
            piece = retried(partial(self._read, count))
        except Exception as error:  # as in stored_now
            raise self._named(error) from None
        self._offset += len(piece)
        self._checksum = zlib.crc32(piece, self._checksum)
        if not piece:
            if not self._is_pinned and stored_now(self._url) != self._stored:
                raise self._named(self._replaced())
            self._has_ended = True
        return piece

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):  # its connection may be gone
                file.close()

    def _read(self, count: int) -> bytes:
        if self._file is None:
            self._open()
        try:
            piece = bytes(self._file.read(count))
            if not piece and self._stored.size is not None and self._offset < self._stored.size:
                raise Broken(f"it ends at byte {self._offset}, before byte {self._stored.size}")
        except Exception as error:
            self.close()
            if isinstance(error, ValueError) and self._has_ranges:  # so it says of a server that has none
                self._has_ranges = False
                raise Broken(str(error)) from None
            raise
        return piece

    def _open(self) -> None:
        """Open it where reading stopped."""
        if self._offset and stored_now(self._url) != self._stored:
            raise self._replaced()
        files, path = file_system(self._url)
        self._file = files.open(path, "rb", **(self._web_options(files) if "http" in files.protocol else {}))
        try:
            if "IfMatch" in getattr(self._file, "read_kw", {}):  # s3fs asks for this very object with every piece
                self._is_pinned = True
                if _stored(self._file.details) != self._stored:
                    raise self._replaced()
            if not self._offset:
                return
            if self._has_ranges:
                self._file.seek(self._offset)
            else:
                self._skip_what_was_read()
        except Exception:
            self.close()
            raise

    def _web_options(self, files: Any) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self._stored.size:
            options["size"] = self._stored.size  # or it asks again
        if not self._has_ranges:
            options["block_size"] = 0  # as one answer
        if self._stored.etag and not self._stored.etag.startswith("W/"):
            options["headers"] = {**files.kwargs.get("headers", {}), "If-Match": self._stored.etag}
        return options

    def _skip_what_was_read(self) -> None:
        left, checksum = self._offset, 0
        while left > 0:
            piece = self._file.read(min(left, PIECE))
            if not piece:
                raise Broken("it ended earlier this time")
            left, checksum = left - len(piece), zlib.crc32(piece, checksum)
        if checksum != self._checksum:
            raise self._replaced()

    def _replaced(self) -> ReplacedError:
        return ReplacedError(f"{self._url}: {REPLACED}")

    def _named(self, error: Exception) -> ShardError:
        named = unreadable(self._url, error)
        if isinstance(named, ReplacedError):  # then what was seen of it is old
            _seen.pop(self._url, None)
            files, path = file_system(self._url)
            files.invalidate_cache(path)
        return named


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes [start, end) of a remote file.

    Raises:
        ShardError: it cannot be read, or ends before `end`.
    """
    try:
        files, path = file_system(url)
        data = bytes(retried(partial(files.cat_file, path, start=start, end=end)))
        if len(data) > end - start:
            data = data[start:end]  # the whole file, from a server without ranges
        if len(data) != end - start:
            raise OSError(f"it ends at byte {start + len(data)}, before byte {end}")
    except Exception as error:  # as in stored_now
        raise unreadable(url, error) from None
    return data


def anew_if_replaced(read: Callable[[], T]) -> T:
    """What `read` gives, begun anew once where the file was replaced while it was read."""
    try:
        return read()
    except ReplacedError:
        return read()


def _stored(info: Mapping[str, Any]) -> Stored:
    size, marks = info.get("size"), _marks(info, _OF_CONTENTS) or _marks(info, _OF_TIMES)
    return Stored(size, " ".join([f"size {size}", *marks]) if marks else None, info.get("ETag"))


def _marks(info: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The fields of those names, which every store spells in its own way."""
    fields = {re.sub("[^a-z0-9]", "", str(name).lower()): value for name, value in info.items()}
    return [f"{name} {str(fields[name]).strip(chr(34))}" for name in names if fields.get(name)]
