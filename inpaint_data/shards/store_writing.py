"""What is written to stores: whole files, small ones, and those that only one may write."""

import uuid
from functools import partial
from pathlib import Path
from typing import Any

from inpaint_data.errors import ShardError
from inpaint_data.shards.store_errors import is_absent, retried, unreadable, unwritable
from inpaint_data.shards.stores import Stored, file_system, read_if_there, read_those_there, stored_of, within


def put_file(path: Path, url: str) -> None:
    """Copy a local file to a URL, and see that the store has it whole.

    Stores show an object when all of it is there; others, such as SFTP, may show a part, which its size tells. Large
    files go in parts, as the file system of fsspec does it.

    Raises:
        ShardError: it cannot be written.
    """
    try:
        files, there = file_system(url)
        size = path.stat().st_size
        retried(partial(files.put_file, str(path), there))
        files.invalidate_cache(there)
        has = retried(partial(files.info, there)).get("size")
    except Exception as error:  # every file system of fsspec has errors of its own
        raise unwritable(url, error) from None
    if has not in (None, size):
        raise ShardError(f"{url}: {has} bytes arrived of {size}; see what its store says, then start again")


def put_bytes(url: str, data: bytes) -> None:
    """Write a small file, in place of an older one.

    Raises:
        ShardError: it cannot be written.
    """
    try:
        files, there = file_system(url)
        retried(partial(files.pipe_file, there, data))
    except Exception as error:  # as above
        raise unwritable(url, error) from None


def put_if_absent(url: str, data: bytes) -> bool:
    """Write a small file if there is none of that name; False if there is one. Of several that try, one does.

    Args:
        data: unlike that of anybody else, so that an answer that was lost on its way is no refusal.

    Raises:
        ShardError: it cannot be written.
        NotImplementedError: the store, or fsspec's file system for it, replaces what is there.
    """
    try:
        files, there = file_system(url)
        if not _knows_create(files, there):
            raise NotImplementedError
        retried(partial(files.pipe_file, there, data, mode="create"))
    except FileExistsError:
        return read_if_there(url) == data
    except NotImplementedError:
        raise
    except Exception as error:  # as above
        raise unwritable(url, error) from None
    return True


_known: dict[tuple[str, str], bool] = {}  # file system and bucket -> whether one of two writers is refused


def _knows_create(files: Any, path: str) -> bool:
    """Whether a second file of one name is refused, which is tried once on each bucket."""
    place = (type(files).__name__, path.strip("/").partition("/")[0])
    if place not in _known:
        probe = f"{path.rpartition('/')[0]}/.probe-{uuid.uuid4().hex}"
        retried(partial(files.pipe_file, probe, b"1"))
        try:
            files.pipe_file(probe, b"2", mode="create")
            _known[place] = False
        except FileExistsError:
            _known[place] = True
        except (TypeError, ValueError, NotImplementedError, OSError) as error:
            if is_absent(error) or not _is_about_mode(error):
                raise
            _known[place] = False
        finally:
            retried(partial(files.rm_file, probe))
    return _known[place]


def _is_about_mode(error: Exception) -> bool:
    """Whether a file system does not know the word, as older ones do not."""
    return any(word in str(error) for word in ("mode", "IfNoneMatch", "Parameter validation"))


def remove(url: str) -> None:
    """Remove a file; one that is not there is removed already.

    Raises:
        ShardError: the store does not answer, or refuses.
    """
    try:
        files, there = file_system(url)
        retried(partial(files.rm_file, there))
        files.invalidate_cache(there)
    except Exception as error:  # as above
        if not is_absent(error):
            raise unwritable(url, error) from None


def files_in(url: str) -> dict[str, Stored]:
    """The files in a folder of a store and below it: name from there -> what the store says; none without a folder.

    Raises:
        ShardError: the store does not answer.
    """
    try:
        files, there = file_system(url)
        files.invalidate_cache()
        infos = retried(partial(files.find, there, detail=True), is_first=True)
    except Exception as error:  # as above
        if is_absent(error):
            return {}
        raise unreadable(url, error) from None
    start = there.strip("/") + "/"
    names = {path.lstrip("/").removeprefix(start): stored_of(info) for path, info in infos.items()}
    return dict(sorted(names.items()))


def files_that_start(url: str, start: str) -> dict[str, bytes]:
    """The small files in a folder of a store whose names begin so: name -> bytes.

    Raises:
        ShardError: the store does not answer.
    """
    try:
        files, there = file_system(url)
        files.invalidate_cache()
        paths = retried(partial(files.glob, f"{there.rstrip('/')}/{start}*"))
    except Exception as error:  # as above
        raise unreadable(url, error) from None
    return read_those_there(url, sorted(path.rpartition("/")[2] for path in paths))


def check_writable(url: str) -> None:
    """Raises ShardError, of one line, where nothing can be written to a folder of a store."""
    probe = within(url, ".writable")
    put_bytes(probe, b"")
    remove(probe)
