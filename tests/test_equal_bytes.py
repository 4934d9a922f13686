"""A cache has the same bytes whoever made it: one process, several, one that was killed, a cluster, into a store."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run, small_samples, write_shard

from inpaint_data.job.caching import cache_latents
from inpaint_data.latent_cache.verify import verify_files

FLAGS = ["--vae", "demo", "--resolution", "64", "--upscale", "--masks", "boxes", "--device", "cpu"]
SHARDS = 6
CACHE = "import sys; from inpaint_data.commands.main import main; main(['cache', *sys.argv[1:]])"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("equal") / "in"
    for number in range(SHARDS):
        samples = small_samples(30 + 10 * number, number)
        write_shard(root / f"{number}.tar", {f"{number}_{key}": members for key, members in samples.items()})
    return root


@pytest.fixture(scope="module")
def whole(shards: Path) -> dict[str, bytes]:
    """What one process makes, on one thread."""
    out = shards.parent / "one"
    subprocess.run(command(shards, out), env=environment(), check=True, capture_output=True)
    assert verify_files(out).ok
    return contents(out)


def command(shards: Path, out: str | Path, *more: str) -> list[str]:
    return [sys.executable, "-c", CACHE, "--shards", str(shards), "--out", str(out), *FLAGS, *more]


def environment(**more: str) -> dict[str, str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return {name: value for name, value in os.environ.items() if name not in names} | {"OMP_NUM_THREADS": "1"} | more


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


def wait_for_a_shard(out: Path) -> None:
    end = time.monotonic() + 120
    while not list(out.glob("?.json")):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_processes_of_torchrun_of_which_one_is_killed(
    shards: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    arguments = command(shards, tmp_path)[3:]
    script = tmp_path.with_suffix(".py")
    script.write_text(CACHE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    first = subprocess.Popen([*torchrun, *arguments], env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_a_shard(tmp_path)
    workers = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True, check=True)
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    _, errors = first.communicate(timeout=120)
    assert first.returncode, errors
    assert contents(tmp_path).items() <= (whole | {"cache.json": contents(tmp_path)["cache.json"]}).items()
    subprocess.run([*torchrun, *arguments], env=environment(), check=True, capture_output=True, timeout=120)
    assert contents(tmp_path) == whole
    assert not list(tmp_path.glob(".claim-*"))


def test_two_tasks_of_slurm_of_which_one_is_killed_and_the_other_does_its_shards(
    shards: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    tasks = []
    for rank in ("0", "1"):
        slurm = {"SLURM_JOB_ID": "7", "SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": rank}
        tasks.append(
            subprocess.Popen(command(shards, tmp_path), env=environment(**slurm), stdout=subprocess.PIPE, text=True)
        )
    wait_for_a_shard(tmp_path)
    tasks[1].kill()
    tasks[1].communicate()
    table, _ = tasks[0].communicate(timeout=120)
    assert tasks[0].returncode == 0
    assert "of others" in table
    assert contents(tmp_path) == whole


def test_from_here_to_s3(shards: Path, whole: dict[str, bytes], s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    import fsspec
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        code, _, err = run(capsys, "cache", "--shards", str(shards), "--out", f"{s3}/cache", *FLAGS)
    finally:
        torch.set_num_threads(threads)
    assert code == 0, err
    files = fsspec.filesystem("s3")
    paths = {path.rpartition("/")[2]: path for path in files.find(f"{s3}/cache")}
    assert {name: files.cat_file(path) for name, path in paths.items() if not name.startswith(".")} == whole


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes, with room for one worker each."""
    pytest.importorskip("ray", reason="Ray has no build for this Python")
    from ray.cluster_utils import Cluster

    ends = signal.getsignal(signal.SIGTERM)
    memory = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=memory)
    nodes.add_node(**memory)
    nodes.wait_for_nodes()
    signal.signal(signal.SIGTERM, ends)  # the cluster took it
    yield nodes
    nodes.shutdown()


def on(cluster: Any, shards: Path, out: Path) -> str:
    summary = cache_latents(
        str(shards), str(out), {"resolution": 64, "upscale": True}, {"source": "boxes"}, {"vae": "demo"},
        {"device": "cpu", "engine": "ray", "ray_address": cluster.address, "num_workers": 1},
    )  # fmt: skip
    return str(summary.table())


def test_two_workers_on_ray(cluster: Any, shards: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    table = on(cluster, shards, tmp_path)
    assert f"{SHARDS} cached" in table
    assert contents(tmp_path) == whole


def test_a_node_of_ray_that_is_killed_in_mid_job(
    cluster: Any, shards: Path, whole: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = next(iter(cluster.worker_nodes))

    def kill() -> None:
        wait_for_a_shard(tmp_path)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    table = on(cluster, shards, tmp_path)
    killer.join()
    assert "its worker died" in caplog.text
    assert f"{SHARDS} cached" in table
    assert contents(tmp_path) == whole
    assert verify_files(tmp_path).ok
