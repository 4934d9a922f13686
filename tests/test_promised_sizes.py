"""In live training a picture of another size than its header said is named, and its batch goes on without it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_shard
from flat import data_module
from PIL import Image
from test_images import chunk, saved

from inpaint_data import MaskSettings, PictureSettings
from inpaint_data.batch import is_batch
from inpaint_data.pictures.images import decode_image, image_size
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.indexed import IndexedShards
from inpaint_data.shards.reading import Fault

BUCKETS: dict[str, Any] = {"resolution": 64, "max_aspect": 2, "bucket_step": 16}


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def turned_at_its_end() -> bytes:
    """A PNG whose orientation stands behind its pixels, farther than its size is looked for."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(noise(130, 260), "PNG")
    return data[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]


def indexed(shard: Path, **pictures: Any) -> IndexedShards:
    settings = ExampleSettings(PictureSettings(**(BUCKETS | pictures)), MaskSettings(source="center"))
    return IndexedShards([str(shard)], settings)


def outcome(images: IndexedShards, batch_size: int = 8) -> tuple[list[list[str]], list[Fault]]:
    items = list(images.pipeline([range(len(images))], batch_size, [0], threads=0))
    batches = [item["__key__"] for item in items if is_batch(item)]
    assert all(
        type(item).__name__ == "BatchEnd" for item in items if not is_batch(item) and not isinstance(item, Fault)
    )
    return batches, [item for item in items if isinstance(item, Fault)]


def test_a_header_that_lies_costs_its_own_sample_alone(tmp_path: Path) -> None:
    lying = turned_at_its_end()
    assert image_size(lying[: 2**16]) == (130, 260)
    assert decode_image(lying).shape[:2] == (260, 130)
    wide = saved(noise(130, 260, 1), "PNG")
    shard = write_shard(tmp_path / "0.tar", {"a": {"png": wide}, "b": {"png": lying}, "c": {"png": wide}})
    batches, (fault,) = outcome(indexed(shard))
    assert batches == [["a", "c"]]
    assert fault.key == "b"
    assert not fault.on_purpose
    assert "image is 260 high and 130 wide" in fault.reason
    assert "its header promised a view of 48x80" in fault.reason


@pytest.mark.parametrize("pictures", [{}, {"resolution": [64, 96], "max_aspect": 1}])
def test_a_sample_replaced_since_it_was_indexed_is_named(pictures: dict[str, Any], tmp_path: Path) -> None:
    # A BMP has the same length when it is turned, so that the headers of the tar stay where they were.
    before, after = saved(noise(100, 200), "BMP"), saved(noise(50, 400), "BMP")
    if not pictures:
        after = saved(noise(200, 100), "BMP")
    assert len(before) == len(after)
    shard = write_shard(tmp_path / "0.tar", {key: {"bmp": before} for key in "abc"})
    images = indexed(shard, **pictures)
    write_shard(tmp_path / "0.tar", {key: {"bmp": after if key == "b" else before} for key in "abc"})
    batches, faults = outcome(images)
    assert {key[0] for keys in batches for key in keys} == {"a", "c"}
    assert {fault.key[0] for fault in faults if fault.key} == {"b"}
    assert all("shard was replaced" in fault.reason or "smaller than" in fault.reason for fault in faults)


def test_training_goes_on_and_the_log_names_the_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wide = saved(noise(130, 260, 1), "PNG")
    samples = {"a": {"png": wide}, "b": {"png": turned_at_its_end()}, "c": {"png": wide}, "d": {"png": wide}}
    write_shard(tmp_path / "0.tar", samples)
    data = data_module(str(tmp_path), vae="demo", masks="center", batch_size=4, num_workers=0, **BUCKETS)
    data.setup("fit")
    with caplog.at_level(logging.WARNING):
        keys = [key for batch in data.train_dataloader() for key in batch["__key__"]]
    assert sorted(keys) == ["a", "c", "d"]
    assert "sample 'b' is left out: image is 260 high and 130 wide" in caplog.text
