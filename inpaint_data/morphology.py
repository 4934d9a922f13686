"""How a binary mask grows or shrinks by a number of pixels.

Shapes: B batch, H height, W width, N all elements of the padded batch in a row.
"""

import torch
from torch import Tensor

from inpaint_data.errors import UsageError


def offset_mask(mask: Tensor, offset: int | Tensor) -> Tensor:
    """Grow (offset > 0) or shrink (offset < 0) each mask by a square window of side 2|offset| + 1.

    Outside the frame counts as masked when shrinking and as unmasked when growing, so a mask that touches the
    border does not shrink there. The result depends on nothing but the two arguments and is exact, equal to a
    convolution with that window to the last bit.

    Args:
        mask: (B, 1, H, W) bool; or integers, where any non-zero value is masked; or floats, where > 0.5 is masked
            (0.5 is not: the node this descends from rounds half to even).
        offset: one int for all, or an integer tensor (B,) with a value and a sign for each sample. Values beyond
            the picture are allowed. A tensor on the CPU avoids waiting for the device.

    Returns:
        (B, 1, H, W) bool on the mask's device, a new tensor.

    Raises:
        UsageError: wrong shape or a floating-point offset.
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
    if binary.numel() == 0:
        return binary[:, None].clone()
    radii = offsets.abs().cpu()
    # Shrinking is growing the complement, whose outside is empty: both signs share one pass.
    shrinks = (offsets < 0).cpu()
    flips = shrinks.to(mask.device)[:, None, None]
    grown = binary.logical_xor(flips) if shrinks.any() else binary
    grown = _grow(_grow(grown, radii, along_rows=True), radii, along_rows=False)
    return (grown.logical_xor(flips) if shrinks.any() else grown)[:, None]


def binarise(mask: Tensor) -> Tensor:
    """Bool of the same shape: floats are masked above 0.5, integers where they are not zero."""
    if mask.is_floating_point():
        return mask > 0.5
    return mask if mask.dtype == torch.bool else mask != 0


def _grow(mask_BHW: Tensor, radii: Tensor, *, along_rows: bool) -> Tensor:
    """OR of the rows (or of the columns) within `radii` (B,) of each one.

    Level p of a table holds the OR of 2^p neighbours from each position on, made from two entries of level p - 1.
    Any window is then the OR of two entries that overlap: log2 of its length steps instead of its length. Both
    directions run on flat memory, where a neighbour is one picture width or one element away; each output row is
    one contiguous piece of a level, so that every sample can have its own shift without a loop over samples.
    """
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

    lengths = 2 * radii + 1
    levels = torch.frexp(lengths.double()).exponent.long() - 1  # floor(log2), exact
    starts = torch.arange(batch) * padded[0].numel() + (margin - radii) * neighbour
    second = (lengths - 2**levels) * neighbour
    starts_2BH = torch.stack([starts, starts + second])[..., None] + torch.arange(height) * row

    grown_BHW = torch.empty_like(mask_BHW)
    level_N, next_N = padded.flatten(), padded.new_empty(padded.numel())
    for p in range(int(levels.max()) + 1):
        if p > 0:
            shift = 2 ** (p - 1) * neighbour
            # Entries whose neighbours lie past the end are never asked for, so they may hold anything.
            torch.logical_or(level_N[:-shift], level_N[shift:], out=next_N[:-shift])
            level_N, next_N = next_N, level_N
        chosen = (levels == p).nonzero()[:, 0]
        if len(chosen):
            pieces = level_N.as_strided((level_N.numel() - width + 1, width), (1, 1))
            one, other = pieces.index_select(0, starts_2BH[:, chosen].flatten().to(pieces.device)).chunk(2)
            grown_BHW[chosen.to(pieces.device)] = (one | other).reshape(-1, height, width)
    return grown_BHW
