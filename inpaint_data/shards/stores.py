"""Stores: where bytes come from, a local path or whatever fsspec opens. A new kind of store is opened here."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from inpaint_data.errors import ShardError


def is_url(name: str) -> bool:
    return re.match(r"([A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://", name) is not None


def local_path(name: str | os.PathLike[str]) -> Path:
    """A path that a user gave, ~ expanded; shells do not where it is in a YAML, in quotes or behind an =."""
    return Path(os.path.expanduser(name))


def unreadable(url: str, error: Exception) -> ShardError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ShardError(f"{url}: {reason}; see that the shard is there and may be read, then start again")


@contextmanager
def open_stream(url: str) -> Iterator[IO[bytes]]:
    try:
        opener = _opener(url) if is_url(url) else None  # must outlive its stream
        stream = opener.open() if opener else open(url, "rb")  # noqa: SIM115 - closed below
    except Exception as error:  # as in TarStream.read
        raise unreadable(url, error) from error
    with stream:
        yield stream


def _opener(url: str) -> Any:
    import fsspec  # only what lies elsewhere needs it

    return fsspec.open(url, "rb")


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes [start, end) of a remote file.

    Raises:
        ShardError: it cannot be read, or ends before `end`.
    """
    import fsspec  # only what lies elsewhere needs it

    try:
        files, path = fsspec.core.url_to_fs(url)
        data = bytes(files.cat_file(path, start=start, end=end))
        if len(data) != end - start:
            raise OSError(f"it ends at byte {start + len(data)}, before byte {end}")
    except Exception as error:  # as in Mirror.copy
        raise unreadable(url, error) from error
    return data
