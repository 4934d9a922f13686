"""Curves of a job in TensorBoard, or in any other of Lightning's loggers."""

import csv
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Pooling, run, small_samples, write_shard
from flat import cache_latents
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_stores import Web, shards_on, web  # noqa: F401 - a fixture

from inpaint_data import Autoencoder
from inpaint_data.job.metrics import Metrics
from inpaint_data.job.plan import Plan
from inpaint_data.job.reports import Pace, ProgressFile
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.ranks import Part
from inpaint_data.shards import store_errors

SMALL: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True, "device": "cpu"}
FLAGS = ["--vae", "demo", "--resolution", "64", "--upscale", "--masks", "boxes", "--device", "cpu"]
CURVES = {"images", "images_per_second", "shards_done", "left_out", "quarantined", "retries", "seconds_left"}


def put(folder: Path, count: int) -> str:
    """Shards of four samples each, and a bad one in the second."""
    for number in range(count):
        samples = {f"{number}_{key}": members for key, members in small_samples(4, number).items()}
        bad = {"1_bad": {"jpg": b"\xff\xd8\xff no picture"}} if number == 1 else {}
        write_shard(folder / f"{number}.tar", samples | bad)
    return str(folder)


def last_of_tensorboard(folder: Path) -> dict[str, float]:
    """Curve -> its last value."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag.removeprefix("cache/"): events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


def last_of_csv(root: Path) -> dict[str, float]:
    (file,) = root.rglob("metrics.csv")
    last = list(csv.DictReader(file.open()))[-1]
    return {name.removeprefix("cache/"): float(value) for name, value in last.items()}


def test_tensorboard_shows_the_curves_of_a_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shards = put(tmp_path / "in", 3)
    words = ["--shards", shards, "--out", "out", *FLAGS, "--max_bad_fraction", "0.5", "--logger", "tensorboard"]
    code, _, err = run(capsys, "cache", *words)
    assert code == 0, err
    last = last_of_tensorboard(tmp_path / "runs" / "out" / "version_0")
    assert set(last) == CURVES
    assert (last["images"], last["shards_done"], last["quarantined"], last["seconds_left"]) == (12, 3, 1, 0)


def test_the_curves_are_of_all_processes_and_keep_what_one_did_that_is_done(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "curves")
    folder = CacheFolder(tmp_path)
    mine, other = Metrics(logger, folder, Plan(Part(0, 2))), ProgressFile(folder, Plan(Part(1, 2)))
    other.images(Pace(4, done=1, images=5, expected=20, quarantined=2, retries=3))
    pace = Pace(4, done=2, images=8, expected=16, quarantined=1, retries=1)
    mine.images(pace)
    other.end(None, pace)
    mine.end(None, pace)
    last = last_of_csv(tmp_path / "curves")
    counts = {name: last[name] for name in ("step", "images", "shards_done", "quarantined", "retries")}
    assert counts == {"step": 13, "images": 13, "shards_done": 3, "quarantined": 3, "retries": 4}


@pytest.mark.slow
def test_one_process_of_several_draws_for_all(tmp_path: Path) -> None:
    shards = put(tmp_path / "in", 4)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", "inpaint_data", "cache", "--shards", shards, "--out", str(tmp_path / "out"), *FLAGS,
         "--devices", "2", "--max_bad_fraction", "0.5", "--logger", "tensorboard"],
        env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / "out").iterdir()
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert last_of_tensorboard(folder)["images"] >= 8  # process 0 may be done before the other has begun


def test_any_of_lightnings_loggers_is_told_the_whole_job(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "curves")
    shards = put(tmp_path / "in", 3)
    options = SMALL | {"vae": Autoencoder(Pooling()), "max_bad_fraction": 0.5}
    cache_latents(shards, str(tmp_path / "out"), logger=logger, **options)
    last = last_of_csv(tmp_path / "curves")
    assert set(last) == CURVES | {"step"}
    assert last.pop("images_per_second") > 0
    assert last == {
        "step": 12, "images": 12, "shards_done": 3, "quarantined": 1, "left_out": 0, "retries": 0, "seconds_left": 0,
    }  # fmt: skip


def test_a_store_that_is_asked_again_is_a_curve(
    web: Web,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_errors, "FIRST_PAUSE", 0.01)
    names, before = shards_on(web, 2), logging.getLogger(store_errors.__name__).level
    web.faults = [None, "drop", 503]
    log, logger = tmp_path / "job.jsonl", CSVLogger(tmp_path / "curves")
    cache_latents(names, str(tmp_path / "out"), vae=Autoencoder(Pooling()), logger=logger, log_json=str(log), **SMALL)
    retries = log.read_text().count('"event": "retry"')
    assert retries > 0
    assert last_of_csv(tmp_path / "curves")["retries"] == retries
    assert logging.getLogger(store_errors.__name__).level == before


class Full:
    """A logger whose disk is full."""

    def __init__(self) -> None:
        self.asked = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.asked += 1
        raise OSError(28, f"No space left on device for {len(metrics)} curves of step {step}")

    def save(self) -> None:
        self.asked += 1

    def finalize(self, status: str) -> None:
        raise AssertionError(status)


def test_a_logger_that_fails_is_named_once_and_ends_no_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards, logger = put(tmp_path / "in", 3), Full()
    options = SMALL | {"vae": Autoencoder(Pooling()), "max_bad_fraction": 0.5}
    summary = cache_latents(shards, str(tmp_path / "out"), logger=logger, **options)
    assert (summary.cached, logger.asked) == (12, 1)
    (told,) = [record.getMessage() for record in caplog.records if "told no more" in record.getMessage()]
    assert told.startswith("Full: [Errno 28] No space left")


def test_a_logger_whose_package_is_absent_is_one_line_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    shards = put(tmp_path / "in", 1)
    words = ["cache", "--shards", shards, "--out", str(tmp_path / "out"), *FLAGS, "--logger"]
    code, _, err = run(capsys, *words, "wandb")
    assert (code, err.splitlines()[-1]) == (2, "inpaint-data cache: logger: wandb needs a package: pip install wandb")
    assert not (tmp_path / "out").exists()
    code, _, err = run(capsys, *words, "tensorbord")
    assert code == 2
    assert "choose from tensorboard, wandb, csv; did you mean tensorboard?" in err
