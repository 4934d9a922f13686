"""Who may write to a cache: the processes of one job at a time, and no dead ones for ever."""

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
    its own lock first and looks for those of other jobs then: of two jobs that start at once, none goes on unseen.

    Raises:
        CacheError: another job that lives holds it, or this job's process of that rank.
    """
    own = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "id": uuid.uuid4().hex,
        "job": job or uuid.uuid4().hex,
    }
    path = root / f"{LOCK}{rank}"
    while not _create(path, own):
        _refuse_or_bury(root, path)
    stopped = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, stopped), name="inpaint_data-lock", daemon=True)
    heart.start()
    try:
        for other in sorted(root.glob(f"{LOCK}[0-9]*")):
            holder = _holder(other)
            if other != path and holder is not None and holder.get("job") != own["job"]:
                _refuse_or_bury(root, other)
        yield
    finally:
        stopped.set()
        heart.join()
        with suppress(OSError):  # the folder may be gone or read-only by now
            if _holder(path) == own:
                path.unlink()


def _born(pid: int) -> str | None:
    """When the process started, in the kernel's ticks: a dead process's number may come again. None if unknown."""
    try:
        # The name, in brackets, may have spaces; the start time is the twentieth field after it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _create(path: Path, own: dict[str, Any]) -> bool:
    """Put the lock there in one step, whole; False when there is one. A hard link fails where a rename would not."""
    temporary = path.with_name(f".new{path.name}.{own['id']}")
    try:
        temporary.write_text(json.dumps(own))
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
    """Who the lock says holds it; None when it is gone, empty when it cannot be read."""
    try:
        holder = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _refuse_or_bury(root: Path, path: Path) -> None:
    """Refuse if the holder of that lock lives; else take the lock away. The caller looks again."""
    holder = _holder(path)
    if holder is None:
        return
    if _lives(path, holder):
        who = f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "somebody"
        raise CacheError(
            f"{root}: {who} is writing to this cache; wait for it, or stop it and start again "
            f"(one on another machine counts as dead {STALE / 60:.0f} minutes after its last sign of life)"
        )
    grave = path.with_name(f".old{path.name}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):  # somebody else was quicker
        os.rename(path, grave)
        if _holder(grave) == holder:
            grave.unlink()
        else:  # not the dead one's: somebody took it over between the look and the rename
            os.rename(grave, path)


def _lives(path: Path, holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname():
        return _seconds_since_sign(path) < STALE
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    born = _born(pid)
    return is_running(pid) and (born is None or holder.get("born") in (None, born))


def _seconds_since_sign(path: Path) -> float:
    """By the file system's own clock: those of two machines may differ."""
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
