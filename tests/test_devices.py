"""`cache --devices N`: processes of one machine, each with its share of the shards, and the cache that one makes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run, small_samples, write_shard

from inpaint_data.job.status import status_of

FLAGS = ["--vae", "demo", "--resolution", "64", "--upscale", "--masks", "boxes", "--device", "cpu"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(4):
        samples = {f"{number}_{key}": members for key, members in small_samples(3, number).items()}
        write_shard(tmp_path / "in" / f"{number}.tar", samples)
    return tmp_path / "in"


def command(shards: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "inpaint_data", "cache", "--shards", str(shards), "--out", str(out), *FLAGS, *more]


def environment(**more: str) -> dict[str, str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return {name: value for name, value in os.environ.items() if name not in names} | {"OMP_NUM_THREADS": "1"} | more


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


def test_two_processes_make_the_bytes_of_one_and_say_what_they_say_once(shards: Path, tmp_path: Path) -> None:
    # As another tool may have left it behind in the environment of whoever calls.
    two = environment(RANK="3", WORLD_SIZE="8", LOCAL_RANK="3")
    done = subprocess.run(
        command(shards, tmp_path / "two", "--devices", "2"), env=two, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    subprocess.run(command(shards, tmp_path / "one"), env=environment(), capture_output=True, check=True)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    lines = done.stderr.splitlines()
    assert sum("demo's toy autoencoder" in line for line in lines) == 1
    assert [line.split()[1] for line in lines if line.startswith("shard ")] == ["1/4", "2/4", "3/4", "4/4"]
    assert "complete" in done.stdout
    assert "4 shards, 12 samples" in done.stdout


def test_a_process_that_fails_leaves_its_shards_to_the_others_or_to_the_next_run(shards: Path, tmp_path: Path) -> None:
    samples = {f"1_{key}": members for key, members in small_samples(3, 1).items()}
    write_shard(shards / "1.tar", samples | {"1_z": {"jpg": b"\xff\xd8\xff no picture"}})
    done = subprocess.run(
        command(shards, tmp_path / "out", "--devices", "2", "--on_bad", "raise"),
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "1_z" in done.stderr
    assert re.search("process [01] of 2 ended with exit code 1", done.stderr)
    assert "Traceback" not in done.stderr
    status = status_of(tmp_path / "out")
    assert status.state == "stopped"
    assert not {"1.tar", "1.json"} & set(contents(tmp_path / "out"))
    assert not list((tmp_path / "out").glob(".claim-*"))
    again = command(shards, tmp_path / "out", "--max_bad_fraction", "0.5")
    subprocess.run(again, env=environment(), check=True, capture_output=True)
    assert {f"{number}.tar" for number in range(4)} <= set(contents(tmp_path / "out"))


def test_a_signal_ends_all_of_them(shards: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(shards, tmp_path / "out", "--devices", "2"), env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(600):
        if (tmp_path / "out").is_dir() and list((tmp_path / "out").glob(".lock-*")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "what was finished is kept" in errors
    assert not list((tmp_path / "out").glob(".lock-*"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--devices", "4000"], r"devices: 4000, but this machine has \d+ cores; give fewer"),
        (["--devices", "0"], "devices: 0 is not a number of devices"),
        (["--devices", "2", "--device", "cuda:1"], "devices: 2, but device is cuda:1"),
    ],
)
def test_devices_that_cannot_be_are_one_line(
    flags: list[str], told: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in FLAGS if word not in ("--device", "cpu")]
    code, _, err = run(capsys, "cache", "--shards", str(shards), "--out", str(tmp_path / "out"), *words, *flags)
    assert code == 2
    assert re.search(told, err), err
    assert not (tmp_path / "out").exists()


def test_ray_that_is_not_there_is_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("cache", "--shards", str(shards), "--out", str(tmp_path / "out"), *FLAGS, "--engine", "ray")
    code, _, err = run(capsys, *arguments, "--devices", "2")
    assert code == 2
    assert "devices: 2, but engine is ray; ray_workers says how many" in err
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where no cluster of this machine has left its address
    code, _, err = run(capsys, *arguments, "--ray_address", "auto")
    assert code == 2
    assert re.search(r"ray_address: no cluster at 'auto' .*; start one with `ray start --head`", err), err
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "engine: ray is not installed; pip install 'inpaint_data[ray]'" in err
    assert not (tmp_path / "out").exists()
