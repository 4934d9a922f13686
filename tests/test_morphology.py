"""offset_mask grows and shrinks exactly as a convolution with the whole window would, or as many steps of 3x3.

The CPU has a way of its own; that of all other devices is run on the CPU here, and must give the same bits.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inpaint_data import UsageError, offset_mask
from inpaint_data.masks import morphology_device
from inpaint_data.masks.morphology import Window
from inpaint_data.masks.presets import grow_comfy


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
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda mask: mask,
    "transposed": lambda mask: mask.mT.contiguous().mT,
    "batch last": lambda mask: mask.movedim(0, -1).contiguous().movedim(-1, 0),
    "part of a larger one": lambda mask: F.pad(mask, (3, 2, 1, 4), value=True)[..., 1:-4, 3:-2],
    "every other column": lambda mask: mask.repeat_interleave(2, dim=-1)[..., ::2],
}


@st.composite
def batches(draw: st.DrawFn, side: int = 19, furthest: int = 25) -> tuple[Tensor, Tensor]:
    batch, height, width = draw(st.integers(1, 4)), draw(st.integers(1, side)), draw(st.integers(1, side))
    density = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = torch.rand((batch, 1, height, width), generator=generator) < density
    offsets = draw(st.lists(st.integers(-furthest, furthest), min_size=batch, max_size=batch))
    return LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](mask), torch.tensor(offsets)


def offset_as_on_a_device(mask: Tensor, offset: int | Tensor, window: Window | Sequence[Window] = "square") -> Tensor:
    """What `offset_mask` does with a bool mask that is not on the CPU."""
    offsets = torch.as_tensor(offset).expand(len(mask)).tolist()
    windows = [window] * len(mask) if isinstance(window, str) else window
    parts = {"square": lambda k: (k, 0), "octagon": lambda k: (k - k // 2, k // 2), "cross": lambda k: (0, k)}
    squares, diamonds = zip(*(parts[name](abs(k)) for name, k in zip(windows, offsets, strict=True)), strict=True)
    return morphology_device.grow(mask, [k < 0 for k in offsets], squares, diamonds)


BOTH_WAYS = pytest.mark.parametrize("offset_by", [offset_mask, offset_as_on_a_device], ids=["cpu", "device"])


@settings(max_examples=300, deadline=None)
@given(batches())
def test_every_sample_gets_its_own_offset_and_sign_to_the_last_bit(case: tuple[Tensor, Tensor]) -> None:
    mask, offsets = case
    expected = [offset_by_convolution(mask[i : i + 1], int(offset)) for i, offset in enumerate(offsets)]
    assert torch.equal(offset_mask(mask, offsets), torch.cat(expected))
    assert torch.equal(offset_as_on_a_device(mask, offsets), torch.cat(expected))


@settings(max_examples=200, deadline=None)
@given(batches(), st.data())
def test_every_sample_gets_its_own_window_too(case: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    mask, offsets = case
    windows = data.draw(st.lists(NAMES, min_size=len(mask), max_size=len(mask)))
    triples = list(zip(mask.split(1), offsets.tolist(), windows, strict=True))
    expected = torch.cat([offset_step_by_step(*each) for each in triples])
    assert torch.equal(offset_mask(mask, offsets, windows), expected)
    assert torch.equal(offset_as_on_a_device(mask, offsets, windows), expected)
    for one, offset, window in triples:
        assert torch.equal(offset_mask(one, offset, window), offset_step_by_step(one, offset, window))


@settings(max_examples=100, deadline=None)
@given(batches(side=150, furthest=200), st.data())
def test_the_cpu_gives_the_bits_of_a_device_at_any_size(case: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    mask, offsets = case
    windows = data.draw(st.lists(NAMES, min_size=len(mask), max_size=len(mask)))
    assert torch.equal(offset_mask(mask, offsets, windows), offset_as_on_a_device(mask, offsets, windows))


@pytest.mark.parametrize("window", get_args(Window))
def test_nothing_of_a_bool_mask_is_read_back_from_its_device(window: Window) -> None:
    """A tensor on "meta" has no values: whoever asks for one gets an error."""
    mask = torch.zeros(3, 1, 24, 31, dtype=torch.bool, device="meta")
    for offset in (6, -6, torch.tensor([-3, 0, 7])):
        result = offset_mask(mask, offset, window)
        assert (result.device.type, result.shape, result.dtype) == ("meta", mask.shape, torch.bool)
    assert grow_comfy(mask, torch.tensor([0, 5, 6])).shape == mask.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", get_args(Window))
def test_cuda_is_never_waited_for(window: Window) -> None:
    mask = torch.rand((4, 1, 512, 509), generator=torch.Generator().manual_seed(5)) > 0.99
    offsets = torch.tensor([-8, 0, 24, 128])
    there = mask.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [offset_mask(there, offsets, window), offset_mask(there, 6, window), grow_comfy(there, offsets.abs())]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = [offset_mask(mask, offsets, window), offset_mask(mask, 6, window), grow_comfy(mask, offsets.abs())]
    assert all(torch.equal(result.cpu(), one) for result, one in zip(results, expected, strict=True))


def kernel_of(window: str, k: int) -> np.ndarray:
    """The whole window at once, from its description."""
    down, right = np.abs(np.mgrid[-k : k + 1, -k : k + 1])
    sums = {"square": 2 * k, "octagon": 2 * math.ceil(k / 2) + math.floor(k / 2), "cross": k}  # cut corners
    return (down + right <= sums[window]).astype(np.uint8)


@BOTH_WAYS
@pytest.mark.parametrize("window", get_args(Window))
@pytest.mark.parametrize("k", [1, 2, 7, 40, 127, 128])
def test_a_window_is_the_one_that_its_description_names_as_opencv_applies_it(
    window: Window, k: int, offset_by: Callable[..., Tensor]
) -> None:
    mask = torch.rand((1, 1, 150, 211), generator=torch.Generator().manual_seed(k)) > 0.999
    pixels, kernel = mask[0, 0].numpy().astype(np.uint8), kernel_of(window, k)
    nothing = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    assert np.array_equal(offset_by(mask, k, window)[0, 0], cv2.dilate(pixels, kernel, **nothing))
    shrunk = 1 - cv2.dilate(pixels, kernel, **nothing)
    assert np.array_equal(offset_by(~mask, -k, window)[0, 0], shrunk)


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


@BOTH_WAYS
@pytest.mark.parametrize("window", get_args(Window))
@pytest.mark.parametrize("offset", [10**6, 10**18])
def test_an_offset_far_beyond_the_picture_fills_or_empties_it(
    offset: int, window: Window, offset_by: Callable[..., Tensor]
) -> None:
    dot, hole = torch.zeros(1, 1, 9, 7, dtype=torch.bool), torch.ones(1, 1, 9, 7, dtype=torch.bool)
    dot[..., 4, 3], hole[..., 0, 0] = True, False
    assert offset_by(dot, offset, window).all()
    assert not offset_by(hole, -offset, window).any()


def test_empty_and_full_masks_stay_as_they_are() -> None:
    for value in (False, True):
        mask = torch.full((1, 1, 5, 5), value)
        for offset in (-9, -1, 0, 1, 9):
            assert torch.equal(offset_mask(mask, offset), mask)


def test_every_kind_of_mask_is_read_alike() -> None:
    mask = torch.rand((3, 1, 12, 12), generator=torch.Generator().manual_seed(2)) > 0.8
    offsets = torch.tensor([2, -1, 0])
    expected = offset_mask(mask, offsets)
    whole = [mask.to(each) for each in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)]
    parts = [mask.to(each) for each in (torch.half, torch.bfloat16, torch.float, torch.double)]
    for other in (*whole, mask.to(torch.uint8) * 255, *parts):
        assert torch.equal(offset_mask(other, offsets), expected)


def test_every_kind_of_whole_number_is_read_alike() -> None:
    mask = torch.rand((2, 1, 150, 12), generator=torch.Generator().manual_seed(2)) > 0.98
    for each in (torch.int8, torch.int16, torch.int32):
        assert torch.equal(
            offset_mask(mask, torch.tensor([100, -128], dtype=each)), offset_mask(mask, torch.tensor([100, -128]))
        )


def test_half_is_not_repainted() -> None:
    assert not offset_mask(torch.full((1, 1, 4, 4), 0.5), 3).any()


@BOTH_WAYS
@pytest.mark.parametrize("height", [8, 11])
def test_the_argument_is_left_alone_and_never_returned(height: int, offset_by: Callable[..., Tensor]) -> None:
    for offset in (-2, 0, 2):
        mask = torch.rand((2, 1, height, 9), generator=torch.Generator().manual_seed(4)) > 0.5
        untouched = mask.clone()
        result = offset_by(mask, offset)
        assert result.is_contiguous()
        result ^= True
        assert torch.equal(mask, untouched)


def test_an_empty_batch_comes_back_empty() -> None:
    for shape in ((0, 1, 8, 8), (2, 1, 0, 8), (2, 1, 8, 0)):
        assert offset_mask(torch.zeros(shape, dtype=torch.bool), -3).shape == shape
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.zeros((1, 1, 4, 4), bool)}, "must be a tensor .* not ndarray; give torch.from_numpy"),
        ({"offset": "3"}, "offset must be whole numbers of pixels, not '3'"),
        ({"offset": None}, "offset must be whole numbers of pixels, not None"),
        ({"window": None}, "window: None is no name; choose from square"),
    ],
)
def test_what_is_no_mask_no_offset_or_no_window_is_refused_in_a_line(change: dict[str, Any], message: str) -> None:
    given = {"mask": torch.zeros(1, 1, 4, 4, dtype=torch.bool), "offset": 1, "window": "square"}
    with pytest.raises(UsageError, match=message):
        offset_mask(**given | change)
