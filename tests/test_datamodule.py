"""The DataModule feeds a real Lightning Trainer the same batch from pictures and from a cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_shard
from flat import cache_latents, data_module
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from inpaint_data import Autoencoder, InpaintDataModule, MaskMixture, SampleError, UsageError

SETTINGS = {"resolution": 64, "masks": "mixture", "mask_offset": (-4, 9), "batch_size": 4}


class Painter(LightningModule):
    """The smallest inpainting model: 9 channels in, 4 out. Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = nn.Conv2d(9, 4, 3, padding=1)
        self.seen: list[dict] = []

    def training_step(self, batch: dict) -> torch.Tensor:
        self.seen.append(batch | {"epoch": self.current_epoch})
        small = batch["mask"][..., ::8, ::8].float()
        noisy = batch["latents"] + torch.randn_like(batch["latents"])
        painted = self.unet(torch.cat([noisy, small, batch["masked_latents"]], 1))
        return (painted - batch["latents"]).square().mean()

    def validation_step(self, batch: dict) -> None:
        self.seen.append(batch | {"epoch": "val"})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def fit(module: InpaintDataModule, tmp_path: Path, epochs: int = 2) -> Painter:
    painter = Painter()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(painter, datamodule=module)
    return painter


def keys_of(painter: Painter, epoch: object) -> list[str]:
    return [key for batch in painter.seen if batch["epoch"] == epoch for key in batch["__key__"]]


@pytest.mark.parametrize("source", ["shards", "cache"])
def test_every_sample_comes_once_an_epoch_in_a_new_order_with_a_new_mask(
    source: str, shards: str, tmp_path: Path, vae: Autoencoder, photo_bytes: dict[str, bytes]
) -> None:
    cache = str(tmp_path / "cache")
    cache_latents(shards, cache, vae=vae, variants=8, **SETTINGS)
    module = data_module(shards, vae=vae, **SETTINGS) if source == "shards" else data_module(cache, batch_size=4)
    painter = fit(module, tmp_path)
    for epoch in (0, 1):
        assert sorted(keys_of(painter, epoch)) == sorted(photo_bytes)
    assert keys_of(painter, 0) != keys_of(painter, 1)
    masks = [
        {
            key: batch["mask"][i]
            for batch in painter.seen
            if batch["epoch"] == epoch
            for i, key in enumerate(batch["__key__"])
        }
        for epoch in (0, 1)
    ]
    assert sum(not torch.equal(masks[0][key], masks[1][key]) for key in photo_bytes) >= 8


def test_pictures_and_cache_give_a_step_the_same_keys_shapes_and_types(
    shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **SETTINGS)
    live = fit(data_module(shards, vae=vae, **SETTINGS), tmp_path, 1).seen[0]
    cached = fit(data_module(str(tmp_path / "cache"), batch_size=4), tmp_path, 1).seen[0]
    assert live.keys() == cached.keys()
    for name, value in live.items():
        assert type(value) is type(cached[name])
        if isinstance(value, torch.Tensor):
            assert (value.shape, value.dtype) == (cached[name].shape, cached[name].dtype), name


def test_the_same_seed_repeats_a_run_and_another_does_not(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    def offsets(seed: int) -> list[int]:
        painter = fit(data_module(shards, vae=vae, seed=seed, **SETTINGS), tmp_path, 1)
        return torch.cat([batch["offset"] for batch in painter.seen]).tolist()

    assert offsets(0) == offsets(0)
    assert offsets(0) != offsets(1)


def test_validation_draws_the_same_masks_every_epoch(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    painter = fit(data_module(shards, val_source=shards, vae=vae, **SETTINGS), tmp_path, 3)
    val = [batch for batch in painter.seen if batch["epoch"] == "val"]
    passes = np.array_split(np.array([batch["mask"].numpy().tobytes() for batch in val], dtype=object), 3)
    assert (passes[0] == passes[1]).all()
    assert (passes[1] == passes[2]).all()


def test_no_weight_of_the_vae_is_in_the_checkpoint(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    fit(data_module(shards, vae=vae, **SETTINGS), tmp_path, 1)
    (checkpoint,) = tmp_path.glob("checkpoints/*.ckpt")
    assert set(torch.load(checkpoint, weights_only=False)["state_dict"]) == {"unet.weight", "unet.bias"}
    assert checkpoint.stat().st_size < 40_000


def test_a_bad_sample_in_training_is_left_out_and_named(
    tmp_path: Path, photo_bytes: dict[str, bytes], vae: Autoencoder, caplog: pytest.LogCaptureFixture
) -> None:
    cat = photo_bytes["cat"]
    write_shard(tmp_path / "in" / "a.tar", {"one": {"jpg": cat}, "cut": {"jpg": cat[:9000]}, "two": {"jpg": cat}})
    painter = fit(data_module(str(tmp_path / "in"), vae=vae, **SETTINGS), tmp_path, 1)
    assert sorted(keys_of(painter, 0)) == ["one", "two"]
    assert "sample 'cut' is left out: jpg: image is damaged" in caplog.text


def test_a_source_of_nothing_but_bad_samples_ends_the_run_instead_of_going_on_for_ever(
    shards: str, tmp_path: Path, vae: Autoencoder, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SampleError, match="no sample of the first 3 batches can be used"):
        fit(data_module(shards, vae=vae, **SETTINGS | {"masks": "sample"}), tmp_path)
    assert "add astronaut.mask.png" in caplog.text


def test_leaving_a_loader_early_stops_its_threads(shards: str, vae: Autoencoder) -> None:
    import threading

    module = data_module(predict_source=shards, vae=vae, **SETTINGS | {"batch_size": 1})
    module.setup("predict")
    iterator = iter(module.predict_dataloader())
    next(iterator)
    assert "inpaint_data-ahead" in [thread.name for thread in threading.enumerate()]
    iterator.close()
    assert "inpaint_data-ahead" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"resolution": 100}, "100 is not a multiple of the VAE's downscale factor 8; use 96 or 104"),
        ({"resolution": 4}, "4 is smaller than the VAE's downscale factor 8"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"mask_offset": 300}, "mask_offset: 300"),
        ({"fill": "pink"}, "fill: 'pink'"),
        ({"recipe": "sd9"}, "recipe: .sd9. is unknown"),
    ],
)
def test_settings_that_cannot_work_are_named_before_the_first_step(
    change: dict, named: str, shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    with pytest.raises(UsageError, match=named):
        fit(data_module(shards, vae=vae, **SETTINGS | change), tmp_path)


def test_a_mixture_that_nothing_draws_from_is_refused(shards: str) -> None:
    mixture = MaskMixture({"boxes": 1})
    for given in ({}, {"masks": "sample"}, {"masks": "alpha"}):
        with pytest.raises(UsageError, match=r"mixture: one is given, but masks is (sample|alpha)"):
            data_module(shards, mixture=mixture, **given)
    for masks in ("object", "lama-thick"):
        named = (
            rf"mixture: it has weights {{'boxes': 1}}, but masks is {masks}, .* set source: mixture, or leave weights"
        )
        with pytest.raises(UsageError, match=named):
            data_module(shards, mixture=mixture, masks=masks)
        data_module(shards, mixture=MaskMixture(invert=0.5, max_hole=0.9), masks=masks)
    data_module(shards, mixture=mixture, masks="mixture")


def test_weights_that_a_caches_masks_leave_no_say_are_refused(shards: str, tmp_path: Path) -> None:
    """Fresh masks are the cache's, here of one generator, unless masks says otherwise."""
    cache = str(tmp_path / "cache")
    made = SETTINGS | {"masks": "boxes", "carry_image": "crop"}
    cache_latents(shards, cache, vae="demo", masked_latents=False, **made)
    given = {"fresh_masks": True, "recipe": "sd3-blend", "mixture": MaskMixture({"clouds": 1})}
    with pytest.raises(UsageError, match="but masks is boxes, which draws nothing else"):
        data_module(cache, **given).setup("fit")
    drawn = data_module(cache, masks="mixture", **given)
    drawn.setup("fit")
    assert {name for batch in drawn.train_dataloader() for (name,) in batch["generator"]} == {"clouds"}


@pytest.mark.parametrize(
    ("mixture", "named"),
    [
        ({"weigths": {"boxes": 1}}, "mixture: there is no setting 'weigths'; it takes weights, min_hole, "),
        (3, "mixture: 3 is not a mapping; give some of weights, min_hole, "),
        ("boxes", "mixture: 'boxes' is not a mapping; give some of weights, min_hole, "),
    ],
)
def test_what_is_no_mixture_is_refused(mixture: Any, named: str, shards: str) -> None:
    with pytest.raises(UsageError, match=named):
        data_module(shards, masks="mixture", mixture=mixture)
    fields = {"weights": {"boxes": 1}}
    assert data_module(shards, masks="mixture", mixture=fields).masks.mixture == MaskMixture(**fields)
