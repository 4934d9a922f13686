"""Captions that follow the mask: what is painted into it, recorded for each variant, with a text of its own."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import write_shard
from flat import cache_latents, data_module
from tiny_pipelines import pipeline_of

from inpaint_data import LatentCache, MaskSettings, UsageError, verify_cache
from inpaint_data.encoding.settings import TextModelSettings
from inpaint_data.encoding.text_encoder import TextEncoder
from inpaint_data.pictures.images import encode_png
from inpaint_data.pipeline import bucketed, cached

FOLLOWING = {"object": "category_name", "background": "scene", "full": "empty"}


def sample(names: list[str], caption: str = "the scene") -> dict[str, bytes]:
    """Boxes side by side, each with the name of its category."""
    boxes = [{"bbox": [4 + 16 * place, 4, 12, 12], "category_name": name} for place, name in enumerate(names)]
    picture = encode_png(np.full((64, 64, 3), 120, np.uint8))
    return {"png": picture, "txt": caption.encode(), "json": json.dumps(boxes).encode()}


@pytest.fixture
def shards(tmp_path: Path) -> str:
    samples = {f"s{number}": sample([f"a {word}" for word in ("cat", "dog", "owl")]) for number in range(6)}
    write_shard(tmp_path / "in" / "0.tar", samples)
    return str(tmp_path / "in")


def made(shards: str, out: Path, **given: Any) -> str:
    common: dict[str, Any] = {"resolution": 64, "masks": "object", "mask_offset": 0, "variants": 4, "device": "cpu"}
    cache_latents(shards, str(out), **{"captions": FOLLOWING} | common | given)
    assert verify_cache(str(out), deep=True, against=shards).problems == []
    return str(out)


def expected_of(batch: Any, row: int) -> str:
    """The caption by where the hole is."""
    if batch["generator"][row] == "full":
        return ""
    if batch["generator"][row] != "object" or "inverted" in batch["edits"][row]:
        return "the scene"
    place = int(batch["mask"][row, 0].any(0).nonzero()[0]) // 16
    return ["a cat", "a dog", "a owl"][place]


MIXTURES = [
    {"masks": "object"},
    {"masks": "mixture", "mixture": {"weights": {"object": 2, "boxes": 1, "full": 1}, "invert": 0.3}},
]


@pytest.mark.parametrize("masks", MIXTURES)
def test_each_variant_has_the_caption_of_what_is_painted(masks: dict[str, Any], shards: str, tmp_path: Path) -> None:
    out = made(shards, tmp_path / "cache", **masks)
    seen = set[str]()
    for variant in range(4):
        cache = LatentCache(out, variant=variant)
        batch: Any = cache.batch(range(6))
        assert batch["caption"] == [expected_of(batch, row) for row in range(6)]
        staged = wds.DataPipeline(
            wds.WebDataset(f"{out}/0.tar", shardshuffle=False), cached(variant=variant), bucketed(6)
        )
        assert next(iter(staged))["caption"] == batch["caption"]
        seen |= set(batch["caption"])
    assert {"a cat", "a dog", "a owl"} <= seen
    live = data_module(
        shards, batch_size=6, vae="demo", captions=FOLLOWING, **{"resolution": 64, "mask_offset": 0} | masks
    )
    live.setup("fit")
    for batch in live.train_dataloader():
        encoded = live.on_after_batch_transfer(batch, 0)
        assert encoded["caption"] == [expected_of(encoded, row) for row in range(6)]


def test_each_variant_has_the_text_of_its_caption(shards: str, tmp_path: Path) -> None:
    (tmp_path / "flux").mkdir()
    pipeline_of("FluxFillPipeline", tmp_path / "flux")
    text = {"text_model": str(tmp_path / "flux"), "text_length": 24}
    out = made(shards, tmp_path / "cache", **text)
    encoder = TextEncoder(TextModelSettings(model=text["text_model"], max_length=24), torch.device("cpu"))
    for variant in range(4):
        for carried in (None, ["prompt_embeds.npy", "pooled_prompt_embeds.npy"]):
            batch: Any = LatentCache(out, variant=variant, carried=carried).batch(range(6))
            assert not any(name.startswith("variant") for members in batch["carried"] for name in members)
            for row, caption in enumerate(batch["caption"]):
                for name, array in encoder.encode(caption).items():
                    stored = np.load(io.BytesIO(batch["carried"][row][f"{name}.npy"]))
                    assert np.array_equal(stored, array)
    module = data_module(out, batch_size=6)
    module.setup("fit")
    for batch in module.train_dataloader():
        for row, caption in enumerate(batch["caption"]):
            assert torch.equal(
                batch["prompt_embeds"][row], torch.from_numpy(encoder.encode(caption)["prompt_embeds"].copy())
            )


def test_masks_in_files_take_their_texts_from_a_list(tmp_path: Path) -> None:
    members = {"png": encode_png(np.full((64, 64, 3), 120, np.uint8)), "txt": b"the scene"}
    for number, left in ((0, 4), (1, 20), (7, 36)):
        mask = np.zeros((64, 64), np.uint8)
        mask[4:16, left : left + 12] = 255
        members[f"mask.{number}.png"] = encode_png(mask)
    members["json"] = json.dumps({"phrases": ["a cat", "a dog"]}).encode()
    write_shard(tmp_path / "in" / "0.tar", {"a": members})
    common: dict[str, Any] = {"resolution": 64, "masks": "object", "mask_offset": 0, "variants": 8}
    cache_latents(str(tmp_path / "in"), str(tmp_path / "c"), captions={"object": "json:phrases"}, **common)
    for variant in range(8):
        batch: Any = LatentCache(str(tmp_path / "c"), variant=variant)[0]
        place = int(batch["mask"][0, 0].any(0).nonzero()[0]) // 16
        assert batch["caption"] == [["a cat", "a dog", "the scene"][place]]


def test_without_the_mapping_all_have_the_scenes_and_the_same_bytes(shards: str, tmp_path: Path) -> None:
    out = made(shards, tmp_path / "cache", captions=None)
    assert "captions" not in json.loads((tmp_path / "cache" / "cache.json").read_bytes())["settings"]["masks"]
    assert {caption for k in range(4) for caption in LatentCache(out, variant=k).batch(range(6))["caption"]} == {
        "the scene"
    }


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({"objects": "x"}, r"captions: there is no mask 'objects'; .* did you mean object\?"),
        ({"boxes": "category_name"}, r"captions: boxes: 'category_name' is not a caption .* give scene or empty"),
        (["object"], r"captions: \['object'\] is not a mapping; write {object: category_name"),
    ],
)
def test_mappings_that_cannot_be_are_refused(captions: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MaskSettings(source="object", captions=captions)


def test_fresh_masks_cannot_have_the_captions_of_others(shards: str, tmp_path: Path) -> None:
    out = made(shards, tmp_path / "cache", carry_image="original")
    with pytest.raises(UsageError, match="fresh masks have the captions that were cached"):
        data_module(out, fresh_masks=True, vae="demo").train_dataloader()


def test_objects_that_nothing_says_a_caption_of_are_counted(shards: str, tmp_path: Path) -> None:
    def table(name: str, captions: dict[str, str]) -> str:
        return cache_latents(
            shards,
            str(tmp_path / name),
            resolution=64,
            masks="object",
            mask_offset=0,
            variants=4,
            device="cpu",
            captions=captions,
        ).table()

    assert "no own text" not in table("all", FOLLOWING)
    assert re.search(r"no own text +24 masks of objects .*scene's: 0/s0, ", table("none", {"object": "category"}))
