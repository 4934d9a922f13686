"""Masks grown or shrunk on a device: the whole batch in one pass, whatever the offset of each.

Shapes: B batch, H height, W width, R rows of a result, N all elements of the padded batch in a row. What is small, the
offsets and what follows from them, stays on the CPU: nothing is read back from the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def grow(mask: Tensor, shrinks: Sequence[bool], squares: Sequence[int], diamonds: Sequence[int]) -> Tensor:
    """Each mask, or where it shrinks what it leaves free, grown by a square and then by a diamond of these radii.

    Args:
        mask: (B, 1, H, W) bool, of one pixel at least, on any device.
        shrinks, squares, diamonds: one for each mask.

    Returns:
        (B, 1, H, W) bool on the mask's device, a new tensor.
    """
    _, _, height, width = mask.shape
    furthest = height + width
    square_B = torch.tensor([min(radius, furthest) for radius in squares], device="cpu")
    diamond_B = torch.tensor([min(radius, furthest) for radius in diamonds], device="cpu")
    # Shrinking is growing the complement, whose outside is empty: both signs share one pass.
    flips = to_device(torch.tensor(shrinks, device="cpu"), mask.device)[:, None, None] if any(shrinks) else None
    grown = mask[:, 0] if flips is None else mask[:, 0].logical_xor(flips)
    grown = _grow(_grow(grown, square_B, along_rows=True), square_B, along_rows=False)
    chosen = diamond_B.nonzero()[:, 0]
    if len(chosen):
        rows = to_device(chosen, grown.device)
        grown[rows] = _grow_by_diamonds(grown[rows], diamond_B[chosen])
    return (grown if flips is None else grown.logical_xor(flips))[:, None]


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. CUDA does not wait: it takes over what is not pinned before it returns."""
    return host.to(device, non_blocking=device.type == "cuda")


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
    starts_B = torch.arange(batch, device="cpu") * padded[0].numel() + (margin - radii) * neighbour
    return _windows(padded.flatten(), neighbour, 2 * radii + 1, starts_B, row, (height, width))


def _grow_by_diamonds(mask_BHW: Tensor, radii: Tensor) -> Tensor:
    """OR of all within |dx| + |dy| <= `radii` (B,), each 1 or more.

    A diamond of radius r is the 3x3 cross, then the diamond of radius m = r - 1 without every other pixel, as a chess
    board has them: m + 1 steps down and right from each of m + 1 pixels up and right of one another.
    """
    batch, height, width = mask_BHW.shape
    steps = radii - 1
    m = int(steps.max())
    # m empty rows above and columns before each mask. A step past its right or lower end comes out in the empty part
    # before the next row or mask; the last mask needs rows behind it for that. The cross reaches a pixel outside
    # the frame, from where the steps lead back into it.
    high, row = height + 2 + m, width + 2 + m
    flat_N = mask_BHW.new_zeros((batch * high + m + 1) * row)
    canvas = flat_N[: batch * high * row].view(batch, high, row)[:, m:, m:]
    for down, right in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2)):
        canvas[:, down : down + height, right : right + width] |= mask_BHW
    starts_B = torch.arange(batch, device="cpu") * high * row
    down_right = _windows(flat_N, row + 1, steps + 1, starts_B, row, (high, row))
    starts_B = (torch.arange(batch, device="cpu") * high + 1 + m - steps) * row + m + 1
    return _windows(down_right.flatten(), row - 1, steps + 1, starts_B, row, (height, width))


def _windows(
    level_N: Tensor, neighbour: int, lengths: Tensor, starts_B: Tensor, row: int, size: tuple[int, int]
) -> Tensor:
    """(B, *size): from each start, the rows of `row` places below it and each place behind those on, the OR of
    `lengths` (B,) entries of flat memory, of which each lies `neighbour` behind the one before.

    Level p of a table holds the OR of 2^p neighbours from each position on, made from two entries of level p - 1.
    Any window is then the OR of two entries that overlap: log2 of its length steps instead of its length. On flat
    memory a neighbour is one element, one image width or both away; each output row is one contiguous piece of a
    level, so that every sample can have its own shift without a loop over samples.
    """
    rows, width = size
    device = level_N.device
    levels = torch.frexp(lengths.double()).exponent.long() - 1  # floor(log2), exact
    starts_2B = torch.stack([starts_B, starts_B + (lengths - 2**levels) * neighbour])
    below_R = torch.arange(rows, device=device) * row

    result = level_N.new_empty((len(lengths), rows, width))
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
            starts = to_device(starts_2B[:, chosen], device)[:, :, None] + below_R
            first, second = pieces.index_select(0, starts.flatten()).chunk(2)
            result[to_device(chosen, device)] = (first | second).reshape(-1, rows, width)
    return result
