"""Each tool's way with a mask equals a slow reference written from its description, one axis at a time."""

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inpaint_data.conditioning import latent_mask
from inpaint_data.errors import UsageError
from inpaint_data.morphology import offset_mask
from inpaint_data.presets import PRESETS, binarise, grow_comfy
from inpaint_data.transform import fill_hole


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
def test_masks_of_whole_numbers_are_masked_where_not_zero(threshold: Any) -> None:
    assert binarise(torch.tensor([0, 1, 255], dtype=torch.uint8), threshold).tolist() == [False, True, True]
    assert binarise(torch.tensor([False, True]), threshold).tolist() == [False, True]


def test_an_unknown_threshold_is_refused() -> None:
    with pytest.raises(UsageError, match="'half' is unknown; choose from exclusive, inclusive"):
        binarise(torch.zeros(1), "half")  # type: ignore[arg-type]


def test_presets_are_the_documented_ones() -> None:
    assert {name: tuple(asdict(preset).values()) for name, preset in PRESETS.items()} == {
        "was": ("square", "exclusive", "grey", None),
        "comfy": ("comfy", "exclusive", "grey", "bilinear"),
        "diffusers": ("none", "inclusive", "grey", "nearest"),
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

    filled = [fill_hole(pixels, mask, preset.fill, low=0.0) for preset in PRESETS.values()]
    assert all(torch.equal(filled[0], each) for each in filled)
    at_latent_size = {p.latent_mask: latent_mask(mask, 8, p.latent_mask) for p in PRESETS.values() if p.latent_mask}
    assert not torch.equal(at_latent_size["nearest"], at_latent_size["bilinear"])


def test_comfys_way_to_latent_size_is_bilinear_then_round() -> None:
    mask = random_masks(5, 3, 64, 96, 0.5)
    slow = F.interpolate(mask.float(), size=(8, 12), mode="bilinear").round()
    assert torch.equal(latent_mask(mask, 8, "bilinear").float(), slow)
    assert (F.interpolate(mask.float(), size=(8, 12), mode="bilinear") == 0.5).any()
