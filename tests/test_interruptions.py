"""A job that is killed, stopped, crowded out or out of disk leaves a cache that resumes to the same bytes."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from conftest import Figure, Pooling, small_samples, write_shard
from flat import OF_JOBS, cache_latents, grouped

from inpaint_data import Autoencoder, CacheError, Summary, UsageError, verify_cache
from inpaint_data.job.caching import work_of
from inpaint_data.job.encoding import encode
from inpaint_data.job.shard_job import Committer
from inpaint_data.job.work import Work
from inpaint_data.latent_cache import lock as lock_module
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.lock import STALE, locked, this_place
from inpaint_data.settings import group_of
from inpaint_data.shards.reading import Fault, ShardEnd

SETTINGS: dict[str, Any] = {"resolution": 16, "masks": "mixture", "mask_offset": (-3, 5), "batch_size": 4}
SHARDS = 24
PLACE = this_place()


def run(root: str, out: str, rank: int = 0, world: int = 1, **settings: Any) -> None:
    """One job, in a process of its own."""
    if world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "none"}
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    cache_latents(f"{root}/shards", f"{root}/{out}", vae=Autoencoder(Pooling()), **SETTINGS | settings)


@pytest.fixture(scope="module")
def server() -> Any:
    """Processes that start with the package and this module imported, from one that never used them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # where it looks for this module
        forkserver.ensure_running()
    return context


@pytest.fixture
def root(memory_path: Path) -> Path:
    for number in range(SHARDS):
        write_shard(memory_path / "shards" / f"{number:04d}.tar", small_samples(9, number))
    return memory_path


def contents(cache: Path) -> dict[str, bytes]:
    """All that is in a cache but the stamps of its inputs, which have the time in them."""
    return {path.name: path.read_bytes() for path in cache.iterdir() if not path.name.startswith(".")}


def start(server: Any, root: Path, out: str, *arguments: Any, **settings: Any) -> Any:
    process = server.Process(target=run, args=(str(root), out, *arguments), kwargs=settings)
    process.start()
    return process


def finish(server: Any, root: Path, out: str, **settings: Any) -> float:
    started = time.perf_counter()
    process = start(server, root, out, **settings)
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - started


def kill_and_resume(server: Any, root: Path, kills: int) -> int:
    """Kill jobs at random moments, a finished cache now and then, and compare; returns how many died at work."""
    finish(server, root, "whole")
    seconds = finish(server, root, "again")
    whole, rng, died = contents(root / "whole"), random.Random(0), 0
    while died < kills:
        process = start(server, root, "killed")
        time.sleep(rng.uniform(0.1, 1.1) * seconds)
        process.kill()
        process.join()
        died += process.exitcode == -signal.SIGKILL
        if (root / "killed" / "cache.json").exists():
            assert verify_cache(root / "killed").ok
        if process.exitcode == 0 or rng.random() < 0.3:
            finish(server, root, "killed")
            assert contents(root / "killed") == whole
            assert set(os.listdir(root / "killed")) == set(os.listdir(root / "whole"))
            for path in (root / "killed").iterdir():
                path.unlink()
    finish(server, root, "killed")
    assert contents(root / "killed") == whole
    return died


def test_a_job_killed_at_ten_random_moments_finishes_to_the_same_bytes(
    server: Any, root: Path, record_figure: Figure
) -> None:
    died = kill_and_resume(server, root, 10)
    record_figure(f"killed with SIGKILL at {died} random moments: the finished cache has the same bytes")


@pytest.mark.slow
def test_a_job_killed_at_a_hundred_random_moments_finishes_to_the_same_bytes(
    server: Any, root: Path, record_figure: Figure
) -> None:
    died = kill_and_resume(server, root, 100)
    record_figure(f"killed with SIGKILL at {died} random moments: the finished cache has the same bytes")


def run_until(root: str, out: str, last: int) -> None:
    """One job that is killed just before its file operation of that number; it prints how many there are."""
    number = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.utime") or (event == "open" and arguments[2] & 3)
        if changes and f"/{out}" in str(arguments[0]):
            number += 1
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    run(root, out)
    Path(root, "operations").write_text(str(number))


def kill_at_operations(server: Any, root: Path, step: int, leftover: Callable[[Path], None]) -> int:
    """Kill a job before file operations, every `step`th, and compare the whole folder; returns how many there are."""
    for number in range(2, SHARDS):
        (root / "shards" / f"{number:04d}.tar").unlink()
    run_here(root)
    whole, names = contents(root / "cache"), set(os.listdir(root / "cache"))
    last = operations = 1
    while last <= operations:
        leftover(root / "killed")
        process = server.Process(target=run_until, args=(str(root), "killed", last))
        process.start()
        process.join()
        if last == 1:
            assert process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            operations = int((root / "operations").read_text())
            assert operations < last, "each one before was killed"
        else:
            operations = last + step
        run_here(root, "killed")
        assert set(os.listdir(root / "killed")) == names, f"killed before operation {last}"
        assert contents(root / "killed") == whole
        last += step
    return operations


def of_a_dead_job(cache: Path) -> None:
    """Nothing but the lock of a job that died."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    holder = {"host": socket.gethostname(), "place": PLACE, "pid": other_process_that_died(), "job": "x"}
    (cache / ".lock-0").write_text(json.dumps(holder))
    (cache / ".lock-3").write_text(json.dumps(holder | {"host": "elsewhere"}))
    os.utime(cache / ".lock-3", (time.time() - STALE - 5,) * 2)


def test_killed_before_any_third_file_operation_a_job_leaves_no_file_behind(
    server: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.02)
    assert kill_at_operations(server, root, 3, of_a_dead_job) >= 20


@pytest.mark.slow
def test_killed_before_every_file_operation_a_job_leaves_no_file_behind(
    server: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.02)
    assert kill_at_operations(server, root, 1, of_a_dead_job) >= 20


def test_threads_and_processes_do_not_change_a_byte(server: Any, root: Path) -> None:
    finish(server, root, "whole", num_workers=0)
    whole = contents(root / "whole")
    for threads in (1, 3):
        finish(server, root, f"threads{threads}", num_workers=threads)
        assert contents(root / f"threads{threads}") == whole
    for out in ("two", "again", "again", "again"):  # they meet at the start, and in a finished cache at the end
        both = [start(server, root, out, rank, 2) for rank in (0, 1)]
        for process in both:
            process.join()
            assert process.exitcode == 0
        assert contents(root / out) == whole


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the real command on the demo's VAE, slow enough to be interrupted; waits until it works."""
    write_shard(tmp_path / "shards" / "a.tar", small_samples(8))
    write_shard(tmp_path / "shards" / "b.tar", small_samples(1500, 1))
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        settings = ["--resolution", "64", "--masks", "boxes", "--upscale", "true", "--device", "cpu", "--vae", "demo"]
        arguments = ["--shards", str(tmp_path / "shards"), "--out", str(tmp_path / "cache"), *settings]
        process = subprocess.Popen(
            [sys.executable, "-m", "inpaint_data.commands.main", "cache", *arguments], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        while process.poll() is None and not list((tmp_path / "cache").glob(".b.tar.*.tmp")):
            time.sleep(0.02)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_cleanly_and_says_how_to_go_on(
    number: signal.Signals, command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = command()
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert (
        err.strip().splitlines()[-1]
        == f"{number.name}: what was finished is kept; the same command resumes with the rest"
    )
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {
        "cache.json",
        "a.tar",
        "a.json",
        ".stamps-0",
        ".index",
    }
    assert verify_cache(tmp_path / "cache").ok


def test_a_second_signal_leaves_at_once(command: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = command()
    process.send_signal(signal.SIGSTOP)  # so that both are there when it wakes up
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert verify_cache(tmp_path / "cache").totals["samples"] == 8


def test_a_second_job_is_refused_while_the_first_lives(root: Path) -> None:
    (root / "cache").mkdir()
    with (
        locked(root / "cache"),
        pytest.raises(CacheError, match=rf"process {os.getpid()} on {socket.gethostname()} is writing to this cache"),
    ):
        run_here(root)
    run_here(root)
    assert not list((root / "cache").glob(".lock*"))


def test_a_shard_of_which_a_batch_failed_is_not_committed_by_what_was_queued_behind_it(root: Path) -> None:
    shard, cache = str(root / "shards" / "0000.tar"), root / "written"
    cache.mkdir()
    given = grouped(OF_JOBS, SETTINGS | {"vae": Autoencoder(Pooling()), "device": "cpu", "on_bad": "raise"})
    groups: dict[str, Any] = {name: group_of(kind, given.get(name)) for name, kind in OF_JOBS.items()}
    work = work_of(**groups, stages=[])
    with locked(cache) as lock:
        check_committer(Committer(CacheFolder(cache), lock, "f", work, Summary()), work, shard)
    assert not list(cache.iterdir())


def check_committer(committer: Committer, work: Work, shard: str) -> None:
    *batches, end = work.events([shard])
    assert len(batches) > 1
    assert isinstance(end, ShardEnd)
    for number, batch in enumerate(batches):
        [(encoded, _)] = encode(work, batch)
        if number == 0:
            committer.add(shard, encoded, [])
            continue
        with pytest.raises(CacheError, match="on_bad is raise" if number == 1 else "an earlier step"):
            committer.add(shard, encoded, [Fault(shard, "bad", "damaged", None, None)] if number == 1 else [])
    with pytest.raises(CacheError, match="an earlier step of this shard failed"):
        committer.commit(end)
    committer.drop()


def run_here(root: Path, out: str = "cache") -> None:
    cache_latents(str(root / "shards"), str(root / out), vae=Autoencoder(Pooling()), **SETTINGS)


def other_process_that_died() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("holder", "age", "refused"),
    [
        ({"host": socket.gethostname(), "place": PLACE, "pid": "dead"}, 0, False),
        ({"host": socket.gethostname(), "place": PLACE, "pid": "dead"}, -9 * STALE, False),
        ({"host": socket.gethostname(), "place": PLACE, "pid": os.getpid(), "born": "1"}, 0, False),  # came again
        ({"host": socket.gethostname(), "place": "before it started again", "pid": 1}, 0, False),
        ({"host": "elsewhere", "pid": 1}, 0, True),
        ({"host": "elsewhere", "pid": 1}, STALE + 5, False),
        ({"host": "elsewhere", "pid": 1}, -9 * STALE, False),  # dated in the future
        ({}, 0, False),  # torn by a power cut
        ({}, -9 * STALE, False),
    ],
)
def test_a_dead_holders_lock_is_taken_over_and_a_living_ones_is_not(
    holder: dict[str, Any], age: float, refused: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.05)
    (root / "cache").mkdir()
    lock = root / "cache" / ".lock-0"
    content = json.dumps({k: other_process_that_died() if v == "dead" else v for k, v in holder.items()})
    lock.write_text(content if holder else '{"host": "')
    os.utime(lock, (time.time() - age,) * 2)
    if refused:
        with pytest.raises(CacheError, match="on elsewhere is writing"):
            run_here(root)
        assert lock.exists()
    else:
        run_here(root)
        assert not lock.exists()


@pytest.mark.parametrize("content", ["", '{"host": "', None])
def test_a_torn_lock_that_still_gives_signs_of_life_is_a_living_ones(
    content: str | None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of another container, and one dated in the future."""
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.1)
    (root / "cache").mkdir()
    with locked(root / "cache"):
        lock = root / "cache" / ".lock-0"
        if content is None:
            content = json.dumps(json.loads(lock.read_text()) | {"place": "another container", "pid": 1})
        lock.write_text(content)
        os.utime(lock, (time.time() + 9 * STALE,) * 2)
        with pytest.raises(CacheError, match="is writing to this cache"):
            run_here(root)


CONTENDER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from inpaint_data import CacheError
from inpaint_data.latent_cache import lock
lock.HEARTBEAT, lock.STALE = 0.2, 1.0
try:
    with lock.locked(Path({root!r})):
        print("held", flush=True)
        sys.stdin.readline()
except CacheError as error:
    print(error)
"""


def test_two_containers_of_one_host_name_see_each_other(tmp_path: Path) -> None:
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may make a namespace of processes")
    code = CONTENDER.format(tests=str(Path(__file__).parent), root=str(tmp_path))
    command = [*unshare, sys.executable, "-c", code]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    time.sleep(1.5)  # longer than a holder without a sign is thought to live
    others = [subprocess.run(words, input="\n", capture_output=True, text=True) for words in (command, command[5:])]
    assert all("is writing to this cache" in done.stdout for done in others), others
    first.stdin.close()
    first.wait(timeout=30)
    assert subprocess.run(command, input="\n", capture_output=True, text=True).stdout == "held\n"


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    """A real exFAT, which has neither hard links nor owners."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * 2**20)
    try:
        subprocess.run(["mkfs.exfat", str(image)], check=True, capture_output=True)
        loop = subprocess.run(["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True)
        try:
            subprocess.run(["mount.exfat-fuse", loop.stdout.strip(), str(disk)], check=True, capture_output=True)
            yield disk
            subprocess.run(["umount", str(disk)], check=True)
        finally:
            subprocess.run(["losetup", "-d", loop.stdout.strip()], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs root, exfatprogs and exfat-fuse: {error}")


def test_a_disk_without_hard_links_holds_a_cache(root: Path, exfat: Path) -> None:
    (exfat / "file").touch()
    with pytest.raises(PermissionError):
        os.link(exfat / "file", exfat / "link")
    cache_latents(str(root / "shards"), str(exfat / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)
    run_here(root)
    assert contents(exfat / "cache") == contents(root / "cache")


@pytest.mark.parametrize("process", ["dead", "living"])
def test_what_a_dead_job_left_goes_though_another_process_may_have_its_number_now(process: str, root: Path) -> None:
    number = other_process_that_died() if process == "dead" else os.getppid()
    (root / "cache").mkdir()
    leftover = root / "cache" / f".0003.tar.{number}.tmp"
    leftover.write_bytes(b"half")
    run_here(root)
    assert not leftover.exists()


def test_a_shard_that_is_named_like_a_sidecar_is_kept_as_any_other(root: Path) -> None:
    for number in range(SHARDS):
        (root / "shards" / f"{number:04d}.tar").rename(root / "shards" / f"{number:04d}.json.tar")
    run_here(root)
    arguments = (str(root / "shards"), str(root / "cache"))
    assert len(cache_latents(*arguments, vae=Autoencoder(Pooling()), **SETTINGS).plan.done) == SHARDS


def test_of_many_jobs_that_start_at_once_on_a_stale_lock_one_holds_it(memory_path: Path, server: Any) -> None:
    holder = {"host": socket.gethostname(), "place": PLACE, "pid": other_process_that_died()}
    (memory_path / ".lock-0").write_text(json.dumps(holder))
    answers = server.Queue()
    contenders = [server.Process(target=contend, args=(str(memory_path), answers)) for _ in range(6)]
    for each in contenders:
        each.start()
    results = [answers.get(timeout=60) for _ in contenders]
    for each in contenders:
        each.join()
    assert results.count("held") >= 1
    assert "both" not in results


def contend(folder: str, answers: Any) -> None:
    """Holds the lock for a moment; "both" if another process did so meanwhile."""
    try:
        with locked(Path(folder)):
            inside = Path(folder) / "inside"
            alone = not inside.exists()
            inside.touch()
            time.sleep(0.3)
            inside.unlink(missing_ok=True)
            answers.put("held" if alone else "both")
    except CacheError:
        answers.put("refused")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_and_leaves_a_cache_that_verifies_and_goes_on(root: Path, small_disk: Path) -> None:
    arguments, vae = (str(root / "shards"), str(small_disk / "cache")), Autoencoder(Pooling())
    with pytest.raises(CacheError, match="No space left on device; fix that and run the same command again"):
        cache_latents(*arguments, vae=vae, **SETTINGS)
    assert not list((small_disk / "cache").glob("*.tmp"))
    found = verify_cache(small_disk / "cache")
    assert found.ok
    assert 0 < found.totals["shards"] < SHARDS
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    summary = cache_latents(*arguments, vae=vae, **SETTINGS)
    assert len(summary.plan.done) == found.totals["shards"]
    run_here(root)
    assert contents(small_disk / "cache") == contents(root / "cache")


def test_a_disk_that_turns_read_only_is_named(root: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UsageError, match="Read-only file system"):
        cache_latents(str(root / "shards"), str(small_disk / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)


def test_a_folder_that_vanishes_during_the_job_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def vanish(source: Path, target: Path) -> None:
        if target.name == "0003.tar":
            os.rename(root / "cache", root / "moved")
        replace(source, target)

    monkeypatch.setattr(os, "replace", vanish)
    with pytest.raises(CacheError, match="No such file or directory"):
        run_here(root)


def test_files_that_vanish_during_the_job_are_missed_at_its_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(root)
    whole = contents(root / "cache")
    for path in (root / "cache").iterdir():
        path.unlink()
    replace = os.replace

    def vanish(source: Path, target: Path) -> None:
        if Path(target).name == "0009.tar":
            for path in (root / "cache").glob("*.json"):  # cache.json among them
                path.unlink()
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", vanish)
        with pytest.raises(CacheError, match=r"vanished while the job ran \(\d+ files did\); run the same command"):
            run_here(root)
    run_here(root)
    assert contents(root / "cache") == whole


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_lost_cache_file_is_written_anew_by_the_same_command_and_no_other(
    damage: Callable[[Path], object], root: Path
) -> None:
    run_here(root)
    whole = contents(root / "cache")
    damage(root / "cache" / "cache.json")
    with pytest.raises((CacheError, UsageError)):
        cache_latents(str(root / "shards"), str(root / "cache"), vae=Autoencoder(Pooling()), **SETTINGS | {"seed": 1})
    run_here(root)
    assert contents(root / "cache") == whole


class Layer:
    """The calls a commit makes to the disk, in order; the one numbered `fails_at` fails as a broken disk would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fails_at = fails_at
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: self.call("fsync", os.readlink(f"/proc/self/fd/{fd}"), fsync, fd))
        monkeypatch.setattr(os, "replace", lambda a, b: self.call("replace", str(b), replace, a, b))

    def call(self, name: str, path: str, real: Callable[..., None], *arguments: Any) -> None:
        self.calls.append((name, Path(path).name))
        if len(self.calls) - 1 == self.fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        real(*arguments)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names open files by Linux's /proc")
def test_data_is_durable_before_its_name_and_the_sidecar_comes_last(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Layer(monkeypatch)
    run_here(root)
    tar, sidecar = (f".0005.{end}.{os.getpid()}.tmp" for end in ("tar", "json"))
    of_one = [call for call in layer.calls if call[1] in (tar, "0005.tar", sidecar, "0005.json")]
    assert of_one == [
        ("fsync", tar),
        ("replace", "0005.tar"),
        ("fsync", sidecar),
        ("replace", "0005.json"),
    ]
    for number, call in enumerate(layer.calls):
        if call[0] == "replace":
            assert layer.calls[number + 1] == ("fsync", "cache")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names open files by Linux's /proc")
def test_wherever_the_disk_fails_the_error_is_named_and_the_next_run_gives_the_same_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4, SHARDS):
        (root / "shards" / f"{number:04d}.tar").unlink()
    with monkeypatch.context() as patch:
        layer = Layer(patch)
        run_here(root)
    whole = contents(root / "cache")
    needed = [call[1] for call in layer.calls].index(f"..index.{os.getpid()}.tmp")
    assert len(layer.calls) == needed + 3, "the index comes last: its bytes, its name, the folder"
    for failing in range(len(layer.calls)):
        for path in (root / "cache").iterdir():
            path.unlink()
        with monkeypatch.context() as patch:
            Layer(patch, failing)
            with pytest.raises(CacheError, match="Input/output error") if failing < needed else nullcontext():
                run_here(root)
        assert not list((root / "cache").glob("*.tmp"))
        run_here(root)
        assert contents(root / "cache") == whole


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names open files by Linux's /proc")
@pytest.mark.parametrize("place", [0, 700, -1])
def test_a_disk_that_does_not_give_back_what_was_written_is_noticed(
    place: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def forget(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name.startswith(".0003.tar."):
            data = bytearray(path.read_bytes())
            data[place] ^= 1
            path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", forget)
        with pytest.raises(CacheError, match=r"0003\.tar.*reads back other bytes than were written; check the disk"):
            run_here(root)
    assert verify_cache(root / "cache").totals["shards"] == 3
    run_here(root)


def test_a_shard_that_was_cut_since_is_done_again(root: Path) -> None:
    run_here(root)
    whole = contents(root / "cache")
    with (root / "cache" / "0003.tar").open("r+b") as file:
        file.truncate(1024)
    run_here(root)
    assert contents(root / "cache") == whole


def test_new_changed_and_removed_inputs_are_added_redone_and_reported(root: Path) -> None:
    run_here(root)
    write_shard(root / "shards" / "9999.tar", small_samples(2, 99))
    changed = bytearray((root / "shards" / "0003.tar").read_bytes())
    text = changed.index(b"number 4")
    changed[text : text + 8] = b"number X"  # the size stays
    (root / "shards" / "0003.tar").write_bytes(changed)
    (root / "shards" / "0007.tar").unlink()
    plan = cache_latents(
        str(root / "shards"), str(root / "cache"), vae=Autoencoder(Pooling()), dry_run=True, **SETTINGS
    ).plan
    assert [Path(shard).name for shard in plan.new] == ["9999.tar"]
    assert [Path(shard).name for shard in plan.stale] == ["0003.tar"]
    assert plan.removed == ["0007.tar"]
    assert len(plan.done) == SHARDS - 2
    summary = cache_latents(str(root / "shards"), str(root / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)
    assert (summary.shards, summary.cached) == (2, 11)
    assert "0007.tar is not among the input shards; it stays" in summary.table()
    assert verify_cache(root / "cache").totals["shards"] == SHARDS + 1


def test_a_dry_run_writes_nothing_and_expects_about_what_comes(root: Path) -> None:
    arguments, vae = (str(root / "shards"), str(root / "cache")), Autoencoder(Pooling())
    plan = cache_latents(*arguments, vae=vae, dry_run=True, **SETTINGS).plan
    assert not (root / "cache").exists()
    assert (len(plan.new), len(plan.done)) == (SHARDS, 0)
    written = cache_latents(*arguments, vae=vae, **SETTINGS).bytes
    assert plan.bytes_expected == pytest.approx(written, rel=0.5)
    assert plan.seconds_expected is not None
    assert cache_latents(*arguments, vae=vae, dry_run=True, **SETTINGS).plan.bytes_expected == 0


MEMORY = """
import sys
sys.path.insert(0, {tests!r})
from conftest import Pooling
from flat import cache_latents
from inpaint_data import Autoencoder
cache_latents({shards!r}, {out!r}, vae=Autoencoder(Pooling()), resolution=16, masks="boxes", device="cpu")
# Not getrusage: its peak is that of the parent process where that was larger.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak from Linux's /proc")
def test_memory_stays_flat_from_200_samples_to_5000(memory_path: Path, record_figure: Figure) -> None:
    peaks = {}
    for count in (200, 5000):
        write_shard(memory_path / str(count) / "a.tar", small_samples(count))
        code = MEMORY.format(
            tests=str(Path(__file__).parent), shards=str(memory_path / str(count)), out=str(memory_path / f"c{count}")
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks[count] = int(done.stdout) / 1024
    record_figure(f"peak memory: {peaks[200]:.0f} MiB for 200 samples, {peaks[5000]:.0f} MiB for 5000")
    assert peaks[5000] < 1.1 * peaks[200]
