"""Lock of a cache: one job writes to it at a time, and the lock of a dead process does not last."""

import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inpaint_data.durable import is_running
from inpaint_data.errors import CacheError, ShardError
from inpaint_data.latent_cache.lock_boards import Board, board_of

LOCK = ".lock-"
CLAIM = ".claim-"
HEARTBEAT = 20.0  # seconds between signs of life
STALE = 300.0  # seconds without one after which a holder on another machine counts as dead

log = logging.getLogger(__name__)


class Lock:
    """A cache that is held, and the shards of it that this process does.

    Of the processes of one job each claims a shard before it does it. A claim counts as long as its process lives, so
    the others do what a dead one had in hand.
    """

    def __init__(self, board: Board, rank: int, holder: Mapping[str, Any]) -> None:
        self._board, self._name, self._claimed = board, f"{LOCK}{rank}", set[str]()
        self._data = json.dumps(holder).encode()
        self._claim = json.dumps({"rank": rank, "id": holder["id"]}).encode()

    def check(self) -> None:
        """Raises CacheError if another job has taken the lock, as of a process that had been still for too long."""
        if self._board.read(self._name) not in (self._data, b""):
            raise CacheError(
                f"{self._board}: this process was still for so long that its lock is gone, and another job may have it "
                "now; run the command again, finished shards are kept"
            )

    def claim(self, stem: str) -> bool:
        """Whether the shard is this process's to do; False where another one does it."""
        name = f"{CLAIM}{_short(stem)}"
        while not self._board.create(name, self._claim):
            data = self._board.read(name)
            if data == self._claim:
                break
            if data is not None:
                if self._is_of_the_living(data):
                    return False
                self._board.remove(name, data)
        self._claimed.add(name)
        return True

    def release(self, stem: str) -> None:
        """The shard is done, or somebody else may do it."""
        name = f"{CLAIM}{_short(stem)}"
        if name in self._claimed:
            self._claimed.discard(name)
            self._board.give_back(name, self._claim)

    def has_company(self) -> bool:
        """Whether other processes of the job have a lock."""
        return any(name != self._name for name in filter(_is_a_lock, self._board.names(LOCK)))

    def _is_of_the_living(self, data: bytes) -> bool:
        claim = _fields(data)
        name = f"{LOCK}{claim.get('rank')}"
        holder = _holder(self._board, name)
        return holder is not None and holder.get("id") == claim.get("id") and _is_alive(self._board, name, holder)

    def clear_claims(self) -> None:
        """Take away those of dead processes, where this one is alone."""
        for name in self._board.names(CLAIM):
            self._board.remove(name, self._board.read(name))

    def clear_dead_claims(self) -> None:
        """Take away those that processes left which died between a shard's commit and the end of its claim."""
        with suppress(OSError, ShardError):  # a store that is away now: nobody minds what is left
            for name in self._board.names(CLAIM):
                data = self._board.read(name)
                if data is not None and not self._is_of_the_living(data):
                    self._board.remove(name, data)

    def end(self) -> None:
        """Give everything back."""
        with suppress(OSError, ShardError):  # the folder may be gone or read-only by now
            for name in sorted(self._claimed):
                self._board.give_back(name, self._claim)
            self._board.give_back(self._name, self._data)


@contextmanager
def locked(root: Path | str, rank: int = 0, job: str = "") -> Iterator[Lock]:
    """Hold the cache at `root` for process `rank` of `job` until the block ends.

    A lock is a file or an object with its holder, touched as a sign of life. A holder where this process runs is dead
    when its process is gone; one on another machine when it has given no sign for five minutes. A lock that tells
    neither is watched for a minute: a torn one, one dated in the future, and one of this host before it started again
    or in another container. Each process makes its own lock first and then looks for those of other jobs, so two jobs
    that start at once see each other.

    Args:
        root: the cache's folder; a text is its URL.
        job: the same for all processes that may write at once, and for no others; nothing for a process that may not
            share the cache.

    Raises:
        CacheError: a living process of another job holds it, or of this job with the same rank; or its store has no
            way to keep two apart.
        ShardError: its store does not answer.
    """
    holder = {
        "host": socket.gethostname(),
        "place": this_place(),
        "pid": os.getpid(),
        "born": _start_of(os.getpid()),
        "id": uuid.uuid4().hex,
        "job": job or uuid.uuid4().hex,
    }
    board, name = board_of(root), f"{LOCK}{rank}"
    data = json.dumps(holder).encode()
    while not board.create(name, data):
        _refuse_or_remove(board, name)
    lock = Lock(board, rank, holder)
    stopped = threading.Event()
    heart = threading.Thread(target=_beat, args=(board, name, data, stopped), name="inpaint_data-lock", daemon=True)
    try:
        heart.start()
        for other in board.names(LOCK):
            other_holder = _holder(board, other) if _is_a_lock(other) else None
            if other != name and other_holder is not None and other_holder.get("job") != holder["job"]:
                _refuse_or_remove(board, other)
        if not job:
            lock.clear_claims()
        yield lock
    finally:
        stopped.set()
        if heart.ident is not None:  # it may have found no memory to start in
            heart.join()
        lock.end()


def _short(stem: str) -> str:
    """A shard in the name of a claim, which has room for little."""
    return hashlib.sha256(stem.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _is_a_lock(name: str) -> bool:
    return name.removeprefix(LOCK).isdecimal()


@dataclass(frozen=True)
class Holder:
    """Who writes to a cache: the process and its host, its rank, whether it lives, and when it last gave a sign."""

    rank: int
    process: int | None
    host: str | None
    is_alive: bool
    seconds_since_sign: float


def holders_of(root: Path | str) -> list[Holder]:
    """Those who hold a cache, or died holding it, as far as can be told without waiting."""
    found, board = [], board_of(root)
    for name in filter(_is_a_lock, board.names(LOCK)):
        holder = _holder(board, name)
        if holder is None:
            continue
        with suppress(OSError):
            age = max(0.0, board.age(name))
            pid = holder.get("pid")
            is_alive = age < STALE
            if holder.get("place") == this_place() and isinstance(pid, int):
                is_alive = _is_alive(board, name, holder)
            found.append(Holder(int(name.removeprefix(LOCK)), pid, holder.get("host"), is_alive, age))
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


def _holder(board: Board, name: str) -> dict[str, Any] | None:
    """The holder of a lock; None if the lock is gone, empty if it cannot be read."""
    data = board.read(name)
    return None if data is None else _fields(data)


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _refuse_or_remove(board: Board, name: str) -> None:
    """Raise CacheError if the holder of that lock is alive; else remove the lock. The caller tries again."""
    data = board.read(name)
    if data is None:
        return
    holder = _fields(data)
    if _is_alive(board, name, holder):
        holder = _holder(board, name) or holder  # it may have been written only now
        known = {"pid", "host"} <= holder.keys()
        writer = f"process {holder['pid']} on {holder['host']}" if known else "another process"
        raise CacheError(
            f"{board}: {writer} is writing to this cache; wait for it, or stop it and start again "
            f"(one on another machine counts as dead {STALE / 60:.0f} minutes after its last sign of life)"
        )
    board.remove(name, data)


def _is_alive(board: Board, name: str, holder: Mapping[str, Any]) -> bool:
    pid = holder.get("pid")
    if holder.get("place") == this_place() and isinstance(pid, int):
        start = _start_of(pid)
        return pid > 0 and is_running(pid) and (start is None or holder.get("born") in (None, start))
    age = board.age(name)
    if age >= STALE:
        return False
    if holder.get("host") in (None, socket.gethostname()) or age < -HEARTBEAT:
        return _gives_a_sign(board, name)
    return True


def _gives_a_sign(board: Board, name: str) -> bool:
    """Watch a lock until there is a sign of life, for three heartbeats."""
    log.warning("%s/%s: does not tell if its holder is alive; watching it for %.0f s", board, name, 3 * HEARTBEAT)
    before, end = board.state(name), time.monotonic() + 3 * HEARTBEAT
    while time.monotonic() < end:
        time.sleep(min(HEARTBEAT / 10, 1))
        if (now := board.state(name)) != before:
            return now is not None
    return False


def _beat(board: Board, name: str, data: bytes, stopped: threading.Event) -> None:
    while not stopped.wait(HEARTBEAT):
        with suppress(ShardError):  # the store may be away for a while; the next beat tries again
            board.touch(name, data)
