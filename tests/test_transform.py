"""The transform gives the node's values bit for bit, and the same sample the same values in every batch."""

import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Pooling
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inpaint_data import (
    Autoencoder,
    Encoder,
    EncodeSettings,
    ImageBatch,
    InpaintTransform,
    MaskSettings,
    RandomOffset,
    UsageError,
    encode_for_inpaint,
    offset_mask,
)
from inpaint_data.encoding.fills import fill_hole
from inpaint_data.masks.morphology import Window
from inpaint_data.masks.offsets import Offset

GOLDEN = np.load(Path(__file__).parent / "data" / "inpaint_encode.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files})


class Recorder:
    """A VAE of the node's kind that keeps what it is given."""

    def encode(self, pixels: Tensor) -> Tensor:
        self.given = pixels.clone()
        return torch.zeros(1)


def several_variants(count: int, variants: int, side: int = 64) -> ImageBatch:
    generator = torch.Generator().manual_seed(count)
    return {
        "image": torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8),
        "masks": torch.rand((count, variants, side, side), generator=generator) > 0.99,
        "variants": list(range(variants)),
        "generator": [[f"generator_{k}" for k in range(variants)]] * count,
        "edits": [[(f"edit_{k}",) for k in range(variants)]] * count,
        "__key__": [f"sample_{i}" for i in range(count)],
    }


def image_batch(count: int, side: int = 64) -> dict[str, Any]:
    """One variant, as the transform takes it."""
    return variant_of(several_variants(count, 1, side), 0)


def variant_of(batch: ImageBatch, k: int) -> dict[str, Any]:
    """That one alone, as the transform takes it."""
    return {
        "image": batch["image"],
        "mask": batch["masks"][:, k : k + 1],
        "variant": [batch["variants"][k]] * len(batch["image"]),
        "__key__": batch["__key__"],
    }


def encoder_of(vae: Autoencoder | None, offset: Offset | None = None, **settings: Any) -> Encoder:
    return Encoder(MaskSettings(offset=offset), EncodeSettings(**settings), vae)


@pytest.mark.parametrize("case", CASES)
def test_the_vae_is_given_what_the_node_gives_it(case: str) -> None:
    pixels, recorder = torch.from_numpy(GOLDEN[f"{case}/pixels_u8"]).float() / 255, Recorder()
    mask, offset = torch.from_numpy(GOLDEN[f"{case}/mask"]), int(GOLDEN[f"{case}/mask_offset"])
    untouched = pixels.clone(), mask.clone()

    result = encode_for_inpaint(recorder, pixels, mask, offset)

    assert torch.equal(recorder.given, torch.from_numpy(GOLDEN[f"{case}/encoded_pixels"]))
    assert torch.equal(result["noise_mask"], torch.from_numpy(GOLDEN[f"{case}/noise_mask"]).float())
    assert torch.equal(pixels, untouched[0])
    assert torch.equal(mask, untouched[1])


def test_all_fourteen_golden_cases_are_there() -> None:
    assert len(CASES) == 14


@pytest.mark.parametrize("case", CASES)
def test_the_training_transform_encodes_the_same_pixels_as_the_node(case: str, vae: Autoencoder) -> None:
    """From the same uint8 picture, binary mask and offset, to the last bit of the posterior's mode."""
    given, factor = GOLDEN[f"{case}/pixels_u8"][..., :3], vae.factor
    height, width = (side // factor * factor for side in given.shape[1:3])
    picture = torch.from_numpy(given[:, :height, :width].copy())
    mask = torch.from_numpy(GOLDEN[f"{case}/noise_mask"]).float().expand(len(picture), 1, -1, -1)
    node = encode_for_inpaint(vae, picture.float() / 255, mask[:, 0], 3)

    batch = {"image": picture.permute(0, 3, 1, 2), "mask": mask, "__key__": ["key"] * len(picture)}
    ours = InpaintTransform(vae, mask_offset=3)(batch)

    assert torch.equal(ours["masked_latents"], node["samples"])
    assert torch.equal(ours["mask"], node["noise_mask"].bool())


def test_grey_on_the_training_range_is_the_nodes_arithmetic_for_every_colour_value() -> None:
    """The node rounds dark pixels in [0, 1]; mapped to [-1, 1] nothing of that is left: all 256 values agree."""
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    for mask in (torch.zeros(1, 1, 16, 16, dtype=torch.bool), torch.ones(1, 1, 16, 16, dtype=torch.bool)):
        node = fill_hole(values.float() / 255, mask, "grey", low=0.0) * 2 - 1
        ours = fill_hole(values.float() / 127.5 - 1, mask, "grey", low=-1.0)
        diffusers = (values.float() / 127.5 - 1) * (mask < 0.5)
        assert torch.equal(ours, node)
        assert torch.equal(ours, diffusers)


def test_fills_are_grey_black_and_the_original() -> None:
    pixels, mask = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., :2, :] = True
    for fill, expected in (("grey", 0.0), ("black", -1.0)):
        filled = fill_hole(pixels, mask, fill, low=-1.0)
        assert (filled[..., :2, :] == expected).all()
        assert torch.equal(filled[..., 2:, :], pixels[..., 2:, :])
    assert torch.equal(fill_hole(pixels, mask, "original", low=-1.0), pixels)


def test_a_batch_gets_every_key_with_the_documented_shape_and_type(vae: Autoencoder) -> None:
    batch = image_batch(3) | {"caption": ["a", "b", "c"]}
    result = InpaintTransform(vae, mask_offset=(-8, 24))(batch)
    assert result["latents"].shape == result["masked_latents"].shape == (3, 4, 8, 8)
    assert result["latents"].dtype == torch.float32
    assert result["mask"].shape == (3, 1, 64, 64)
    assert result["mask"].dtype == torch.bool
    assert result["offset"].shape == (3,)
    assert result["offset"].dtype == torch.int64
    assert result["window"] == ["square"] * 3
    assert result["variant"].tolist() == [0, 0, 0]
    assert result["variant"].dtype == torch.int64
    assert result["caption"] == ["a", "b", "c"]
    assert "image" not in result

    results = encoder_of(vae, posterior="moments").variants(several_variants(3, 2) | {"variants": [4, 9], "seed": 7})
    assert len(results) == 2
    assert results[0]["latents"] is results[1]["latents"]
    for k, result in enumerate(results):
        assert result["latents"].shape == result["masked_latents"].shape == (3, 8, 8, 8)
        assert result["mask"].shape == (3, 1, 64, 64)
        assert result["offset"].shape == (3,)
        assert result["window"] == ["square"] * 3
        assert result["variant"].tolist() == [[4, 9][k]] * 3
        assert result["variant"].dtype == torch.int64
        assert result["generator"] == [f"generator_{k}"] * 3
        assert result["edits"] == [(f"edit_{k}",)] * 3
        assert result.keys().isdisjoint({"image", "masks", "variants", "seed"})


def test_the_mask_in_the_batch_is_grown_by_the_offset_in_the_batch(vae: Autoencoder) -> None:
    batch = image_batch(4)
    result = InpaintTransform(vae, mask_offset=(-8, 24))(batch)
    assert len(set(result["offset"].tolist())) > 1
    assert torch.equal(result["mask"], offset_mask(batch["mask"], result["offset"]))


def test_each_mask_grows_by_a_window_that_is_drawn_for_it_and_recorded() -> None:
    """And the offsets, which have a stream of their own, are those of squares alone."""
    batch = several_variants(30, 2)
    uniform = {"distribution": "uniform", "low": -8, "high": 24}
    several = RandomOffset(**uniform, windows=["square", "octagon", "cross"])
    results, squares = (
        encoder_of(None, each, masked_latents=False).variants(batch | {"latents": torch.zeros(30, 4, 8, 8)})
        for each in (several, RandomOffset(**uniform))
    )
    assert {name for result in results for name in result["window"]} == {"square", "octagon", "cross"}
    for k, (result, square) in enumerate(zip(results, squares, strict=True)):
        one = variant_of(batch, k)
        assert torch.equal(result["offset"], square["offset"])
        assert square["window"] == ["square"] * 30
        assert torch.equal(result["mask"], offset_mask(one["mask"], result["offset"], result["window"]))
        alone = InpaintTransform(None, mask_offset=several, masked_latents=False)(
            one | {"latents": torch.zeros(30, 4, 8, 8)}
        )
        assert alone["window"] == result["window"]


@pytest.mark.parametrize(("preset", "window"), [("comfy", "octagon"), ("diffusers", "cross")])
def test_windows_are_refused_where_the_preset_grows_masks_its_own_way(preset: str, window: Window) -> None:
    with pytest.raises(UsageError, match=f"windows: {window} with a preset that grows masks its own way; leave them"):
        InpaintTransform(None, mask_offset=RandomOffset("fixed", windows=(window,)), preset=preset)


@pytest.mark.parametrize(
    ("preset", "offset", "named"),
    [
        ("diffusers", RandomOffset("two-sided", low=2, high=8), "-8 to 8 pixels with a preset that grows no masks"),
        ("diffusers", 6, "6 pixels with a preset that grows no masks"),
        ("comfy", RandomOffset("normal", deviation=2), "-128 to 128 pixels shrink masks, which ComfyUI's node cannot"),
        ("comfy", (-2, 3), "-2 to 3 pixels shrink masks"),
    ],
)
def test_an_offset_that_a_preset_cannot_use_is_told_in_pixels(preset: str, offset: Offset, named: str) -> None:
    with pytest.raises(UsageError, match=f"mask_offset: {named}"):
        InpaintTransform(None, mask_offset=offset, preset=preset)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**40), st.text(max_size=12), st.integers(0, 99))
def test_an_offset_depends_on_seed_key_and_variant_alone(seed: int, key: str, variant: int) -> None:
    encoder = Encoder(MaskSettings(offset=(-128, 128)), EncodeSettings(), Autoencoder(Pooling()), seed)
    alone = image_batch(1, side=8) | {"__key__": [key], "variant": [variant]}
    among = several_variants(3, 2, side=8) | {"__key__": ["a", key, "b"], "variants": [variant + 1, variant]}
    mixed = image_batch(3, side=8) | {"__key__": ["a", key, "b"], "variant": [variant + 1, variant, variant + 2]}
    offset = encoder.transform(alone)["offset"][0]
    assert offset == encoder.variants(among)[1]["offset"][1]
    assert offset == encoder.transform(mixed)["offset"][1]
    assert -128 <= offset <= 128


def test_offsets_cover_the_whole_range_and_nothing_else() -> None:
    transform = InpaintTransform(Autoencoder(Pooling()), mask_offset=(-2, 3))
    assert set(transform(image_batch(200, side=8))["offset"].tolist()) == {-2, -1, 0, 1, 2, 3}


def test_a_variant_has_the_same_values_alone_and_among_others(vae: Autoencoder) -> None:
    encoder = encoder_of(vae, (-3, 9), posterior="sample")
    batch = several_variants(4, 3)
    together = encoder.variants(batch)
    for k in range(3):
        one = variant_of(batch, k) | {"epoch": batch["variants"][0]}  # all have the noise of the first
        alone = InpaintTransform(vae, mask_offset=(-3, 9), posterior="sample")(one)
        for name in ("masked_latents", "mask", "offset", "variant"):
            assert torch.equal(together[k][name], alone[name])


def test_masks_are_the_same_without_an_autoencoder(vae: Autoencoder) -> None:
    batch = several_variants(4, 3)
    encoded = encoder_of(vae, (-3, 9)).variants(batch)
    for full, masks in zip(encoded, encoder_of(None, (-3, 9)).masks(batch), strict=True):
        assert full.keys() - masks.keys() == {"latents", "masked_latents"}
        for name in masks:
            same = torch.equal if isinstance(masks[name], Tensor) else operator.eq
            assert same(masks[name], full[name]), name


def test_several_variants_are_not_taken_for_one(vae: Autoencoder) -> None:
    with pytest.raises(UsageError, match=r"the batch has 2 variants of masks; encode them with variants\(\)"):
        encoder_of(vae).encode(several_variants(3, 2))
    one = encoder_of(vae).encode(several_variants(3, 1))
    assert torch.equal(one["masked_latents"], InpaintTransform(vae)(image_batch(3))["masked_latents"])
    with pytest.raises(UsageError, match=r"mask must be \(B, 1, H, W\), not \(3, 2, 64, 64\); give every variant"):
        InpaintTransform(vae)(image_batch(3) | {"mask": several_variants(3, 2)["masks"]})


def test_sample_is_what_diffusers_makes_of_the_moments_and_differs_by_key_and_seed(vae: Autoencoder) -> None:
    batch = image_batch(2)
    batch["image"][1], batch["mask"][1] = batch["image"][0], batch["mask"][0]
    moments = InpaintTransform(vae, posterior="moments")(batch)
    mean, log_variance = moments["latents"].chunk(2, 1)
    deviation = torch.exp(0.5 * log_variance)
    sampled = {seed: InpaintTransform(vae, posterior="sample", seed=seed)(batch)["latents"] for seed in (0, 1)}
    noise = (sampled[0] - mean) / deviation
    assert abs(noise.mean()) < 0.2
    assert 0.8 < noise.std() < 1.2
    assert torch.equal(sampled[0], InpaintTransform(vae, posterior="sample", seed=0)(batch)["latents"])
    assert not torch.equal(sampled[0][0], sampled[0][1])
    assert not torch.equal(sampled[0], sampled[1])
    assert torch.equal(InpaintTransform(vae)(batch)["latents"], mean)


def test_float_pictures_in_0_to_1_give_what_uint8_gives(vae: Autoencoder) -> None:
    batch = image_batch(2)
    transform = InpaintTransform(vae)
    result = transform(batch | {"image": batch["image"].float() / 255})
    assert torch.equal(result["masked_latents"], transform(batch)["masked_latents"])


def test_the_vae_is_in_no_checkpoint_and_trains_nowhere(vae: Autoencoder) -> None:
    model = nn.ModuleDict({"transform": InpaintTransform(vae), "unet": nn.Conv2d(9, 4, 1)})
    assert set(model.state_dict()) == {"unet.weight", "unet.bias"}
    assert len(list(model.parameters())) == 2

    batch = model["transform"](image_batch(2))
    given = torch.cat([batch["latents"], batch["masked_latents"], batch["mask"][..., ::8, ::8]], 1)
    model["unet"](given).square().mean().backward()
    assert model["unet"].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in vae.module.parameters())


def test_an_empty_batch_comes_back_empty(vae: Autoencoder) -> None:
    result = InpaintTransform(vae, mask_offset=(-3, 3))(image_batch(0))
    assert result["latents"].shape == (0, 4, 8, 8)
    assert result["offset"].shape == (0,)


@pytest.mark.parametrize("offset", [-129, 129, 1000])
def test_the_node_refuses_an_offset_beyond_its_range(offset: int) -> None:
    with pytest.raises(UsageError, match=rf"mask_offset: {offset} is outside -128\.\.\.128"):
        encode_for_inpaint(Recorder(), torch.rand(1, 16, 16, 3), torch.rand(1, 16, 16), offset)


@pytest.mark.parametrize(
    ("pixels", "mask", "named"),
    [
        (torch.rand(1, 16, 16, 2), torch.rand(1, 16, 16), "3 or more"),
        (torch.zeros(1, 16, 16, 3, dtype=torch.uint8), torch.rand(1, 16, 16), "uint8"),
        (torch.rand(3, 16, 16, 3), torch.rand(2, 16, 16), "one mask, or one for each"),
        (torch.rand(1, 7, 16, 3), torch.rand(1, 16, 16), "smaller than the VAE's downscale factor 8"),
    ],
)
def test_the_node_names_what_is_wrong_with_its_inputs(pixels: Tensor, mask: Tensor, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        encode_for_inpaint(Recorder(), pixels, mask)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": torch.rand(2, 3, 64, 64) * 2 - 1}, r"must be in \[0, 1\]"),
        ({"image": torch.zeros(2, 64, 64, 3, dtype=torch.uint8)}, r"\(B, 3, H, W\)"),
        ({"image": torch.zeros(2, 3, 64, 64, dtype=torch.int32)}, "int32"),
        ({"mask": torch.zeros(2, 1, 32, 32)}, r"\(2, 1, 32, 32\)"),
        ({"__key__": ["only one"]}, "as many keys"),
        ({"variant": [0]}, "2 samples need as many keys and variants, not 2 and 1"),
    ],
)
def test_a_wrong_batch_is_named(change: dict[str, object], named: str, vae: Autoencoder) -> None:
    with pytest.raises(UsageError, match=named):
        InpaintTransform(vae)(image_batch(2) | change)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mask_offset": (5, -5)}, "lower number first"),
        ({"mask_offset": (-200, 5)}, "outside -128"),
        ({"fill": "gray"}, "choose from grey, black, white, original, mean"),
        ({"posterior": "mean"}, "choose from mode, sample, moments"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], named: str, vae: Autoencoder) -> None:
    with pytest.raises(UsageError, match=named):
        InpaintTransform(vae, **settings)
