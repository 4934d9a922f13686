"""offset_mask grows and shrinks exactly as a convolution with the whole window would, or as many steps of 3x3."""

import math
from typing import get_args

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inpaint_data import UsageError, offset_mask
from inpaint_data.masks.morphology import Window


def grow_by_convolution(mask: Tensor, radius: int) -> Tensor:
    """The obvious way: a (2r+1)^2 window of ones over one (1, 1, H, W) bool mask, nothing outside."""
    side = 2 * radius + 1
    return F.conv2d(mask.double(), torch.ones(1, 1, side, side, dtype=torch.double), padding=radius) > 0


def offset_by_convolution(mask: Tensor, offset: int) -> Tensor:
    if offset >= 0:
        return grow_by_convolution(mask, offset)
    return ~grow_by_convolution(~mask, -offset)


def grow_step_by_step(mask: Tensor, radius: int, window: str) -> Tensor:
    """The definition: `radius` times 3x3 over one (1, 1, H, W) bool mask, nothing outside."""
    square = torch.ones(1, 1, 3, 3)
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    for step in range(radius):
        turn = {"square": square, "cross": cross, "octagon": square if step % 2 == 0 else cross}[window]
        mask = F.conv2d(mask.float(), turn, padding=1) > 0
    return mask


def offset_step_by_step(mask: Tensor, offset: int, window: str) -> Tensor:
    if offset >= 0:
        return grow_step_by_step(mask, offset, window)
    return ~grow_step_by_step(~mask, -offset, window)


NAMES = st.sampled_from(get_args(Window))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    batch, height, width = draw(st.integers(1, 4)), draw(st.integers(1, 19)), draw(st.integers(1, 19))
    density = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = torch.rand((batch, 1, height, width), generator=generator) < density
    offsets = draw(st.lists(st.integers(-25, 25), min_size=batch, max_size=batch))
    return mask, torch.tensor(offsets)


@settings(max_examples=300, deadline=None)
@given(batches())
def test_every_sample_gets_its_own_offset_and_sign_to_the_last_bit(case: tuple[Tensor, Tensor]) -> None:
    mask, offsets = case
    expected = [offset_by_convolution(mask[i : i + 1], int(offset)) for i, offset in enumerate(offsets)]
    assert torch.equal(offset_mask(mask, offsets), torch.cat(expected))


@settings(max_examples=200, deadline=None)
@given(batches(), st.data())
def test_every_sample_gets_its_own_window_too(case: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    mask, offsets = case
    windows = data.draw(st.lists(NAMES, min_size=len(mask), max_size=len(mask)))
    triples = list(zip(mask.split(1), offsets.tolist(), windows, strict=True))
    expected = torch.cat([offset_step_by_step(*each) for each in triples])
    assert torch.equal(offset_mask(mask, offsets, windows), expected)
    for one, offset, window in triples:
        assert torch.equal(offset_mask(one, offset, window), offset_step_by_step(one, offset, window))


def kernel_of(window: str, k: int) -> np.ndarray:
    """The whole window at once, from its description."""
    down, right = np.abs(np.mgrid[-k : k + 1, -k : k + 1])
    sums = {"square": 2 * k, "octagon": 2 * math.ceil(k / 2) + math.floor(k / 2), "cross": k}  # cut corners
    return (down + right <= sums[window]).astype(np.uint8)


@pytest.mark.parametrize("window", get_args(Window))
@pytest.mark.parametrize("k", [1, 2, 7, 40, 127, 128])
def test_a_window_is_the_one_that_its_description_names_as_opencv_applies_it(window: Window, k: int) -> None:
    mask = torch.rand((1, 1, 150, 211), generator=torch.Generator().manual_seed(k)) > 0.999
    pixels, kernel = mask[0, 0].numpy().astype(np.uint8), kernel_of(window, k)
    nothing = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    assert np.array_equal(offset_mask(mask, k, window)[0, 0], cv2.dilate(pixels, kernel, **nothing))
    shrunk = 1 - cv2.dilate(pixels, kernel, **nothing)
    assert np.array_equal(offset_mask(~mask, -k, window)[0, 0], shrunk)


def test_an_octagon_holds_the_disc_and_is_an_eighth_wider_at_most() -> None:
    down, right = np.mgrid[-160:161, -160:161]
    dot = torch.from_numpy((down == 0) & (right == 0))[None, None]
    for k in range(1, 129):
        found = offset_mask(dot, k, "octagon")[0, 0].numpy()
        assert found[down**2 + right**2 <= k**2].all()
        assert (down**2 + right**2)[found].max() <= (1.12 * k + 1) ** 2
    assert 1.10 < found.sum() / (math.pi * 128**2) < 1.13
    assert 0.63 < offset_mask(dot, 128, "cross").sum() / (math.pi * 128**2) < 0.65


@pytest.mark.parametrize("offset", [-128, -33, -1, 0, 1, 32, 128])
def test_one_offset_for_all_equals_the_convolution(offset: int) -> None:
    height, width = (40, 51) if abs(offset) == 128 else (160, 201)  # the convolution takes minutes otherwise
    mask = torch.zeros(2, 1, height, width, dtype=torch.bool)
    mask[0, :, 10:30, 20:25] = True
    mask[1, :, :, 10:] = torch.rand((height, width - 10), generator=torch.Generator().manual_seed(1)) > 0.01
    expected = torch.cat([offset_by_convolution(one[None], offset) for one in mask])
    assert torch.equal(offset_mask(mask, offset), expected)


def test_a_mask_that_touches_the_border_does_not_shrink_there() -> None:
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., :16, :] = True
    shrunk = offset_mask(mask, -5)
    assert shrunk[..., :11, :].all()
    assert not shrunk[..., 11:, :].any()


@pytest.mark.parametrize("window", get_args(Window))
@pytest.mark.parametrize("offset", [10**6, 10**18])
def test_an_offset_far_beyond_the_picture_fills_or_empties_it(offset: int, window: Window) -> None:
    dot, hole = torch.zeros(1, 1, 9, 7, dtype=torch.bool), torch.ones(1, 1, 9, 7, dtype=torch.bool)
    dot[..., 4, 3], hole[..., 0, 0] = True, False
    assert offset_mask(dot, offset, window).all()
    assert not offset_mask(hole, -offset, window).any()


def test_empty_and_full_masks_stay_as_they_are() -> None:
    for value in (False, True):
        mask = torch.full((1, 1, 5, 5), value)
        for offset in (-9, -1, 0, 1, 9):
            assert torch.equal(offset_mask(mask, offset), mask)


def test_every_kind_of_mask_is_read_alike() -> None:
    mask = torch.rand((3, 1, 12, 12), generator=torch.Generator().manual_seed(2)) > 0.8
    offsets = torch.tensor([2, -1, 0])
    expected = offset_mask(mask, offsets)
    for other in (mask.to(torch.uint8), mask.to(torch.uint8) * 255, mask.float(), mask.half()):
        assert torch.equal(offset_mask(other, offsets), expected)


def test_every_kind_of_whole_number_is_read_alike() -> None:
    mask = torch.rand((2, 1, 150, 12), generator=torch.Generator().manual_seed(2)) > 0.98
    for each in (torch.int8, torch.int16, torch.int32):
        assert torch.equal(
            offset_mask(mask, torch.tensor([100, -128], dtype=each)), offset_mask(mask, torch.tensor([100, -128]))
        )


def test_half_is_not_repainted() -> None:
    assert not offset_mask(torch.full((1, 1, 4, 4), 0.5), 3).any()


def test_the_argument_is_left_alone_and_never_returned() -> None:
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    result = offset_mask(mask, 0)
    result[:] = True
    assert not mask.any()


def test_an_empty_batch_comes_back_empty() -> None:
    assert offset_mask(torch.zeros(0, 1, 8, 8), 3).shape == (0, 1, 8, 8)
    assert offset_mask(torch.zeros(0, 1, 8, 8), 3, []).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("mask", "offset", "named"),
    [
        (torch.zeros(8, 8), 1, r"\(B, 1, H, W\)"),
        (torch.zeros(2, 3, 8, 8), 1, r"\(2, 3, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([1, 2, 3]), r"\(2,\)"),
        (torch.zeros(2, 1, 8, 8), 1.5, "whole numbers"),
    ],
)
def test_wrong_arguments_are_named(mask: Tensor, offset: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        offset_mask(mask, offset)


@pytest.mark.parametrize(
    ("window", "named"),
    [
        ("disc", "'disc' is unknown; choose from square, octagon, cross"),
        (["square", "disc"], "'disc' is unknown"),
        (["square"], "one name or 2 names for this batch, not 1"),
    ],
)
def test_a_window_that_is_none_is_named(window: Window, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        offset_mask(torch.zeros(2, 1, 8, 8), 1, window)
