"""A job that one can watch: a log of JSON lines, and `inpaint-data status` from another shell."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Pooling, run, small_samples, write_shard
from flat import cache_latents
from test_stores import Web, shards_on, web  # noqa: F401 - a fixture

from inpaint_data import Autoencoder, CacheError, UsageError
from inpaint_data.job.status import status_of
from inpaint_data.shards import store_errors

SMALL: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True, "device": "cpu"}
SLOW = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from conftest import Pooling
    from flat import cache_latents
    from inpaint_data import Autoencoder

    encode = Pooling.encode
    Pooling.encode = lambda self, pixels: time.sleep(0.2) or encode(self, pixels)
    small = dict(batch_size=2, resolution=16, masks="boxes", upscale=True, device="cpu")
    cache_latents({shards!r}, {out!r}, vae=Autoencoder(Pooling()), log_json={log!r}, **small)
"""


def put(folder: Path, count: int, bad: bool = False) -> str:
    for number in range(count):
        samples = {f"{number}_{key}": members for key, members in small_samples(4, number).items()}
        if bad and number == 1:
            samples["1_bad\n"] = {"jpg": b"\xff\xd8\xff no picture"}
        write_shard(folder / f"{number}.tar", samples)
    return str(folder)


def events_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_every_event_is_a_line_with_rates_and_what_is_to_come(tmp_path: Path) -> None:
    shards, log = put(tmp_path / "in", 3, bad=True), tmp_path / "job.jsonl"
    options = SMALL | {"vae": Autoencoder(Pooling()), "max_bad_fraction": 0.5, "log_json": str(log)}
    cache_latents(shards, str(tmp_path / "out"), **options)
    events = events_of(log)
    assert Counter(event["event"] for event in events) == {"start": 1, "shard": 3, "fault": 1, "end": 1}
    assert [event["rank"] for event in events] == [0] * 6
    start, end, fault = events[0], events[-1], next(event for event in events if event["event"] == "fault")
    assert (start["shards"], start["already"], start["world"]) == (3, 0, 1)
    assert (end["problem"], end["images"], end["shards_done"], end["seconds_left"]) == (None, 12, 3, 0.0)
    assert fault["shard"] == "1.tar"
    assert "\n" not in fault["key"]
    assert "cannot be decoded" in fault["reason"] or "damaged" in fault["reason"] or fault["reason"]
    assert all(event["images_per_second"] > 0 for event in events if event["event"] == "shard")
    cache_latents(shards, str(tmp_path / "out"), **options)
    assert [event["event"] for event in events_of(log)[6:]] == ["start", "end"]
    assert events_of(log)[6]["already"] == 3
    assert not list((tmp_path / "out").glob(".progress-*"))


def test_what_ends_a_job_and_what_it_left_out_is_in_the_log(tmp_path: Path) -> None:
    shards, log = put(tmp_path / "in", 3, bad=True), tmp_path / "job.jsonl"
    options = SMALL | {"vae": Autoencoder(Pooling()), "log_json": str(log), "on_bad": "raise"}
    with pytest.raises(CacheError):
        cache_latents(shards, str(tmp_path / "out"), **options)
    assert "on_bad is raise" in events_of(log)[-1]["problem"]
    assert events_of(log)[-1]["event"] == "end"
    assert status_of(tmp_path / "out").state == "stopped"


def test_a_store_that_is_asked_again_is_in_the_log(
    web: Web,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_errors, "FIRST_PAUSE", 0.01)
    names, log = shards_on(web, 2), tmp_path / "job.jsonl"
    web.faults = [None, "drop", 503]
    cache_latents(names, str(tmp_path / "out"), vae=Autoencoder(Pooling()), log_json=str(log), **SMALL)
    retries = [event["reason"] for event in events_of(log) if event["event"] == "retry"]
    assert retries
    assert all("asked again in" in reason for reason in retries)


def test_a_log_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    shards = put(tmp_path / "in", 1)
    with pytest.raises(UsageError, match=r"log_json: cannot write to .*/none/job.jsonl"):
        cache_latents(
            shards,
            str(tmp_path / "out"),
            vae=Autoencoder(Pooling()),
            log_json=str(tmp_path / "none" / "job.jsonl"),
            **SMALL,
        )


def test_status_tells_of_a_job_under_way_of_a_killed_one_and_of_a_complete_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = put(tmp_path / "in", 8), tmp_path / "out"
    script = tmp_path / "job.py"
    names = {"tests": str(Path(__file__).parent), "shards": shards, "out": str(out), "log": str(tmp_path / "log")}
    script.write_text(textwrap.dedent(SLOW.format(**names)))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if list(out.glob(".progress-0")) and list(out.glob("0.json")):
                break
            time.sleep(0.1)
        code, text, _ = run(capsys, "status", str(out))
        assert code == 0
        assert "under way" in text
        assert re.search("[0-7] of this run's 8, 0 of them left out; 8 inputs in all", text), text
        assert f"{process.pid} on" in text
        assert "gave a sign of life" in text
        status = json.loads(run(capsys, "status", str(out), "--json")[1])
        assert status["images_per_second"] > 0
        assert status["seconds_left"] > 0
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    killed = status_of(out)
    assert killed.state == "stopped"
    assert 0 < killed.in_cache["shards"] < 8
    assert not killed.holders[0].is_alive
    assert "run the same cache command again" in killed.table()
    options = {"batch_size": 2, "resolution": 16, "masks": "boxes", "upscale": True, "device": "cpu"}
    cache_latents(shards, str(out), vae=Autoencoder(Pooling()), **options)
    complete = status_of(out)
    assert (complete.state, complete.in_cache["samples"], complete.parts, complete.holders) == ("complete", 32, [], [])


def test_status_of_what_is_no_cache_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root, told in (
        (tmp_path, "nothing of a cache"),
        (tmp_path / "none", "no such folder"),
    ):
        code, _, err = run(capsys, "status", str(root))
        assert code == 2
        assert told in err
        assert len(err.splitlines()) == 1
