"""The transform gives the node's values bit for bit, and the same sample the same values in every batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Pooling
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inpaint_data import Autoencoder, InpaintTransform, RandomOffset, UsageError, encode_for_inpaint, offset_mask
from inpaint_data.encoding.transform import fill_hole
from inpaint_data.masks.morphology import Window
from inpaint_data.masks.offsets import Offset

GOLDEN = np.load(Path(__file__).parent / "data" / "inpaint_encode.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files})


class Recorder:
    """A VAE of the node's kind that keeps what it is given."""

    def encode(self, pixels: Tensor) -> Tensor:
        self.given = pixels.clone()
        return torch.zeros(1)


def image_batch(count: int, variants: int = 1, side: int = 64) -> dict[str, object]:
    generator = torch.Generator().manual_seed(count)
    return {
        "image": torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8),
        "mask": torch.rand((count, variants, side, side), generator=generator) > 0.99,
        "__key__": [f"sample_{i}" for i in range(count)],
    }


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
    assert result["window"] == [("square",)] * 3
    assert result["caption"] == ["a", "b", "c"]
    assert "image" not in result

    result = InpaintTransform(vae, posterior="moments")(image_batch(3, variants=2))
    assert result["latents"].shape == (3, 8, 8, 8)
    assert result["masked_latents"].shape == (3, 2, 8, 8, 8)
    assert result["offset"].shape == (3, 2)
    assert result["window"] == [("square", "square")] * 3


def test_the_mask_in_the_batch_is_grown_by_the_offset_in_the_batch(vae: Autoencoder) -> None:
    batch = image_batch(4)
    result = InpaintTransform(vae, mask_offset=(-8, 24))(batch)
    assert len(set(result["offset"].tolist())) > 1
    assert torch.equal(result["mask"], offset_mask(batch["mask"], result["offset"]))


def test_each_mask_grows_by_a_window_that_is_drawn_for_it_and_recorded() -> None:
    """And the offsets, which have a stream of their own, are those of squares alone."""
    batch = image_batch(30, variants=2)
    masks = [batch["mask"][:, k : k + 1] for k in range(2)]
    uniform = {"distribution": "uniform", "low": -8, "high": 24}
    several = RandomOffset(**uniform, windows=["square", "octagon", "cross"])
    result, squares = (
        InpaintTransform(None, mask_offset=each, masked_latents=False)(batch | {"latents": torch.zeros(30, 4, 8, 8)})
        for each in (several, RandomOffset(**uniform))
    )
    assert {name for row in result["window"] for name in row} == {"square", "octagon", "cross"}
    assert torch.equal(result["offset"], squares["offset"])
    for k, mask in enumerate(masks):
        windows = [row[k] for row in result["window"]]
        assert torch.equal(result["mask"][:, k : k + 1], offset_mask(mask, result["offset"][:, k], windows))
        alone = InpaintTransform(None, mask_offset=several, masked_latents=False)(
            batch | {"mask": mask, "variants": [k], "latents": torch.zeros(30, 4, 8, 8)}
        )
        assert alone["window"] == [(name,) for name in windows]


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
    transform = InpaintTransform(Autoencoder(Pooling()), mask_offset=(-128, 128), seed=seed)
    alone = image_batch(1, side=8) | {"__key__": [key], "variants": [variant]}
    among = image_batch(3, variants=2, side=8) | {"__key__": ["a", key, "b"], "variants": [variant + 1, variant]}
    offset = transform(alone)["offset"][0]
    assert offset == transform(among)["offset"][1, 1]
    assert -128 <= offset <= 128


def test_offsets_cover_the_whole_range_and_nothing_else() -> None:
    transform = InpaintTransform(Autoencoder(Pooling()), mask_offset=(-2, 3))
    assert set(transform(image_batch(200, side=8))["offset"].tolist()) == {-2, -1, 0, 1, 2, 3}


def test_a_variant_has_the_same_values_alone_and_among_others(vae: Autoencoder) -> None:
    transform = InpaintTransform(vae, mask_offset=(-3, 9), posterior="sample")
    batch = image_batch(4, variants=3)
    together = transform(batch)
    for k in range(3):
        alone = transform(batch | {"mask": batch["mask"][:, k : k + 1], "variants": [k]})
        assert torch.equal(together["masked_latents"][:, k], alone["masked_latents"])
        assert torch.equal(together["mask"][:, k : k + 1], alone["mask"])


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
