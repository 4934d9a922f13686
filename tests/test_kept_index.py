"""The index of local shards that is kept for the next start: headers are read once, and never believed when stale."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Pooling, small_samples, write_shard
from flat import data_module

from inpaint_data import Autoencoder, InpaintDataModule
from inpaint_data.pipeline import kept_index
from inpaint_data.pipeline.kept_index import kept_entries

opened: list[str] = []  # the tars, by their names


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(".tar"):
        opened.append(Path(str(arguments[0])).name)


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def _every_shard_is_worth_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept_index, "WORTH", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(3):
        write_shard(tmp_path / "shards" / f"{number}.tar", small_samples(4, seed=number))
    opened.clear()
    return tmp_path / "shards"


def started(source: Path, **more: Any) -> InpaintDataModule:
    """The module as it is when training begins."""
    options = {
        "resolution": 32,
        "upscale": True,
        "batch_size": 2,
        "num_workers": 0,
        "masks": "center",
        "vae": Autoencoder(Pooling()),
    }
    module = data_module(str(source), **options | more)
    module.setup("fit")
    module.train_dataloader()
    return module


def batches(module: InpaintDataModule) -> list[list[str]]:
    return [list(batch["__key__"]) for batch in module.train_dataloader()]


@pytest.mark.parametrize("max_aspect", [1.0, 2.0])
def test_the_second_start_opens_no_shard_and_has_the_same_batches(max_aspect: float, source: Path) -> None:
    pictures = {"max_aspect": max_aspect, "bucket_step": 8}
    by_headers = batches(started(source, mirror="none", **pictures))
    started(source, **pictures)
    opened.clear()
    second = started(source, **pictures)
    assert opened == []
    assert batches(second) == by_headers


def test_nothing_is_written_beside_the_shards(source: Path) -> None:
    before = sorted(source.iterdir())
    started(source)
    assert sorted(source.iterdir()) == before


@pytest.mark.parametrize("folder", ["none", "mine"])
def test_it_lies_in_the_folder_of_copies_or_nowhere(folder: str, source: Path, tmp_path: Path) -> None:
    mirror = "none" if folder == "none" else str(tmp_path / folder)
    started(source, mirror=mirror)
    assert not (tmp_path / "user").exists()
    assert len(list(tmp_path.glob("*/index/*.npz"))) == (folder == "mine")


def test_a_shard_that_was_replaced_is_read_again_though_its_size_and_time_are_the_same(source: Path) -> None:
    started(source)
    status = (source / "1.tar").stat()
    other = {key.replace("sample", "simple"): members for key, members in small_samples(4, seed=1).items()}
    write_shard(source / "1.tar", other)
    os.utime(source / "1.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    now = (source / "1.tar").stat()
    assert (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    opened.clear()
    again = started(source)
    assert opened == ["1.tar"]
    assert set(other) <= {key for batch in batches(again) for key in batch}


def test_a_shard_that_is_added_is_read_alone_and_one_that_is_gone_is_gone(source: Path) -> None:
    started(source)
    write_shard(source / "3.tar", small_samples(4, seed=3))
    (source / "0.tar").unlink()
    opened.clear()
    again = started(source)
    assert opened == ["3.tar"]
    assert sum(map(len, batches(again))) == 12


def test_processes_that_start_together_read_each_header_once(source: Path) -> None:
    shards = sorted(map(str, source.iterdir()))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: kept_entries(shards, None, with_sizes=False), range(4)))
    assert all(result is not None and len(result) == 3 for result in results)
    assert sorted(opened) == ["0.tar", "1.tar", "2.tar"]


def test_a_damaged_index_is_made_anew(source: Path, tmp_path: Path) -> None:
    started(source)
    (file,) = (tmp_path / "user").rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-100])
    assert sum(map(len, batches(started(source)))) == 12
    opened.clear()
    started(source)
    assert opened == []


def test_where_it_cannot_be_kept_headers_are_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        opened.clear()
        module = started(source)
        assert sorted(opened) == ["0.tar", "1.tar", "2.tar"]
    assert sum(map(len, batches(module))) == 12


def test_little_is_looked_through_again_each_time(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_index, "WORTH", 2**30)
    started(source)
    assert not (tmp_path / "user").exists()
