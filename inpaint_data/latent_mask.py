"""How a mask comes from pixels to latents.

Shapes: B batch, H W the picture, F pixels per latent along each side.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_data.errors import UsageError

LatentMask = Literal["nearest", "bilinear", "max", "area", "unshuffle", "kandinsky"]


def latent_mask(mask: Tensor, factor: int, how: LatentMask) -> Tensor:
    """Bring masks from pixels to latents.

    Args:
        mask: (B, 1, H, W) bool.
        factor: F; divides H and W.
        how: "nearest": the top left pixel of each F x F cell (diffusers), so holes within a cell may vanish;
            "bilinear": the four pixels in the middle of the cell, repainted where more than half are (ComfyUI);
            "max": any pixel of the cell (Fooocus);
            "area": antialiased bilinear (OneTrainer), which also weighs in the neighbouring cells;
            "unshuffle": every pixel of the cell, as F * F channels (Flux Fill);
            "kandinsky": "nearest", grown by six of the eight neighbours (Kandinsky 2.1 and 2.2).

    Returns:
        (B, 1, H / F, W / F) bool, but (B, F * F, H / F, W / F) for "unshuffle", and float32 in [0, 1] for "area".

    Raises:
        UsageError: an unknown `how`, or sides that F does not divide.
    """
    height, width = mask.shape[-2:]
    if how not in _LATENT_MASKS:
        raise UsageError(f"latent_mask {how!r} is unknown; choose from {', '.join(_LATENT_MASKS)}")
    if height % factor or width % factor:
        raise UsageError(f"a {height} x {width} mask cannot be divided by {factor}; crop or resize")
    return _LATENT_MASKS[how](mask, factor)


def _resized(mask: Tensor, factor: int, antialias: bool = False) -> Tensor:
    size = (mask.shape[-2] // factor, mask.shape[-1] // factor)
    return F.interpolate(mask.float(), size=size, mode="bilinear", antialias=antialias)


def _kandinsky(mask: Tensor, factor: int) -> Tensor:
    """A cell is repainted if it or a neighbour other than the top right and bottom left one is."""
    mask = mask[..., ::factor, ::factor]
    height, width = mask.shape[-2:]
    padded = F.pad(mask, (1, 1, 1, 1))
    grown = torch.zeros_like(mask)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)):
        grown |= padded[..., row : row + height, column : column + width]
    return grown


_LATENT_MASKS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "nearest": lambda mask, factor: mask[..., ::factor, ::factor],
    "bilinear": lambda mask, factor: _resized(mask, factor) > 0.5,  # ComfyUI's round() sends 0.5 to 0
    "max": lambda mask, factor: F.max_pool2d(mask.float(), factor) > 0,
    "area": lambda mask, factor: _resized(mask, factor, antialias=True).clamp(0, 1),
    "unshuffle": F.pixel_unshuffle,
    "kandinsky": _kandinsky,
}
