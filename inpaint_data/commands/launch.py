"""Running a command in several processes of this machine, each on a device of its own."""

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import IO

from tqdm import tqdm

from inpaint_data.commands.outcome import RUNNING, Outcome
from inpaint_data.errors import CacheError, ShardError, UsageError
from inpaint_data.job.caching import check_out
from inpaint_data.job.settings import JobSettings
from inpaint_data.job.status import Part, Status, parts_of, rate_of, seconds_left_of, status_of
from inpaint_data.latent_cache.folder import CacheFolder, opened
from inpaint_data.listener import tell
from inpaint_data.ranks import LAUNCHED

_SHARD = re.compile(r"shard \d+/\d+ (?P<what>.*?)(?:, [\d.]+ images/s.*)?")


def is_to_launch(devices: int) -> bool:
    """Whether this process is to start others, and is not one of them."""
    return devices > 1 and LAUNCHED not in os.environ


def check_devices(devices: int, job: JobSettings) -> None:
    """Raises UsageError for more devices than there are, for one that is named, and for those of another engine."""
    import torch  # only where something runs

    device = job.device
    if devices < 1:
        raise UsageError(f"devices: {devices!r} is not a number of devices; give 1 or more", ("devices",))
    if devices == 1:
        return
    if job.engine == "ray":
        raise UsageError(f"devices: {devices}, but engine is ray; ray_workers says how many", ("devices",))
    if ":" in device:
        raise UsageError(f"devices: {devices}, but device is {device}; leave one of them out", ("devices",))
    has_gpus = device != "cpu" and torch.accelerator.is_available()
    if has_gpus and devices > (count := torch.accelerator.device_count()):
        raise UsageError(f"devices: {devices}, but this machine has {count}; give {count} or fewer", ("devices",))
    if not has_gpus and devices > (cores := os.cpu_count() or 1):
        raise UsageError(f"devices: {devices}, but this machine has {cores} cores; give fewer", ("devices",))


def launch(devices: int, out: str) -> Outcome:
    """Start the command that is running once for each device, and wait for all.

    Each does its share of the shards. One that fails neither stops the others nor loses what they do. Lines that
    several say are said once, and those of shards are counted over all.

    Args:
        devices: how many.
        out: the cache's folder.
    """
    check_out(out)
    processes = [_start(rank, devices) for rank in range(devices)]
    with _ended_with_us(processes), opened(out, look=False) as folder:
        voice = _Voice(folder)
        listeners = [threading.Thread(target=voice.repeat, args=(process.stderr,)) for process in processes]
        outputs: list[str] = [""] * devices
        listeners += [
            threading.Thread(target=_collect, args=(process.stdout, outputs, rank))
            for rank, process in enumerate(processes)
        ]
        for listener in listeners:
            listener.start()
        codes = [process.wait() for process in processes]
        for listener in listeners:
            listener.join()
        voice.close()
    failed = [rank for rank, code in enumerate(codes) if code]
    tables = "\n".join(outputs[rank].rstrip() for rank in (failed or [devices - 1]) if outputs[rank].strip())
    status = _status(out)
    whole = f"\n\n{status.table()}" if status is not None else ""
    errors = "".join(f"process {rank} of {devices} ended with exit code {codes[rank]}\n" for rank in failed)
    return Outcome(f"{tables}{whole}".strip("\n"), errors, max(code if code >= 0 else 128 - code for code in codes))


def _start(rank: int, devices: int) -> "subprocess.Popen[str]":
    threads = max(1, (os.cpu_count() or 1) // devices)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ  # as torchrun does it, who is told otherwise obeys
    environment |= {"RANK": str(rank), "WORLD_SIZE": str(devices), "LOCAL_RANK": str(rank), LAUNCHED: "1"}
    command = [sys.executable, "-m", "inpaint_data", *RUNNING.get()]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


@contextmanager
def _ended_with_us(processes: "Sequence[subprocess.Popen[str]]") -> Iterator[None]:
    """What ends this process ends the others, which keep what is finished."""
    try:
        yield
    except BaseException:
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        raise


class _Voice:
    """Says on stderr what the processes say: with one bar for all on a terminal, else a line for each shard."""

    def __init__(self, folder: CacheFolder) -> None:
        self._folder, self._lock, self._looked = folder, threading.Lock(), -math.inf
        self._known: list[Part] = []
        self._said: set[str] = set()
        self._done = self._todo = 0
        self._bar = None
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=1, bar_format="{percentage:3.0f}%|{bar}| {desc} [{elapsed}]", file=sys.stderr)

    def repeat(self, lines: IO[str] | None) -> None:
        for line in lines or ():
            with self._lock:
                match = _SHARD.fullmatch(line.rstrip("\n"))
                if match:
                    self._count(match["what"])
                elif line not in self._said:
                    self._said.add(line)
                    if self._bar is not None:
                        self._bar.clear()
                    tell("stderr", line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _count(self, what: str) -> None:
        text = self._counted(what)
        if self._bar is None:
            tell("stderr", f"{text}\n")
            return
        self._bar.total, self._bar.n = max(self._done, self._todo), self._done
        self._bar.set_description_str(text, refresh=True)

    def _counted(self, what: str) -> str:
        self._done += 1
        parts = self._parts()
        # Of those that have begun; what the others find done already comes off later.
        self._todo = max((part["inputs"] for part in parts), default=self._todo) - sum(
            part["already"] for part in parts
        )
        pace = ""
        if parts:
            left = seconds_left_of(parts)
            to_go = "" if left is None else f", {timedelta(seconds=round(left))} to go"
            pace = f", {rate_of(parts):.1f} images/s{to_go}"
        return f"shard {self._done}/{max(self._done, self._todo)} {what}{pace}"

    def _parts(self) -> list[Part]:
        """What the processes said lately."""
        if time.monotonic() - self._looked > self._folder.pause / 2:
            self._looked, self._known = time.monotonic(), parts_of(self._folder)
        return self._known


def _collect(output: IO[str] | None, outputs: list[str], rank: int) -> None:
    outputs[rank] = output.read() if output is not None else ""


def _status(out: str) -> Status | None:
    try:
        return status_of(out)
    except (UsageError, CacheError, ShardError, OSError):
        return None
