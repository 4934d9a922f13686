"""What the job makes of unreadable shards, renamed inputs, several processes, little memory and no listener."""

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from conftest import Pooling, run, small_samples, write_shard
from flat import cache_latents, cache_with_groups
from PIL import Image
from torch import Tensor

from inpaint_data import Autoencoder, CacheError, UsageError, verify_cache
from inpaint_data.demo import VAE
from inpaint_data.encoding.device import choose_device
from inpaint_data.job import caching, plan
from inpaint_data.job.interrupts import interruptible
from inpaint_data.job.progress import Summary
from inpaint_data.latent_cache.format import read_cache_file
from inpaint_data.ranks import Part, part_of_run
from inpaint_data.shards.naming import shard_identity

SETTINGS: dict[str, Any] = {"resolution": 16, "masks": "boxes", "mask_offset": 2, "batch_size": 4, "device": "cpu"}
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID")
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
COMMAND = [sys.executable, "-m", "inpaint_data.commands.main"]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHERS, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(memory_path: Path) -> Path:
    for number in range(5):
        write_shard(memory_path / "shards" / f"s{number}.tar", small_samples(9, number))
    return memory_path


def cache(root: Path, out: str = "cache", shards: str = "shards", **settings: Any) -> Summary:
    vae = settings.pop("vae", None) or Autoencoder(Pooling())
    return cache_latents(str(root / shards), str(root / out), vae=vae, **SETTINGS | settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def of_disk_errors(path: Path) -> None:
    path.unlink()
    path.symlink_to("/proc/self/mem")  # opens, and answers every read with EIO


def of_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def of_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # whoever opens it waits


@pytest.mark.parametrize("damage", [of_disk_errors, of_a_folder, of_a_loop, of_a_pipe])
@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_shard_that_cannot_be_read_is_named_and_the_others_are_done(
    damage: Callable[[Path], None], number: int, root: Path
) -> None:
    cache(root, "whole")
    bad = root / "shards" / f"s{number}.tar"
    good = bad.read_bytes()
    damage(bad)
    for already in (0, 4):  # the second start tries it again
        with pytest.raises(
            CacheError, match="1 of 5 input shards, about 9 samples, cannot be read; the first"
        ) as error:
            cache(root)
        assert bad.name in str(error.value)
        summary: Summary = error.value.summary  # type: ignore[attr-defined]
        assert (summary.shards, len(summary.plan.done)) == (4 - already, already)
        assert f"unreadable   {bad}" in summary.table()
        assert "not complete 1 of 5 input shards are not in the cache" in summary.table()
        assert read_cache_file(root / "cache").totals is None
        assert verify_cache(root / "cache").totals["samples"] == 4 * 9
    bad.rmdir() if bad.is_dir() else bad.unlink()
    bad.write_bytes(good)
    assert cache(root).shards == 1
    assert contents(root / "cache") == contents(root / "whole")


class Web(BaseHTTPRequestHandler):
    """Serves a folder by ranges; of s2.tar it breaks off behind `fails_behind` bytes, and refuses the rest."""

    folder: Path
    fails_behind: Any = None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start, end = (int(word or len(data)) for word in self.headers.get("Range", "bytes=0-")[6:].split("-"))
        breaks = self.fails_behind is not None and path.name == "s2.tar" and self.command == "GET"
        if breaks and start >= self.fails_behind:
            self.send_error(403)
            return
        part = data[start : end + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part[: self.fails_behind - start] if breaks else part)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_shard_that_fails_in_its_middle_leaves_nothing_behind_and_mixes_with_none(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(root, "whole")
    monkeypatch.setitem(fsspec.config.conf, "http", {"block_size": 4096, "skip_instance_cache": True})
    monkeypatch.setattr(Web, "folder", root / "shards", raising=False)
    monkeypatch.setattr(Web, "fails_behind", 12_000)
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shards = f"http://127.0.0.1:{server.server_port}/s{{0..4}}.tar"
        with pytest.raises(CacheError, match=r"1 of 5 input shards.*s2.tar: no connection, tried again in vain"):
            cache_latents(shards, str(root / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)
        assert {path.name for path in (root / "cache").glob("*.tar")} == {f"s{i}.tar" for i in (0, 1, 3, 4)}
        assert not list((root / "cache").glob("*.tmp"))
        monkeypatch.setattr(Web, "fails_behind", None)
        cache_latents(shards, str(root / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)
        server.shutdown()
    assert contents(root / "cache") == contents(root / "whole")


def test_a_changed_shard_that_cannot_be_read_keeps_what_was_cached_of_it(root: Path) -> None:
    cache(root)
    of_disk_errors(root / "shards" / "s2.tar")
    before = contents(root / "cache")
    with pytest.raises(CacheError, match="1 of 5 input shards"):
        cache(root)
    assert {name for name, data in contents(root / "cache").items() if data != before[name]} == {"cache.json"}
    assert read_cache_file(root / "cache").totals is None


def test_on_bad_raise_ends_at_a_shard_that_cannot_be_read(root: Path) -> None:
    of_disk_errors(root / "shards" / "s2.tar")
    with pytest.raises(CacheError, match=r"s2.tar.*\(on_bad is raise\)"):
        cache(root, on_bad="raise")
    assert verify_cache(root / "cache").totals["shards"] == 2


def hashed(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that a start hashes before it does anything else."""
    names: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(plan, "shard_identity", lambda shard: names.append(Path(shard).stem) or shard_identity(shard))
        cache(root)
    return names


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_job

def die(source, target, replace=os.replace):
    if Path(target).name == "s3.json":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = die
test_job.cache(Path({root!r}))
"""


def test_a_killed_job_hashes_no_finished_input_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(root))
    process = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert process.returncode == -signal.SIGKILL
    stamps = root / "cache" / ".stamps-0"
    with stamps.open("ab") as file:
        file.write(b'["s4", "torn')
    assert len(set(hashed(root, monkeypatch))) <= 1  # of the shard that was committed at the last moment
    assert hashed(root, monkeypatch) == []
    os.utime(root / "shards" / "s1.tar")
    assert hashed(root, monkeypatch) == ["s1"]
    assert hashed(root, monkeypatch) == []


def test_a_shard_that_changes_while_it_is_cached_is_done_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, changed = os.replace, small_samples(3, 77)

    def change(source: Path, target: Path) -> None:
        if Path(target).name == "s1.tar":
            write_shard(root / "shards" / "s1.tar", changed)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", change)
        cache(root)
    assert cache(root).cached == 3


def test_a_renamed_input_is_refused_before_its_samples_are_cached_twice(root: Path) -> None:
    cache(root)
    whole = contents(root / "cache")
    for number in (1, 2):
        (root / "shards" / f"s{number}.tar").rename(root / "shards" / f"train-s{number}.tar")
    for settings in ({}, {"dry_run": True}):
        with pytest.raises(
            UsageError, match=r"train-s1.tar has the very bytes that are cached as s1.tar.*1 more are so"
        ):
            cache(root, **settings)
    assert contents(root / "cache") == whole
    (root / "shards" / "train-s2.tar").rename(root / "shards" / "s2.tar")
    with pytest.raises(UsageError, match=f"delete s1.tar and s1.json from {root / 'cache'}"):
        cache(root)
    for name in ("s1.tar", "s1.json"):
        (root / "cache" / name).unlink()
    assert cache(root).in_cache["samples"] == 45


def test_a_copy_of_an_input_is_cached_as_it_was_given(root: Path) -> None:
    cache(root)
    shutil.copy(root / "shards" / "s1.tar", root / "shards" / "s9.tar")
    assert cache(root).in_cache["samples"] == 54


def test_the_table_says_how_many_samples_have_no_input_any_more(root: Path) -> None:
    cache(root)
    for number in (1, 2):
        (root / "shards" / f"s{number}.tar").unlink()
    assert "18 samples of the cache are in 2 such shards" in cache(root).table()


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({}, Part()),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Part(2, 4, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Part(2, 4, 0)),
        ({"RANK": "2"}, Part()),  # left over, and says nothing
        ({"WORLD_SIZE": "2"}, Part()),
        ({"LOCAL_RANK": "1"}, Part(0, 1, 1)),
        # Tasks of srun.
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}, Part(1, 2, 1)),
        (
            {"SLURM_JOB_ID": "7", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
            | {"SLURM_LOCALID": "1"},
            Part(3, 4, 1),
        ),
        # torchrun in one task of srun on each machine.
        (
            {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
            | {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "SLURM_LOCALID": "0"},
            Part(9, 16, 1),
        ),
        # A shell of salloc, a script of sbatch, and srun --pty bash.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, Part()),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Part()),
        (
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            Part(),
        ),
    ],
)
def test_a_process_knows_its_part_of_the_run(
    variables: dict[str, str], part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert part_of_run() == part


@pytest.mark.parametrize("rank", ["4", "-1", "x", ""])
def test_a_rank_that_cannot_be_is_refused(rank: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match=f"RANK={rank} and WORLD_SIZE=4 in the environment"):
        cache(root)


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="the only GPU is everybody's")
@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE", "LOCAL_RANK"), LAUNCHERS[3:6]])
def test_each_process_of_a_machine_takes_its_own_gpu(
    names: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(names, ("99", "100", "77"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="'cuda:77' cannot be used"):
        choose_device("cuda")
    assert choose_device("auto" if not torch.accelerator.is_available() else "cpu").type == "cpu"


def test_a_process_that_the_environment_alone_calls_one_of_several_does_the_shards_of_all(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    table = cache(root).table()
    assert "process 0 of 4: 2 of 5 shards are mine, and it did 3 of others" in table
    assert "no other process writes to" in caplog.text
    assert "not complete" not in table
    assert read_cache_file(root / "cache").totals is not None


def test_tasks_of_srun_share_the_work_and_jobs_that_divide_other_shards_do_not(root: Path) -> None:
    """None of them has a name for its run."""
    command = [*COMMAND, "cache", "--shards", f"{root}/shards", "--out", f"{root}/cache", "--device", "cpu"]
    command += ["--resolution", "16", "--masks", "boxes", "--upscale", "--vae", "demo"]
    slurm = [{"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank)} for rank in (0, 1)]
    tasks = [
        subprocess.Popen(command, env=os.environ | names, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for names in slurm
    ]
    outs = [task.communicate(timeout=120) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outs
    assert read_cache_file(root / "cache").totals == {
        "shards": 5, "samples": 45, "quarantined": 0, "filtered": 0,
        "bytes": verify_cache(root / "cache").totals["bytes"],
    }  # fmt: skip


def test_two_runs_of_torchrun_without_an_id_are_two_jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    (root / "cache").mkdir()
    work = Autoencoder(Pooling())
    names: list[str] = []
    monkeypatch.setattr(caching, "_run", lambda *_: names.append(lock_of(root)) or (Summary(), []))
    for shards in ("shards", "shards/s{0..3}.tar", "shards"):
        cache(root, shards=shards, vae=work)
    cache(root, vae=work, seed=1)
    assert names[0] == names[2]
    assert len(set(names)) == 3, "other shards or other settings are another job"


def lock_of(root: Path) -> str:
    return str(json.loads((root / "cache" / ".lock-0").read_text())["job"])


class Small(Pooling):
    """A device that holds two samples; what does not fit is refused as PyTorch's allocators do."""

    def __init__(self, holds: int, error: Exception) -> None:
        super().__init__()
        self.holds, self.error = holds, error

    def encode(self, pixels: Tensor) -> Tensor:
        if len(pixels) > self.holds:
            raise self.error
        return super().encode(pixels)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: error code 12"),
    MemoryError(),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_encoded_in_halves_and_the_job_goes_on(error: Exception, root: Path) -> None:
    summary = cache(root, vae=Autoencoder(Small(1, error)))
    assert summary.cached == 45
    assert "in parts     10 batches, which did not fit into memory" in summary.table()
    cache(root, "whole", vae=Autoencoder(Small(4, error)))
    assert contents(root / "cache") == contents(root / "whole")


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_sample_that_does_not_fit_alone_ends_the_job_with_one_line(error: Exception, root: Path) -> None:
    module = Small(1, error)
    vae = Autoencoder(module)
    module.holds = 0
    with pytest.raises(
        CacheError, match=r"s0.tar, sample 'sample_0': out of memory .*batch_size 4.*finished shards are"
    ):
        cache(root, vae=vae)
    assert not list((root / "cache").glob("*.tmp"))


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from test_job import Pooling, cache
from inpaint_data import Autoencoder

class Greedy(Pooling):
    def encode(self, pixels):
        if len(pixels) > 1 or limited:
            torch.empty(len(pixels), megabytes * 2**20, dtype=torch.uint8)
        return super().encode(pixels)

limited, megabytes = False, 400
vae = Autoencoder(Greedy())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 1000 * 2**20,) * 2)
limited = True
print(cache(Path({root!r}), "cache", vae=vae, num_workers=1).table())
megabytes = 2000
for shards in ("shards", "large"):
    try:
        cache(Path({root!r}), "other" + shards, shards, vae=vae, num_workers=1)
    except Exception as error:
        print(type(error).__name__, error)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads the memory from Linux's /proc")
def test_where_the_machine_has_little_memory_the_job_goes_on_or_says_so(root: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(image, "PNG")
    write_shard(root / "large" / "l.tar", {"large": {"png": image.getvalue()}})
    code = LITTLE_MEMORY.format(tests=str(Path(__file__).parent), root=str(root))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "in parts     10 batches, which did not fit into memory" in done.stdout, done.stdout + done.stderr
    encoding, decoding = done.stdout.splitlines()[-2:]
    assert encoding.startswith("CacheError s0.tar, sample 'sample_0': out of memory (RuntimeError: "), encoding
    assert "DefaultCPUAllocator: can't allocate memory" in encoding
    assert decoding.endswith("it needs more memory than there is; make its image or its masks smaller"), decoding


@pytest.fixture
def command(root: Path) -> list[str]:
    """The real command."""
    settings = ["--resolution", "32", "--masks", "boxes", "--upscale", "--device", "cpu", "--vae", "demo"]
    return [*COMMAND, "cache", "--shards", f"{root}/shards", "--out", f"{root}/cache", *settings]


def test_a_job_goes_on_when_who_reads_its_output_goes(root: Path, command: list[str]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=BUFFERED)
    assert process.stdout is not None
    process.stdout.readline()  # as `head -1` does
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert read_cache_file(root / "cache").totals is not None


def test_a_job_goes_on_when_its_log_is_full(root: Path, command: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        assert subprocess.run(command, stdout=full, stderr=full, env=BUFFERED, timeout=120).returncode == 0
    assert read_cache_file(root / "cache").totals is not None


def test_a_job_needs_no_output_at_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as Python has it where these were closed before it started
    assert cache(root).cached == 45


def test_a_job_goes_on_when_its_terminal_is_closed(root: Path, command: list[str]) -> None:
    process, terminal = pty.fork()
    if not process:
        os.execv(command[0], command)
    while not list((root / "cache").glob("*.json")):
        time.sleep(0.05)
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
    os.close(terminal)  # the kernel sends SIGHUP, and further writes fail
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert read_cache_file(root / "cache").totals is not None


def test_a_job_leaves_the_signals_as_they_were(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    for arguments in (["cache", "--shards", f"{root}/none", "--out", f"{root}/cache"], ["verify", str(root / "none")]):
        assert run(capsys, *arguments)[0] in (1, 2)
        assert [signal.getsignal(number) for number in numbers] == before
    with interruptible():
        assert all(signal.getsignal(number) != handler for number, handler in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("write", ["flag", "yaml", "python"])
def test_a_path_may_begin_with_a_tilde(
    write: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.chdir(root / "shards")
    shutil.copytree(VAE, root / "vae")
    pictures, masks, job = {"resolution": 16, "upscale": True}, {"source": "boxes"}, {"device": "cpu"}
    if write == "python":
        cache_with_groups("~/shards/s{0..1}.tar", "~/cache", pictures, masks, {"vae": "~/vae"}, job)
        assert verify_cache("~/cache", against="~/shards/s[01].tar").ok
    else:
        (root / "mixture.yaml").write_text("weights: {boxes: 1}")
        content = {"pictures": pictures, "masks": {"mixture": "~/mixture.yaml", "source": "mixture"}, "job": job}
        if write == "yaml":
            content |= {"shards": ["~/shards/s0.tar", "~/shards/s1.tar"], "out": "~/cache", "encode": {"vae": "~/vae"}}
        (root / "job.yaml").write_text(json.dumps(content))
        flags = ["--shards", "~/shards/s{0..1}.tar", "--out", "~/cache", "--vae", "~/vae"]
        code, _, err = run(capsys, "cache", "--config", "~/job.yaml", *(flags if write == "flag" else []))
        assert code == 0, err
        assert run(capsys, "verify", "~/cache")[0] == 0
        code, _, err = run(capsys, "sheet", "--cache", "~/cache", "--shards", "~/shards/s0.tar", "--out", "~/a.png")
        assert code == 0, err
        assert (root / "a.png").exists()
    assert read_cache_file(root / "cache").totals is not None
    assert not list((root / "shards").glob("~*"))


def test_what_a_dead_process_had_claimed_is_taken_away_by_who_finds_the_cache_whole(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(root)
    claim = root / "cache" / f".claim-{'0' * 32}"
    claim.write_bytes(b'{"rank": 7, "id": "of a process that was killed"}')
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    cache(root)
    assert not claim.exists()
