"""Lock of a cache: one job writes to it at a time, and the lock of a dead process does not last."""

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inpaint_data.durable import is_running
from inpaint_data.errors import CacheError

LOCK = ".lock-"
HEARTBEAT = 20.0  # seconds between signs of life
STALE = 300.0  # seconds without one after which a holder on another machine counts as dead


@contextmanager
def locked(root: Path, rank: int = 0, job: str = "") -> Iterator[None]:
    """Hold the cache at `root` for process `rank` of `job` until the block ends.

    A lock is a file with the holder's host and process, touched as a sign of life. A holder on this machine is dead
    when its process is gone; one on another machine when it has given no sign for five minutes. Each process makes
    its own lock first and then looks for those of other jobs, so two jobs that start at once see each other.

    Raises:
        CacheError: a living process of another job holds it, or of this job with the same rank.
    """
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "born": _start_of(os.getpid()),
        "id": uuid.uuid4().hex,
        "job": job or uuid.uuid4().hex,
    }
    path = root / f"{LOCK}{rank}"
    while not _create(path, holder):
        _refuse_or_remove(root, path)
    stopped = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, stopped), name="inpaint_data-lock", daemon=True)
    heart.start()
    try:
        for other in sorted(root.glob(f"{LOCK}[0-9]*")):
            other_holder = _holder(other)
            if other != path and other_holder is not None and other_holder.get("job") != holder["job"]:
                _refuse_or_remove(root, other)
        yield
    finally:
        stopped.set()
        heart.join()
        with suppress(OSError):  # the folder may be gone or read-only by now
            if _holder(path) == holder:
                path.unlink()


def _start_of(pid: int) -> str | None:
    """When the process started, in the kernel's ticks, since process numbers are used again. None if unknown."""
    try:
        # The name, in brackets, may have spaces; the start time is the twentieth field after it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _create(path: Path, holder: dict[str, Any]) -> bool:
    """Create the lock in one step, whole; False if there is one. A hard link fails where a rename would replace it."""
    temporary = path.with_name(f".new{path.name}.{holder['id']}")
    try:
        temporary.write_text(json.dumps(holder))
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise CacheError(f"{path}: {error.strerror}; the folder must be writable and allow hard links") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return True


def _holder(path: Path) -> dict[str, Any] | None:
    """The holder of a lock; None if the lock is gone, empty if it cannot be read."""
    try:
        holder = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _refuse_or_remove(root: Path, path: Path) -> None:
    """Raise CacheError if the holder of that lock is alive; else remove the lock. The caller tries again."""
    holder = _holder(path)
    if holder is None:
        return
    if _is_alive(path, holder):
        known = {"pid", "host"} <= holder.keys()
        writer = f"process {holder['pid']} on {holder['host']}" if known else "another process"
        raise CacheError(
            f"{root}: {writer} is writing to this cache; wait for it, or stop it and start again "
            f"(one on another machine counts as dead {STALE / 60:.0f} minutes after its last sign of life)"
        )
    aside = path.with_name(f".old{path.name}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):  # another process was quicker
        os.rename(path, aside)
        if _holder(aside) == holder:
            aside.unlink()
        else:  # a new lock, made between the look and the rename
            os.rename(aside, path)


def _is_alive(path: Path, holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname():
        return _seconds_since_sign(path) < STALE
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    start = _start_of(pid)
    return is_running(pid) and (start is None or holder.get("born") in (None, start))


def _seconds_since_sign(path: Path) -> float:
    """Measured by the clock of the file system, since those of two machines may differ."""
    probe = path.with_name(f".now{path.name}.{uuid.uuid4().hex}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return STALE
    finally:
        probe.unlink(missing_ok=True)


def _beat(path: Path, stopped: threading.Event) -> None:
    while not stopped.wait(HEARTBEAT):
        with suppress(OSError):  # the folder may be away for a while; the next beat tries again
            os.utime(path)
