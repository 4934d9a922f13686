"""A Hugging Face Dataset as a source: its rows are samples like any others."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import Pooling
from flat import data_module
from PIL import Image

import inpaint_data.pipeline as ip
from inpaint_data import Autoencoder, UsageError
from inpaint_data.pipeline.datasets import DatasetSamples

COUNT = 7


def picture(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 20 * number, np.uint8)).save(file, kind)
    return file.getvalue()


def mask() -> bytes:
    file = io.BytesIO()
    pixels = np.zeros((32, 32), np.uint8)
    pixels[:16] = 255
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    """Pictures as bytes and as paths of files, with masks and captions."""
    rows = [{"bytes": picture(number), "path": None} for number in range(COUNT - 1)]
    (tmp_path / "last.jpg").write_bytes(picture(COUNT - 1, "JPEG"))
    table = {
        "image": [*rows, {"bytes": None, "path": str(tmp_path / "last.jpg")}],
        "mask": [{"bytes": mask(), "path": None}] * COUNT,
        "text": [f"number {number}" for number in range(COUNT)],
        "score": [0.5] * COUNT,
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "text": datasets.Value("string"),
            "score": datasets.Value("float32"),
        }
    )
    return datasets.Dataset.from_dict(table, features=features)


def members(samples: DatasetSamples) -> dict[str, dict[str, bytes]]:
    return {
        sample["__key__"]: {name: data for name, data in sample.items() if not name.startswith("__")}
        for sample in samples
        if isinstance(sample, dict)
    }


def test_rows_are_samples_with_the_very_bytes_of_their_pictures(dataset: Any, tmp_path: Path) -> None:
    found = members(ip.from_dataset(dataset))
    assert len(found) == COUNT
    assert found["000000003"] == {"png": picture(3), "mask.png": mask(), "txt": b"number 3"}
    assert found["000000006"]["jpg"] == (tmp_path / "last.jpg").read_bytes()
    streamed = members(ip.from_dataset(dataset.to_iterable_dataset()))
    assert streamed == found


def test_columns_of_other_names_are_named(dataset: Any) -> None:
    renamed = dataset.rename_columns({"image": "photo", "mask": "seg", "text": "en"})
    with pytest.raises(UsageError, match=r"no column is known to hold the images; it has photo, seg, en, score"):
        ip.from_dataset(renamed)
    assert members(ip.from_dataset(renamed, "image=photo,mask=seg,caption=en")) == members(ip.from_dataset(dataset))
    assert members(ip.from_dataset(renamed, {"image": "photo", "mask": "seg", "caption": "en"})).keys()
    with pytest.raises(UsageError, match="the dataset, see from_dataset has no column 'nothing'"):
        ip.from_dataset(renamed, "image=nothing")
    with pytest.raises(UsageError, match="one of splits; give one of 'train'"):
        ip.from_dataset(datasets.DatasetDict({"train": dataset}))


def test_a_row_without_a_picture_is_a_fault_and_not_the_end(dataset: Any, tmp_path: Path) -> None:
    (tmp_path / "last.jpg").unlink()
    faults = [item for item in ip.from_dataset(dataset) if isinstance(item, ip.Fault)]
    assert [fault.key for fault in faults] == ["000000006"]
    assert "only the path of one" in faults[0].reason


def test_the_datamodule_takes_a_dataset_and_shuffles_it_by_epoch(dataset: Any) -> None:
    module = data_module(
        dataset, batch_size=2, vae=Autoencoder(Pooling()), resolution=16, masks="sample", mask_offset=0
    )
    module.setup("fit")
    epochs = []
    for _ in range(2):
        batches = [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]
        epochs.append([key for batch in batches for key in batch["__key__"]])
        assert all(torch.equal(batch["mask"][:, :, :8], torch.ones_like(batch["mask"][:, :, :8])) for batch in batches)
        assert not any(batch["mask"][:, :, 8:].any() for batch in batches)
        assert {caption for batch in batches for caption in batch["caption"]} == {f"number {n}" for n in range(COUNT)}
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_it_stands_at_the_head_of_a_pipeline(dataset: Any) -> None:
    import webdataset as wds

    samples = ip.from_dataset(dataset)
    pipeline = wds.DataPipeline(
        lambda: iter(samples), ip.examples({"resolution": 16}, {"source": "sample"}), ip.bucketed(3)
    )
    assert [batch["image"].shape[0] for batch in pipeline] == [3, 3, 1]
