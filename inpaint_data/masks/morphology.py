"""Morphology: binary masks grow or shrink by a number of pixels.

Two ways to the same bits: `morphology_cpu` takes mask by mask, `morphology_device` the batch in one pass.
"""

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from inpaint_data.errors import UsageError
from inpaint_data.masks import morphology_cpu, morphology_device

Window = Literal["square", "octagon", "cross"]
WINDOWS: tuple[Window, ...] = get_args(Window)
ROUNDING = 0.01  # beyond 0 and 1, which a resize in bfloat16 reaches


def offset_mask(mask: Tensor, offset: int | Tensor, window: Window | Sequence[Window] = "square") -> Tensor:
    """Grow (offset > 0) or shrink (offset < 0) each mask by |offset| pixels to all sides, in the window's shape.

    Outside the frame counts as masked when shrinking and as unmasked when growing, so a mask that touches the
    border does not shrink there. The result depends on nothing but the arguments and is exact, equal to a
    convolution with that window to the last bit.

    The windows, with k = |offset|; each reaches k pixels along rows and columns:
        square: side 2k + 1, |dx| and |dy| <= k, as WAS_VAEEncodeForInpaint has it; corners stay square.
        octagon: k steps of 3x3, by turns the square and the cross, so a square of radius ceil(k/2), then a diamond of
            radius floor(k/2). The disc of radius k lies within; the eight corners reach 1.12 k, and its area is 1.11
            of the disc's. Closer than the square (1.41 k, 1.27) or the cross.
        cross: k steps of the 3x3 cross, |dx| + |dy| <= k: ComfyUI's GrowMask with `tapered_corners`. Diagonally it
            reaches 0.71 k, and its area is 0.64 of the disc's.

    Args:
        mask: (B, 1, H, W) bool; or integers 0 and 1, or levels up to 255, masked above 127; or floats in [0, 1], masked
            above 0.5 (0.5 is not: the node this descends from rounds half to even).
        offset: one int for all, or an integer tensor (B,) with a value and a sign for each sample. Values larger
            than the image are allowed. A tensor on the CPU avoids waiting for the device.
        window: one name for all, or B names, one for each sample.

    Returns:
        (B, 1, H, W) bool on the mask's device, a new tensor.

    Raises:
        UsageError: wrong shape or values, a floating-point offset, or an unknown window.
    """
    if not isinstance(mask, Tensor):
        raise UsageError(f"mask must be a tensor (B, 1, H, W), not {type(mask).__name__}; give torch.from_numpy of it")
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise UsageError(f"mask must be (B, 1, H, W), not {tuple(mask.shape)}")
    offsets = _whole_numbers(offset, mask.shape[0])
    squares, diamonds = _radii([abs(each) for each in offsets], window)
    binary = binarise(mask)
    if binary.numel() == 0:
        return binary.clone()
    grow = morphology_cpu.grow if mask.device.type == "cpu" else morphology_device.grow
    return grow(binary, [each < 0 for each in offsets], squares, diamonds)


def _whole_numbers(offset: int | Tensor, batch: int) -> list[int]:
    """The offset of each sample."""
    if type(offset) is int:
        return [offset] * batch
    try:
        offsets = torch.as_tensor(offset)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"offset must be whole numbers of pixels, not {offset!r}") from None
    if offsets.is_floating_point() or offsets.dtype == torch.bool:
        raise UsageError(f"offset must be whole numbers of pixels, not {offsets.dtype}")
    if offsets.ndim == 0:
        offsets = offsets.expand(batch)
    if offsets.shape != (batch,):
        raise UsageError(f"offset must be one int or ({batch},) for this batch, not {tuple(offsets.shape)}")
    return cast(list[int], offsets.tolist())


def _radii(radii: Sequence[int], window: Window | Sequence[Window]) -> tuple[list[int], list[int]]:
    """The two parts of each sample's window: the radius of a square, and that of a diamond by which it then grows."""
    if window == "square":
        return list(radii), [0] * len(radii)
    if not isinstance(window, str | Sequence):
        raise UsageError(f"window: {window!r} is no name; choose from {', '.join(WINDOWS)}")
    names = [window] * len(radii) if isinstance(window, str) else list(window)
    if len(names) != len(radii):
        raise UsageError(f"window must be one name or {len(radii)} names for this batch, not {len(names)}")
    if unknown := set(names) - set(WINDOWS):
        raise UsageError(f"window: {min(unknown)!r} is unknown; choose from {', '.join(WINDOWS)}")
    diamonds = [
        {"square": 0, "octagon": radius // 2, "cross": radius}[name] for name, radius in zip(names, radii, strict=True)
    ]
    return [radius - diamond for radius, diamond in zip(radii, diamonds, strict=True)], diamonds


def binarise(mask: Tensor) -> Tensor:
    """Bool of the same shape: floats are masked above 0.5, integers where they are 1, or of levels up to 255 above 127.
    A bool mask is returned as it is, without being read.

    Raises:
        UsageError: floats outside [0, 1] or NaN; integers that are neither 0 and 1 nor levels of 0 to 255.
    """
    if mask.dtype == torch.bool:
        return mask
    highest = _highest(mask)
    if mask.is_floating_point():
        return mask > 0.5
    return mask > (127 if highest > 1 else 0)


def check_range(mask: Tensor) -> None:
    """Raises UsageError for values that no mask has, see `binarise`."""
    if mask.dtype != torch.bool:
        _highest(mask)


def _highest(mask: Tensor) -> float:
    """The highest value of a mask that is not bool, 0 of an empty one; UsageError for values that no mask has."""
    if not mask.numel():
        return 0
    low, high = torch.stack(torch.aminmax(mask)).tolist()  # a device is waited for once
    if mask.is_floating_point():
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise UsageError(f"a float mask must be in [0, 1], not {low:g} to {high:g}; divide levels by 255")
    elif low < 0 or high > 255 or 1 < high < 128:
        raise UsageError(
            f"a mask of integers must be of 0 and 1, or of levels up to 255, not {low} to {high}; "
            "compare labels first: mask == label"
        )
    return cast(float, high)
