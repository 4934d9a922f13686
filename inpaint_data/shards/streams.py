"""Streams: the bytes of a shard, from its start or a range of them, whole or an error."""

import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import IO, Any, TypeVar

from inpaint_data.errors import ReplacedError, ShardError
from inpaint_data.shards.store_errors import REPLACED, Broken, retried, unreadable
from inpaint_data.shards.stores import FOLDER, asked, file_system, forget, is_url, stored, stored_now, stored_of

T = TypeVar("T")
PIECE = 2**20


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
    """The bytes of a file from its start; those of a remote one cannot be skipped.

    Raises:
        ShardError: it cannot be opened. Reading a remote one raises it too, and ReplacedError where the file was
            replaced meanwhile.
    """
    stream: Any
    with asked(url):
        if url.startswith(FOLDER):
            files, path = file_system(url)
            stream = files.open(path)
        elif is_url(url):
            stream = _Remote(url)
        else:
            status_of(url)
            stream = open(url, "rb")  # noqa: SIM115 - closed below
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
                if stored_of(self._file.details) != self._stored:
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
            forget(self._url)
        return named


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes [start, end) of a remote file.

    Raises:
        ShardError: it cannot be read, or ends before `end`.
    """
    with asked(url):
        files, path = file_system(url)
        data = bytes(retried(partial(files.cat_file, path, start=start, end=end)))
        if len(data) > end - start:
            data = data[start:end]  # the whole file, from a server without ranges
        if len(data) != end - start:
            raise OSError(f"it ends at byte {start + len(data)}, before byte {end}")
    return data


def gives_ranges(url: str) -> bool:
    """Whether a store gives a part of a file: some web servers always send the whole of it.

    Raises:
        ShardError: it cannot be read.
    """
    if not url.startswith(("http://", "https://")):
        return True
    with asked(url):
        files, path = file_system(url)

        def ask() -> bool:
            with files.open(path, "rb", block_size=1) as file:
                file.seek(1)
                try:
                    return len(file.read(1)) == 1
                except ValueError:  # so fsspec says of a server that has none
                    return False

        return bool(retried(ask))


def anew_if_replaced(read: Callable[[], T]) -> T:
    """What `read` gives, begun anew once where the file was replaced while it was read."""
    try:
        return read()
    except ReplacedError:
        return read()
