"""Morphology: binary masks grow or shrink by a number of pixels.

Shapes: B batch, H height, W width, R rows of a result, N all elements of the padded batch in a row.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from inpaint_data.errors import UsageError

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
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise UsageError(f"mask must be (B, 1, H, W), not {tuple(mask.shape)}")
    offsets = torch.as_tensor(offset)
    if offsets.is_floating_point() or offsets.dtype == torch.bool:
        raise UsageError(f"offset must be whole numbers of pixels, not {offsets.dtype}")
    if offsets.ndim == 0:
        offsets = offsets.expand(mask.shape[0])
    if offsets.shape != mask.shape[:1]:
        raise UsageError(f"offset must be one int or ({mask.shape[0]},) for this batch, not {tuple(offsets.shape)}")

    binary = binarise(mask)[:, 0]
    square_B, diamond_B = _radii(offsets.cpu().long().abs(), window)
    if binary.numel() == 0:
        return binary[:, None].clone()
    # Shrinking is growing the complement, whose outside is empty: both signs share one pass.
    shrinks = (offsets < 0).cpu()
    flips = shrinks.to(mask.device)[:, None, None]
    grown = binary.logical_xor(flips) if shrinks.any() else binary
    grown = _grow(_grow(grown, square_B, along_rows=True), square_B, along_rows=False)
    chosen = diamond_B.nonzero()[:, 0]
    if len(chosen):
        rows = chosen.to(grown.device)
        grown[rows] = _grow_by_diamonds(grown[rows], diamond_B[chosen])
    return (grown.logical_xor(flips) if shrinks.any() else grown)[:, None]


def _radii(radii_B: Tensor, window: Window | Sequence[Window]) -> tuple[Tensor, Tensor]:
    """The two parts of each sample's window: the radius of a square, and that of a diamond by which it then grows."""
    names = [window] * len(radii_B) if isinstance(window, str) else list(window)
    if len(names) != len(radii_B):
        raise UsageError(f"window must be one name or {len(radii_B)} names for this batch, not {len(names)}")
    if unknown := set(names) - set(WINDOWS):
        raise UsageError(f"window: {min(unknown)!r} is unknown; choose from {', '.join(WINDOWS)}")
    diamonds = [
        {"square": 0, "octagon": radius // 2, "cross": radius}[name]
        for name, radius in zip(names, radii_B.tolist(), strict=True)
    ]
    diamond_B = torch.tensor(diamonds, dtype=torch.int64)
    return radii_B - diamond_B, diamond_B


def binarise(mask: Tensor) -> Tensor:
    """Bool of the same shape: floats are masked above 0.5, integers where they are 1, or of levels up to 255 above 127.

    Raises:
        UsageError: floats outside [0, 1] or NaN; integers that are neither 0 and 1 nor levels of 0 to 255.
    """
    check_range(mask)
    if mask.is_floating_point():
        return mask > 0.5
    if mask.dtype == torch.bool:
        return mask
    return mask > (127 if mask.numel() and int(mask.max()) > 1 else 0)


def check_range(mask: Tensor) -> None:
    """Raises UsageError for values that no mask has, see `binarise`."""
    if mask.dtype == torch.bool or not mask.numel():
        return
    low, high = mask.min().item(), mask.max().item()
    if mask.is_floating_point():
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise UsageError(f"a float mask must be in [0, 1], not {low:g} to {high:g}; divide levels by 255")
    elif low < 0 or high > 255 or 1 < high < 128:
        raise UsageError(
            f"a mask of integers must be of 0 and 1, or of levels up to 255, not {low} to {high}; "
            "compare labels first: mask == label"
        )


def _grow(mask_BHW: Tensor, radii: Tensor, *, along_rows: bool) -> Tensor:
    """OR of the rows (or of the columns) within `radii` (B,) of each one."""
    batch, height, width = mask_BHW.shape
    radii = radii.clamp(max=height if along_rows else width)
    margin = int(radii.max())
    if along_rows:
        padded = mask_BHW.new_zeros((batch, height + 2 * margin, width))
        padded[:, margin : margin + height] = mask_BHW
        neighbour = row = width
    else:
        padded = mask_BHW.new_zeros((batch, height, width + 2 * margin))
        padded[:, :, margin : margin + width] = mask_BHW
        neighbour, row = 1, width + 2 * margin
    starts_B = torch.arange(batch) * padded[0].numel() + (margin - radii) * neighbour
    starts_BR = starts_B[:, None] + torch.arange(height) * row
    return _windows(padded.flatten(), neighbour, 2 * radii + 1, starts_BR, width)


def _grow_by_diamonds(mask_BHW: Tensor, radii: Tensor) -> Tensor:
    """OR of all within |dx| + |dy| <= `radii` (B,), each 1 or more.

    A diamond of radius r is the 3x3 cross, then the diamond of radius m = r - 1 without every other pixel, as a chess
    board has them: m + 1 steps down and right from each of m + 1 pixels up and right of one another.
    """
    batch, height, width = mask_BHW.shape
    steps = radii.clamp(max=height + width) - 1
    m = int(steps.max())
    # m empty rows above and columns before each mask. A step past its right or lower end comes out in the empty part
    # before the next row or mask; the last mask needs rows behind it for that. The cross reaches a pixel outside
    # the frame, from where the steps lead back into it.
    high, row = height + 2 + m, width + 2 + m
    flat_N = mask_BHW.new_zeros((batch * high + m + 1) * row)
    canvas = flat_N[: batch * high * row].view(batch, high, row)[:, m:, m:]
    for down, right in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2)):
        canvas[:, down : down + height, right : right + width] |= mask_BHW
    starts_BR = (torch.arange(batch)[:, None] * high + torch.arange(high)) * row
    down_right = _windows(flat_N, row + 1, steps + 1, starts_BR, row)
    tops_B = torch.arange(batch) * high + 1 + m - steps
    starts_BR = (tops_B[:, None] + torch.arange(height)) * row + m + 1
    return _windows(down_right.flatten(), row - 1, steps + 1, starts_BR, width)


def _windows(level_N: Tensor, neighbour: int, lengths: Tensor, starts_BR: Tensor, width: int) -> Tensor:
    """(B, R, width): from each start and each of the width - 1 places behind it on, the OR of `lengths` (B,) entries
    of flat memory, of which each lies `neighbour` behind the one before.

    Level p of a table holds the OR of 2^p neighbours from each position on, made from two entries of level p - 1.
    Any window is then the OR of two entries that overlap: log2 of its length steps instead of its length. On flat
    memory a neighbour is one element, one image width or both away; each output row is one contiguous piece of a
    level, so that every sample can have its own shift without a loop over samples.
    """
    batch, rows = starts_BR.shape
    levels = torch.frexp(lengths.double()).exponent.long() - 1  # floor(log2), exact
    seconds_BR = starts_BR + ((lengths - 2**levels) * neighbour)[:, None]
    starts_2BR = torch.stack([starts_BR, seconds_BR])

    result = level_N.new_empty((batch, rows, width))
    next_N = level_N.new_empty(level_N.numel())
    for p in range(int(levels.max()) + 1):
        if p > 0:
            shift = 2 ** (p - 1) * neighbour
            # Entries whose neighbours lie past the end are never asked for, so they may hold anything.
            torch.logical_or(level_N[:-shift], level_N[shift:], out=next_N[:-shift])
            level_N, next_N = next_N, level_N
        chosen = (levels == p).nonzero()[:, 0]
        if len(chosen):
            pieces = level_N.as_strided((level_N.numel() - width + 1, width), (1, 1))
            first, second = pieces.index_select(0, starts_2BR[:, chosen].flatten().to(pieces.device)).chunk(2)
            result[chosen.to(pieces.device)] = (first | second).reshape(-1, rows, width)
    return result
