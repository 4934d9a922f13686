"""Each tool's way with a mask equals a slow reference written from its description, one axis at a time."""

import math
import re
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import pytest
import torch
import torch.nn.functional as F
from conftest import PHOTOS, Figure
from flat import data_module
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_fills import Recording, as_automatic1111
from test_soft_border import a1111s_blur
from torch import Tensor

from inpaint_data import Autoencoder, InpaintTransform, latent_mask
from inpaint_data.encoding.fills import fill_hole
from inpaint_data.encoding.recipes import conditioning
from inpaint_data.errors import UsageError
from inpaint_data.masks.morphology import offset_mask
from inpaint_data.masks.presets import PRESETS, Preset, binarise, grow_comfy
from inpaint_data.masks.soft_border import SoftBorder

DOCS = Path(__file__).parents[1] / "docs" / "job.md"


def random_masks(seed: int, batch: int, height: int, width: int, share: float = 0.05) -> Tensor:
    return torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(seed)) < share


def slow_grow_comfy(mask: Tensor, k: int) -> Tensor:
    """The convolution with k x k ones, padded by ceil((k - 1) / 2), clamped, rounded and cropped to the mask's size."""
    if k == 0:
        return mask
    convolved = F.conv2d(mask.float(), torch.ones(1, 1, k, k), padding=math.ceil((k - 1) / 2))
    return convolved.clamp(0, 1).round()[..., : mask.shape[-2], : mask.shape[-1]].bool()


@settings(max_examples=150, deadline=None)
@given(
    k=st.integers(0, 40),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    share=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_comfys_growth_equals_its_convolution(k: int, height: int, width: int, share: float, seed: int) -> None:
    mask = random_masks(seed, 2, height, width, share)
    assert torch.equal(grow_comfy(mask, k), slow_grow_comfy(mask, k))


@settings(max_examples=50, deadline=None)
@given(sides=st.lists(st.integers(0, 30), min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_each_sample_grows_by_its_own_side(sides: list[int], seed: int) -> None:
    mask = random_masks(seed, len(sides), 20, 17)
    slow = torch.cat([slow_grow_comfy(mask[i : i + 1], k) for i, k in enumerate(sides)])
    assert torch.equal(grow_comfy(mask, torch.tensor(sides)), slow)


def test_an_even_side_grows_one_pixel_more_down_and_right() -> None:
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., 8, 8] = True
    rows, columns = grow_comfy(mask, 6)[0, 0].nonzero().T
    assert (rows.min() - 8, rows.max() - 8, columns.min() - 8, columns.max() - 8) == (-2, 3, -2, 3)


def test_an_odd_side_grows_like_the_offset_of_half_of_it() -> None:
    mask = random_masks(0, 2, 24, 32)
    assert torch.equal(grow_comfy(mask, 7), offset_mask(mask, 3))


def test_the_given_mask_stays_as_it_was() -> None:
    mask = random_masks(0, 2, 24, 32)
    before = mask.clone()
    for k in (0, 1, 6):
        grow_comfy(mask, k).logical_not_()
        assert torch.equal(mask, before)


def test_an_empty_batch_stays_empty() -> None:
    assert grow_comfy(torch.zeros(0, 1, 8, 8, dtype=torch.bool), 6).shape == (0, 1, 8, 8)
    assert grow_comfy(torch.zeros(2, 1, 0, 8, dtype=torch.bool), 6).shape == (2, 1, 0, 8)


@pytest.mark.parametrize("k", [-1, 1.5, torch.tensor([3, -2]), torch.tensor([True, False])])
def test_a_side_that_is_no_number_of_pixels_is_refused(k: Any) -> None:
    with pytest.raises(UsageError, match="k must be whole numbers of pixels >= 0"):
        grow_comfy(random_masks(0, 2, 8, 8), k)


def test_sides_for_another_batch_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(2,\)"):
        grow_comfy(random_masks(0, 2, 8, 8), torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_thresholds_differ_at_one_half_alone(dtype: torch.dtype) -> None:
    mask = torch.tensor([0.0, 0.25, 0.498, 0.5, 0.504, 0.75, 1.0], dtype=dtype)
    assert binarise(mask, "exclusive").tolist() == [False, False, False, False, True, True, True]
    assert binarise(mask, "inclusive").tolist() == [False, False, False, True, True, True, True]
    assert torch.equal(binarise(mask, "exclusive"), mask.round().bool())


@pytest.mark.parametrize("threshold", ["exclusive", "inclusive"])
def test_masks_of_whole_numbers_are_0_and_1_or_levels(threshold: Any) -> None:
    assert binarise(torch.tensor([0, 1]), threshold).tolist() == [False, True]
    levels = torch.tensor([0, 1, 127, 128, 255], dtype=torch.uint8)
    assert binarise(levels, threshold).tolist() == [False, False, False, True, True]
    assert binarise(torch.tensor([False, True]), threshold).tolist() == [False, True]


@pytest.mark.parametrize("threshold", ["exclusive", "inclusive"])
@pytest.mark.parametrize("values", [[0.0, 255.0], [-1.0, 1.0], [0.0, math.nan], [0, 3], [0, 256], [-1, 1]])
def test_values_that_no_mask_has_are_refused(values: list[float], threshold: Any) -> None:
    with pytest.raises(UsageError, match="mask"):
        binarise(torch.tensor(values), threshold)


def test_an_unknown_threshold_is_refused() -> None:
    with pytest.raises(UsageError, match="'half' is unknown; choose from exclusive, inclusive"):
        binarise(torch.zeros(1), "half")  # type: ignore[arg-type]


def test_presets_are_the_documented_ones() -> None:
    assert {name: tuple(asdict(preset).values()) for name, preset in PRESETS.items()} == {
        "was": ("square", "exclusive", "grey", None, 6, None, False),
        "comfy": ("comfy", "exclusive", "grey", "bilinear", 6, None, False),
        "comfy-conditioning": ("none", "exclusive", "grey", "bilinear", 0, None, True),
        "diffusers": ("none", "inclusive", "grey", "nearest", 0, None, False),
        "a1111": ("none", "exclusive", "blur", "bicubic-round", 0, {"kind": "gaussian", "radius": 4}, True),
        "fooocus": ("square", "exclusive", "grey", "max", 0, None, False),
    }


def grown(preset: str, mask: Tensor, k: int) -> Tensor:
    grow = {"square": offset_mask, "comfy": grow_comfy, "none": lambda mask, _: mask.clone()}
    return grow[PRESETS[preset].growth](mask, k)


def test_presets_differ_only_on_their_axes() -> None:
    soft = torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    soft[:, :, ::5, ::7] = 0.5
    pixels = torch.rand(2, 3, 32, 48)
    binary = {name: binarise(soft, preset.threshold) for name, preset in PRESETS.items()}
    assert torch.equal(binary["was"], binary["comfy"])
    assert torch.equal(binary["diffusers"] ^ binary["was"], soft == 0.5)

    mask = random_masks(3, 2, 32, 48, 0.01)
    was, comfy, diffusers = (grown(name, mask, 6) for name in ("was", "comfy", "diffusers"))
    assert torch.equal(diffusers, mask)
    assert ((mask & ~comfy) | (comfy & ~was)).sum() == 0
    assert mask.sum() < comfy.sum() < was.sum()

    filled = [fill_hole(pixels, mask, PRESETS[name].fill, low=0.0) for name in PRESETS if name != "a1111"]
    assert all(torch.equal(filled[0], each) for each in filled)
    mask = grown("was", mask, 2)
    ways = {preset.latent_mask for preset in PRESETS.values()}
    at_latent_size = [latent_mask(mask, 8, way) for way in ways]
    assert all(not torch.equal(a, b) for a, b in combinations(at_latent_size, 2))


def test_comfyui_blends_with_the_bilinear_mask_and_feeds_models_its_rounding() -> None:
    mask = random_masks(5, 3, 64, 96, 0.5)
    middle = mask.float().reshape(3, 1, 8, 8, 12, 8)[:, :, :, 3:5, :, 3:5].mean((3, 5))
    assert (middle == 0.5).any()
    assert torch.equal(latent_mask(mask, 8, "bilinear"), middle)
    assert torch.equal(latent_mask(mask, 8, "bilinear-round"), middle.round().bool())
    recipe = conditioning("sd15-inpaint", {"scaling_factor": 1.0}, "bilinear")
    batch = {"mask": mask, "latents": torch.zeros(3, 4, 8, 12), "masked_latents": torch.zeros(3, 4, 8, 12)}
    assert torch.equal(recipe(batch)[:, :1], middle.round())
    assert torch.equal(recipe.blend_mask(batch), middle)


def given_masks() -> Tensor:
    """(2, 64, 96) float, every value k / 255 but some of exactly 0.5: a soft disc, and soft pixels and a box."""
    rng = np.random.default_rng(4)
    soft = cv2.GaussianBlur(cv2.circle(np.zeros((64, 96), np.float32), (50, 30), 15, 1, -1), (0, 0), 4)
    dots = rng.random((64, 96)) * (rng.random((64, 96)) < 0.02)
    dots[10:17, 70:90] = rng.random((7, 20))
    masks = torch.from_numpy(np.stack([soft, dots]).astype(np.float32))
    masks = (masks * 255).round() / 255
    masks[:, ::7, ::5] = 0.5
    return masks


def dilated(mask: np.ndarray, up: int, down: int) -> np.ndarray:
    """Every pixel within `up` rows and columns before and `down` behind a masked one, pixel by pixel."""
    result = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        result[max(0, row - up) : row + down + 1, max(0, column - up) : column + down + 1] = True
    return result


def grey(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> float32 in [-1, 1]."""
    return np.where(hole[..., None], np.float32(0), picture.astype(np.float32) / np.float32(127.5) - 1)


def as_was(mask: np.ndarray, picture: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hole = dilated(mask > 0.5, k, k)
    return hole, grey(picture, hole), hole


def as_comfy(mask: np.ndarray, picture: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pad = math.ceil((k - 1) / 2)
    noise_mask = dilated(mask > 0.5, k - 1 - pad, pad)
    middle = noise_mask.reshape(8, 8, 12, 8)[:, 3:5, :, 3:5].mean((1, 3))  # of bilinear, a factor of 8 leaves these
    return noise_mask, grey(picture, mask > 0.5), middle.astype(np.float32)


def as_comfy_conditioning(mask: np.ndarray, picture: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert not k
    small = F.interpolate(torch.from_numpy(mask)[None, None], size=(8, 12), mode="bilinear")[0, 0].numpy()
    middle = mask.reshape(8, 8, 12, 8)[:, 3:5, :, 3:5].mean((1, 3))
    assert np.abs(small - middle).max() <= 2**-24  # it adds the four in an order of its own
    return mask, grey(picture, np.around(mask) == 1), small


def as_diffusers(mask: np.ndarray, picture: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert not k
    return mask >= 0.5, grey(picture, mask >= 0.5), (mask >= 0.5)[::8, ::8]


def as_a1111(mask: np.ndarray, picture: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert not k
    soft = a1111s_blur((mask * 255).round().astype(np.uint8), 4)
    small = np.asarray(Image.fromarray(soft).convert("RGB").resize((12, 8)), np.float32)[..., 0] / 255
    filled = as_automatic1111(picture, soft).astype(np.float32) / np.float32(127.5) - 1
    return soft.astype(np.float32) / np.float32(255), filled, np.around(small) == 1


def as_fooocus(mask: np.ndarray, picture: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    white = np.where(np.around(mask) == 1, 255, 0).astype(np.uint8)
    hole = cv2.dilate(white, np.ones((3, 3), np.uint8), iterations=k) > 127
    return hole, grey(picture, hole), hole.reshape(8, 8, 12, 8).max((1, 3))


@pytest.mark.parametrize(
    ("preset", "slow", "offset"),
    [
        ("was", as_was, None),
        ("was", as_was, 3),
        ("comfy", as_comfy, None),
        ("comfy", as_comfy, 9),
        ("comfy-conditioning", as_comfy_conditioning, None),
        ("diffusers", as_diffusers, None),
        ("a1111", as_a1111, None),
        ("fooocus", as_fooocus, None),
        ("fooocus", as_fooocus, 4),
    ],
)
def test_a_preset_gives_what_its_tool_gives_from_the_soft_mask_to_latent_size(
    preset: str, slow: Any, offset: int | None, record_figure: Figure
) -> None:
    masks, recording = given_masks(), Recording()
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8))
    batch = {"image": pictures.permute(0, 3, 1, 2), "mask": masks[:, None], "__key__": ["a", "b"]}
    ours = InpaintTransform(Autoencoder(recording), offset, preset=preset)(batch)
    at_latent_size = latent_mask(ours["mask"], 8, PRESETS[preset].latent_mask)
    default = {"was": 6, "comfy": 6}.get(preset, 0)
    for i in range(2):
        hole, pixels, small = slow(masks[i].numpy(), pictures[i].numpy(), default if offset is None else offset)
        assert torch.equal(ours["mask"][i, 0], torch.from_numpy(hole))
        assert torch.equal(recording.given[i], torch.from_numpy(pixels).permute(2, 0, 1))
        assert torch.equal(at_latent_size[i, 0], torch.from_numpy(small))
    record_figure(f"preset {preset}, offset {offset}: 2 of 2 masks, holes and masks at latent size equal")


def test_every_preset_has_a_line_with_its_source() -> None:
    lines = re.findall(r"^\| `([a-z0-9-]+)` \| (\S+/\S+) ([0-9a-f.]{6,}), `", DOCS.read_text(), re.MULTILINE)
    assert [name for name, *_ in lines] == list(PRESETS)


def test_a_recipe_keeps_its_own_fill_beside_a_presets(vae: Autoencoder) -> None:
    """A1111's inpainting models are fed grey, whatever "masked content" is there."""
    for recipe, fill in ((None, "blur"), ("sd15-inpaint", "grey")):
        module = data_module(predict_source=str(PHOTOS), vae=vae, preset="a1111", recipe=recipe)
        module.setup("predict")
        assert (module.encoder.transform.fill, module.encoder.transform.mask_offset) == (fill, 0)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (64, 64), (8, 16), (24, 8), (256, 136)])
@pytest.mark.parametrize("factor", [4, 8])
def test_a1111s_way_to_latent_size_is_pillows_resize_then_round(height: int, width: int, factor: int) -> None:
    levels = torch.randint(0, 256, (3, 1, height, width), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    for mask in (levels / 255, levels > 127, random_masks(2, 3, height, width, 0.3)):
        ours = latent_mask(mask, factor, "bicubic")
        assert ours.dtype == torch.float32
        assert torch.equal(latent_mask(mask, factor, "bicubic-round"), ours.round().bool())
        for i in range(3):
            picture = Image.fromarray((mask[i, 0] * 255.0).round().to(torch.uint8).numpy())
            small = np.asarray(picture.resize((width // factor, height // factor)), np.float32) / 255
            # Pillow 13 rounds its coefficients in another way than those before.
            level = 1 / 255 + 1e-6 if int(PIL.__version__.split(".")[0]) < 13 else 0
            torch.testing.assert_close(ours[i, 0], torch.from_numpy(small), rtol=0, atol=level)


def test_soft_masks_stay_soft_at_latent_size_as_their_tools_blend() -> None:
    soft = torch.randint(0, 256, (2, 1, 32, 48), generator=torch.Generator().manual_seed(1)) / 255
    assert latent_mask(soft, 8, None) is soft
    cells = soft.reshape(2, 1, 4, 8, 6, 8)
    assert torch.equal(latent_mask(soft, 8, "nearest"), cells[:, :, :, 0, :, 0])
    assert torch.equal(latent_mask(soft, 8, "max"), cells.amax((3, 5)))
    assert torch.allclose(latent_mask(soft, 8, "bilinear"), cells[:, :, :, 3:5, :, 3:5].mean((3, 5)), atol=1e-7)
    assert torch.equal(latent_mask(soft, 8, "area"), latent_mask(soft, 8, "area").clamp(0, 1))
    assert torch.equal(latent_mask(soft, 8, "unshuffle"), F.pixel_unshuffle(soft, 8))
    with pytest.raises(UsageError, match=r"give it mask >= 0\.5"):
        latent_mask(soft, 8, "kandinsky")
    hard = soft > 0.5
    for how in ("nearest", "bilinear-round", "bicubic-round", "max"):
        assert latent_mask(hard, 8, how).dtype == torch.bool


def test_a_mask_without_batch_and_channel_is_refused() -> None:
    with pytest.raises(UsageError, match=r"mask must be \(B, 1, H, W\), not \(16, 16\)"):
        latent_mask(torch.zeros(16, 16, dtype=torch.bool), 8, "nearest")


def test_a_preset_of_ones_own_takes_each_axis_by_itself_and_refuses_unknown_names() -> None:
    mine = Preset(growth="comfy", fill="black")
    assert (mine.threshold, mine.latent_mask, mine.offset, mine.soft) == ("exclusive", None, 6, None)
    with pytest.raises(UsageError, match="preset: keep_soft: masks that stay soft cannot grow; add growth: none"):
        Preset(keep_soft=True)
    with pytest.raises(UsageError, match="soft: 4 is not a border"):
        Preset(soft=4)  # type: ignore[arg-type]
    for name, value in (("growth", "comfi"), ("threshold", "half"), ("fill", "gray"), ("latent_mask", "mean")):
        with pytest.raises(UsageError, match=f"preset: {name}: '{value}' is unknown; choose from "):
            Preset(**{name: value})
    for offset in (2.5, 1000, True):
        with pytest.raises(
            UsageError, match=rf"preset: offset: {offset} is not a whole number of pixels of -128 to 128"
        ):
            Preset(offset=offset)
    for wrong in ({"growth": "comfy"}, 3):
        with pytest.raises(UsageError, match="is unknown; choose from was, comfy"):
            InpaintTransform(None, preset=wrong)
    for wrong in (3, "comfi", ["comfy"]):
        with pytest.raises(UsageError, match=rf"preset: {re.escape(repr(wrong))} is unknown; choose from was, comfy"):
            data_module("shards", preset=wrong)


def test_settings_take_a_preset_of_ones_own_as_a_mapping() -> None:
    assert data_module("shards", preset={"growth": "comfy", "fill": "black"}).masks.preset == Preset(
        "comfy", fill="black"
    )
    without_blur = {"growth": "none", "fill": "blur", "latent_mask": "bicubic-round", "offset": 0, "keep_soft": True}
    for preset, soft in (
        ("a1111", SoftBorder("gaussian", 4)),
        (without_blur, None),
        (without_blur | {"soft": {"radius": 9}}, SoftBorder("gaussian", 9)),
    ):
        assert data_module("shards", preset=preset).masks.chosen_soft == soft
    with pytest.raises(UsageError, match="preset: growth: 'comfi' is unknown; choose from square, comfy, none"):
        data_module("shards", preset={"growth": "comfi"})
    with pytest.raises(UsageError, match="preset: there is no setting 'growing'; it takes growth, threshold, fill"):
        data_module("shards", preset={"growing": "comfy"})
