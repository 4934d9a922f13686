"""What a sample's cut, mask, offset, noise and dropped caption are drawn from: its shard and key, and the epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents, data_module

from inpaint_data import Autoencoder, InpaintTransform, LatentCache
from inpaint_data.batch import Batch
from inpaint_data.encoding.text import Text, TextSettings

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
