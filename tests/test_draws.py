"""What a sample's cut, mask, offset, noise and dropped caption are drawn from: its shard and key, and the epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import Figure, Pooling, small_samples, write_shard
from flat import cache_latents, data_module

import inpaint_data.pipeline as ip
from inpaint_data import Autoencoder, InpaintTransform, LatentCache, UsageError, verify_cache
from inpaint_data.batch import Batch
from inpaint_data.encoding.text import Text, TextSettings
from inpaint_data.masks.mixture import MaskMixture
from inpaint_data.pictures.filters import Filters
from inpaint_data.pictures.images import encode_png

SETTINGS: dict[str, Any] = {"resolution": 64, "masks": "boxes", "upscale": True, "mask_offset": (-3, 3)}


@pytest.fixture
def equal_keys(tmp_path: Path) -> str:
    """Three shards of four samples each, all of the same picture, whose keys start again in every shard."""
    picture = small_samples(1)["sample_0"]
    for name in ("a", "b", "c"):
        write_shard(tmp_path / "in" / f"{name}.tar", {f"{number:04d}": picture for number in range(4)})
    return str(tmp_path / "in")


def by_sample(batches: Sequence[Batch], name: str) -> dict[tuple[str, str], torch.Tensor]:
    return {
        (shard, key): value
        for batch in batches
        for shard, key, value in zip(batch["__shard__"], batch["__key__"], batch[name], strict=True)  # type: ignore[literal-required]
    }


def different(values: dict[Any, torch.Tensor]) -> int:
    return len({value.numpy().tobytes() for value in values.values()})


def test_samples_with_equal_keys_in_other_shards_are_drawn_apart(
    equal_keys: str, tmp_path: Path, vae: Autoencoder
) -> None:
    cache_latents(equal_keys, str(tmp_path / "cache"), vae=vae, variants=1, **SETTINGS)
    cache = LatentCache(tmp_path / "cache", posterior="sample")
    cached = [cache[row] for row in range(12)]
    live = data_module(equal_keys, vae=vae, batch_size=12, posterior="sample", **SETTINGS)
    live.setup("fit")
    [batch] = [live.on_after_batch_transfer(batch, 0) for batch in live.train_dataloader()]
    for batches in (cached, [batch]):
        assert different(by_sample(batches, "mask")) == 12
        assert different(by_sample(batches, "latents")) == 12  # of one picture: their noise
    masks = by_sample([batch], "mask")
    assert all(torch.equal(mask, masks[place]) for place, mask in by_sample(cached, "mask").items())


def test_captions_of_equal_keys_are_dropped_apart(equal_keys: str, tmp_path: Path) -> None:
    cache_latents(equal_keys, str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)
    cache = LatentCache(tmp_path / "cache")
    batch = cache.batch(range(12))
    batch["caption"] = ["a caption"] * 12
    text = Text(TextSettings(dropout=0.5))
    dropped = [text(batch, seed, 0)["caption"] for seed in range(8)]
    assert any(captions[0:4] != captions[4:8] for captions in dropped)


def test_random_cuts_are_other_ones_every_epoch_from_pictures_and_fixed_in_a_cache(tmp_path: Path) -> None:
    write_shard(tmp_path / "in" / "a.tar", small_samples(8))
    settings = SETTINGS | {"crop": "random", "resolution": 8}
    vae = Autoencoder(Pooling())
    data = data_module(str(tmp_path / "in"), vae=vae, batch_size=8, **settings)
    data.setup("fit")
    epochs = []
    for epoch in range(3):
        data.epoch = epoch
        epochs.append(by_sample(list(data.train_dataloader()), "crop_top_left"))
    assert len({tuple(tuple(cut[place].tolist()) for place in sorted(cut)) for cut in epochs}) == 3
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=vae, **settings)
    cache = LatentCache(tmp_path / "cache")
    cached = by_sample([cache[row] for row in range(8)], "crop_top_left")
    assert all(torch.equal(cut, epochs[0][place]) for place, cut in cached.items())


def test_a_transform_alone_draws_other_offsets_in_every_epoch() -> None:
    transform = InpaintTransform(Autoencoder(Pooling()), mask_offset=(-3, 3))
    batch = {"image": torch.zeros(16, 3, 8, 8), "mask": torch.zeros(16, 1, 8, 8), "__key__": [*"abcdefghijklmnop"]}
    offsets = []
    for epoch in range(3):
        transform.set_epoch(epoch)
        offsets.append(transform(batch)["offset"])
    assert not torch.equal(offsets[0], offsets[1])
    transform.set_epoch(0)
    assert torch.equal(transform(batch)["offset"], offsets[0])
    assert torch.equal(transform(batch | {"variant": [2] * 16})["offset"], offsets[2])


def test_the_picture_and_the_masked_picture_have_noise_of_their_own(tmp_path: Path, vae: Autoencoder) -> None:
    """Nothing is masked, so that both are one picture, whose latents differ by their noise alone."""
    write_shard(tmp_path / "in" / "a.tar", small_samples(4))
    settings = SETTINGS | {"masks": "none", "mask_offset": 0}
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=vae, **settings)
    data = data_module(str(tmp_path / "in"), vae=vae, batch_size=4, posterior="sample", **settings)
    data.setup("fit")
    [live] = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    cached = LatentCache(tmp_path / "cache", "sample").batch(range(4))
    mode = LatentCache(tmp_path / "cache", "mode").batch(range(4))
    assert torch.equal(mode["latents"], mode["masked_latents"])
    for batch in (live, cached):
        assert (batch["latents"] - batch["masked_latents"]).abs().max() > 0.1


def test_the_seed_decides_which_variant_and_which_noise_a_cache_gives(
    equal_keys: str, tmp_path: Path, vae: Autoencoder
) -> None:
    cache_latents(equal_keys, str(tmp_path / "cache"), vae=vae, variants=4, **SETTINGS)
    batches = [LatentCache(tmp_path / "cache", "sample", seed=seed).batch(range(12)) for seed in (0, 1, 1)]
    assert torch.equal(batches[1]["variant"], batches[2]["variant"])
    assert torch.equal(batches[1]["latents"], batches[2]["latents"])
    assert not torch.equal(batches[0]["variant"], batches[1]["variant"])
    assert not torch.equal(batches[0]["latents"], batches[1]["latents"])


def test_what_float16_storage_costs_a_cached_sample(
    shards: str, tmp_path: Path, vae: Autoencoder, record_figure: Figure
) -> None:
    settings: dict[str, Any] = {"resolution": 64, "masks": "boxes", "batch_size": 1}
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **settings)
    data = data_module(shards, vae=vae, posterior="sample", **settings)
    data.setup("fit")
    live = by_sample([data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()], "latents")
    cached = by_sample(list(map(LatentCache(tmp_path / "cache", "sample").__getitem__, range(len(live)))), "latents")
    furthest = max(float((cached[place] - latents).abs().max()) for place, latents in live.items())
    record_figure(f"a cached posterior sample from float16 storage, against the live one: {furthest:.2g} at most")
    assert 0 < furthest < 4e-3


def test_two_random_views_of_a_picture_are_two_cuts(tmp_path: Path) -> None:
    write_shard(tmp_path / "in" / "a.tar", small_samples(8))
    settings = SETTINGS | {"crop": ["random", "random+flip"], "resolution": 8}
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **settings)
    cuts = LatentCache(tmp_path / "cache").batch(range(16))["crop_top_left"]
    assert not torch.equal(cuts[0::2], cuts[1::2])


def with_two_objects() -> dict[str, bytes]:
    """Two objects far apart, so that a cut around one shows nothing of the other."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 256, 3), np.uint8)
    members = {"png": encode_png(pixels)}
    for number, left in enumerate((20, 220)):
        mask = np.zeros((64, 256), np.uint8)
        mask[20:40, left : left + 16] = 255
        members[f"mask.{number}.png"] = encode_png(mask)
    return members


def test_fresh_masks_are_around_the_object_that_the_cache_was_cut_around(tmp_path: Path) -> None:
    write_shard(tmp_path / "in" / "a.tar", {f"{number:04d}": with_two_objects() for number in range(12)})
    settings: dict[str, Any] = {"resolution": 32, "crop": "mask", "masks": "object", "mask_offset": 0, "upscale": True}
    vae = Autoencoder(Pooling())
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=vae, carry_image="original", **settings)
    data = data_module(str(tmp_path / "cache"), vae=vae, batch_size=12, fresh_masks=True)
    data.setup("fit")
    [fresh] = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    cached = by_sample([LatentCache(tmp_path / "cache").batch(range(12))], "mask")
    assert all(torch.equal(mask, cached[place]) for place, mask in by_sample([fresh], "mask").items())
    assert all(mask.any() for mask in cached.values())
    lefts = {int(cut[1]) for cut in LatentCache(tmp_path / "cache").batch(range(12))["crop_top_left"]}
    assert len(lefts) == 2, "some are cut around the one, and some around the other"


def test_fresh_masks_pass_the_filters_of_the_cache(tmp_path: Path) -> None:
    write_shard(tmp_path / "in" / "a.tar", small_samples(32))
    half: dict[str, Any] = {"masks": "mixture", "mixture": MaskMixture({"center": 1, "none": 1})}
    settings = SETTINGS | half | {"filters": Filters(min_hole=0.01), "mask_offset": 0, "carry_image": "original"}
    vae = Autoencoder(Pooling())
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=vae, **settings)
    count = len(LatentCache(tmp_path / "cache"))
    data = data_module(str(tmp_path / "cache"), vae=vae, batch_size=count, fresh_masks=True)
    data.setup("fit")
    seen = set()
    for epoch in range(1, 7):
        data.epoch = epoch
        [batch] = list(data.train_dataloader())
        assert batch["masks"].flatten(1).any(1).all()
        assert 0 < len(batch["__key__"]) == len(batch["latents"]) < count
        seen |= set(batch["__key__"])
    assert len(seen) == count, "in other epochs others"


def test_shards_of_one_name_are_one_cache_whose_draws_are_those_of_live_training(
    tmp_path: Path, vae: Autoencoder
) -> None:
    picture = small_samples(1)["sample_0"]
    parts = [str(tmp_path / f"part-{number}") for number in range(2)]
    for part in parts:
        write_shard(Path(part) / "00000.tar", {f"{number:04d}": picture for number in range(2)})
    write_shard(Path(parts[1]) / "00001.tar", {"0000": picture})
    out = str(tmp_path / "cache")
    summary = cache_latents(parts, out, vae=vae, **SETTINGS)
    assert summary.in_cache["samples"] == 5
    assert cache_latents(parts, out, vae=vae, **SETTINGS).shards == 0, "all are there"
    assert verify_cache(out, deep=True, against=parts, vae=vae).ok
    cache = LatentCache(out, posterior="sample")
    masks = by_sample([cache[row] for row in range(5)], "mask")
    assert {shard for shard, _ in masks} == {"part-0-00000.tar", "part-1-00000.tar", "00001.tar"}
    assert different(masks) == 5
    source = wds.WebDataset(ip.expand(parts), shardshuffle=False, nodesplitter=wds.split_by_node)
    for given in (parts, source):
        for workers in ("threads", "processes"):
            live = data_module(given, vae=vae, batch_size=1, posterior="sample", workers=workers, **SETTINGS)
            live.setup("fit")
            batches = [live.on_after_batch_transfer(batch, 0) for batch in live.train_dataloader()]
            drawn = by_sample(batches, "mask")
            assert all(torch.equal(mask, drawn[place]) for place, mask in masks.items())
    cache_latents(parts[:1], str(tmp_path / "other"), vae=vae, **SETTINGS)
    with pytest.raises(UsageError, match=r"it is part-0-00000\.tar now, since another input has its name"):
        cache_latents(parts, str(tmp_path / "other"), vae=vae, **SETTINGS)
