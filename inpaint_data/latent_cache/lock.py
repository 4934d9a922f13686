"""Lock of a cache: one job writes to it at a time, and the lock of a dead process does not last."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inpaint_data.durable import TEMPORARY, is_running
from inpaint_data.errors import CacheError

LOCK = ".lock-"
HEARTBEAT = 20.0  # seconds between signs of life
STALE = 300.0  # seconds without one after which a holder on another machine counts as dead

log = logging.getLogger(__name__)


@contextmanager
def locked(root: Path, rank: int = 0, job: str = "") -> Iterator[None]:
    """Hold the cache at `root` for process `rank` of `job` until the block ends.

    A lock is a file with its holder, touched as a sign of life. A holder where this process runs is dead when its
    process is gone; one on another machine when it has given no sign for five minutes. A lock that tells neither is
    watched for a minute: a torn one, one dated in the future, and one of this host before it started again or in
    another container. Each process makes its own lock first and then looks for those of other jobs, so two jobs that
    start at once see each other.

    Args:
        job: the same for all processes that may write at once, and for no others; nothing for a process that may not
            share the cache.

    Raises:
        CacheError: a living process of another job holds it, or of this job with the same rank.
    """
    holder = {
        "host": socket.gethostname(),
        "place": this_place(),
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
    try:
        heart.start()
        for other in sorted(root.glob(f"{LOCK}[0-9]*")):
            other_holder = _holder(other)
            if other != path and other_holder is not None and other_holder.get("job") != holder["job"]:
                _refuse_or_remove(root, other)
        yield
    finally:
        stopped.set()
        if heart.ident is not None:  # it may have found no memory to start in
            heart.join()
        with suppress(OSError):  # the folder may be gone or read-only by now
            if _holder(path) == holder:
                path.unlink()


@dataclass(frozen=True)
class Holder:
    """Who writes to a cache: the process and its host, its rank, whether it lives, and when it last gave a sign."""

    rank: int
    process: int | None
    host: str | None
    is_alive: bool
    seconds_since_sign: float


def holders_of(root: Path) -> list[Holder]:
    """Those who hold a cache, or died holding it, as far as can be told without waiting."""
    found = []
    for path in sorted(root.glob(f"{LOCK}[0-9]*")):
        holder, rank = _holder(path), path.name.removeprefix(LOCK)
        if holder is None or not rank.isdecimal():
            continue
        with suppress(OSError):
            age = max(0.0, time.time() - path.stat().st_mtime)
            pid = holder.get("pid")
            is_alive = age < STALE
            if holder.get("place") == this_place() and isinstance(pid, int):
                is_alive = _is_alive(path, holder)
            found.append(Holder(int(rank), pid, holder.get("host"), is_alive, age))
    return found


def this_place() -> str:
    """Where a process number means this process: the host, and where Linux tells them its start and the namespace.

    Containers may share a host's name, and machines of a cluster a container's.
    """
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """When the process started, in the kernel's ticks, since process numbers are used again. None if unknown."""
    try:
        # The name, in brackets, may have spaces; the start time is the twentieth field after it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _create(path: Path, holder: dict[str, Any]) -> bool:
    """Create the lock; False if there is one. A hard link would do it whole, but exFAT and some shares have none."""
    try:
        file = path.open("x")
    except FileExistsError:
        return False
    except OSError as error:
        raise CacheError(f"{path}: {error.strerror}; the folder must be writable") from None
    try:
        with file:
            file.write(json.dumps(holder))
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise CacheError(f"{path}: {error.strerror}; the folder must be writable") from None
        raise
    return _holder(path) == holder  # else it was taken for torn, and is another's by now


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
        holder = _holder(path) or holder  # it may have been written only now
        known = {"pid", "host"} <= holder.keys()
        writer = f"process {holder['pid']} on {holder['host']}" if known else "another process"
        raise CacheError(
            f"{root}: {writer} is writing to this cache; wait for it, or stop it and start again "
            f"(one on another machine counts as dead {STALE / 60:.0f} minutes after its last sign of life)"
        )
    aside = _temporary(path, "old")
    with suppress(FileNotFoundError):  # another process was quicker
        os.rename(path, aside)
        if _holder(aside) == holder:
            aside.unlink()
        else:  # a new lock, made between the look and the rename
            os.rename(aside, path)


def _is_alive(path: Path, holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if holder.get("place") == this_place() and isinstance(pid, int):
        start = _start_of(pid)
        return pid > 0 and is_running(pid) and (start is None or holder.get("born") in (None, start))
    age = _seconds_since_sign(path)
    if age >= STALE:
        return False
    if holder.get("host") in (None, socket.gethostname()) or age < -HEARTBEAT:
        return _gives_a_sign(path)
    return True


def _gives_a_sign(path: Path) -> bool:
    """Watch a lock until there is a sign of life, for three heartbeats."""
    log.warning("%s: does not tell whether its holder is alive; watching it for %.0f s", path, 3 * HEARTBEAT)
    before, end = _state(path), time.monotonic() + 3 * HEARTBEAT
    while time.monotonic() < end:
        time.sleep(min(HEARTBEAT / 10, 1))
        if (now := _state(path)) != before:
            return now is not None
    return False


def _state(path: Path) -> tuple[str, int] | None:
    """What a sign of life changes; None once the lock is gone."""
    try:
        # Read first: a client of NFS asks its server again when a file is opened.
        return path.read_text(errors="replace"), path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    except OSError:
        return "", 0


def _seconds_since_sign(path: Path) -> float:
    """Measured by the clock of the file system, since those of two machines may differ."""
    probe = _temporary(path, "now")
    try:
        with probe.open("x") as file:
            return os.fstat(file.fileno()).st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return STALE
    finally:
        probe.unlink(missing_ok=True)


def _temporary(path: Path, purpose: str) -> Path:
    """A name beside a lock, which the next run takes for a dead process's leftover should this one be killed."""
    return path.with_name(f".{purpose}{path.name}.{uuid.uuid4().hex}.{os.getpid()}{TEMPORARY}")


def _beat(path: Path, stopped: threading.Event) -> None:
    while not stopped.wait(HEARTBEAT):
        with suppress(OSError):  # the folder may be away for a while; the next beat tries again
            os.utime(path)
