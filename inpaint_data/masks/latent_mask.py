"""Masks brought from the size of pixels to the size of latents.

Shapes: B batch, H W the image, h w latents, F pixels per latent along each side.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_data.errors import UsageError

LatentMask = Literal[
    "nearest", "bilinear", "bilinear-round", "bicubic", "bicubic-round", "max", "area", "unshuffle", "kandinsky"
]
ROUNDED: Mapping[str, LatentMask] = {"bilinear": "bilinear-round", "bicubic": "bicubic-round"}


def latent_mask(mask: Tensor, factor: int, how: LatentMask | None) -> Tensor:
    """Bring masks from pixels to latents; `latent_mask(mask, 8, PRESETS["comfy"].latent_mask)` as a preset's tool does.

    A soft mask stays soft but where `how` rounds. For a model that is fed a hard one give `mask >= 0.5`, which
    diffusers' mask processor and every recipe of `conditioning` do.

    Args:
        mask: (B, 1, H, W) bool, or float in [0, 1].
        factor: F; divides H and W.
        how: "nearest": the top left pixel of each F x F cell (diffusers), so holes within a cell may vanish;
            "bilinear": the mean of the four pixels in the middle of the cell, not rounded (what ComfyUI's samplers
                blend with, since 2024-01-11);
            "bilinear-round": repainted where that is above 0.5 (what ComfyUI feeds inpainting models);
            "bicubic": Pillow's resize of the mask in 8 bits, which looks at 4 F x 4 F pixels (AUTOMATIC1111's soft
                inpainting);
            "bicubic-round": repainted where that is 128 of 255 or more (what AUTOMATIC1111 blends with; its inpainting
                models are fed "nearest");
            "max": any pixel of the cell (Fooocus);
            "area": antialiased bilinear (OneTrainer), which also weighs in the neighbouring cells;
            "unshuffle": every pixel of the cell, as F * F channels (Flux Fill);
            "kandinsky": "nearest", grown by six of the eight neighbours (Kandinsky 2.1 and 2.2);
            None: the mask as it is, at the size of pixels (the node WAS_VAEEncodeForInpaint).

    Returns:
        (B, 1, H / F, W / F), but (B, F * F, H / F, W / F) for "unshuffle". Float32 in [0, 1] for "bilinear", "bicubic"
        and "area"; bool where it is rounded; for the others as the mask is.

    Raises:
        UsageError: another shape, an unknown `how`, sides that F does not divide, or a soft mask for "kandinsky".
    """
    if how is None:
        return mask
    if mask.ndim != 4:
        raise UsageError(f"mask must be (B, 1, H, W), not {tuple(mask.shape)}")
    height, width = mask.shape[-2:]
    if how == "kandinsky" and mask.dtype != torch.bool:
        raise UsageError("latent_mask: Kandinsky's masks are hard; give it mask >= 0.5")
    if how not in _LATENT_MASKS:
        raise UsageError(f"latent_mask {how!r} is unknown; choose from {', '.join(_LATENT_MASKS)}")
    if height % factor or width % factor:
        raise UsageError(f"a {height} x {width} mask cannot be divided by {factor}; crop or resize")
    return _LATENT_MASKS[how](mask, factor)


def _resized(mask: Tensor, factor: int, antialias: bool = False) -> Tensor:
    size = (mask.shape[-2] // factor, mask.shape[-1] // factor)
    return F.interpolate(mask.float(), size=size, mode="bilinear", antialias=antialias)


def _bicubic(mask: Tensor, factor: int) -> Tensor:
    """(B, 1, h, w) float32 of whole levels 0...255: what Pillow's `resize` gives for an image of 8 bits."""
    exact = torch.device("cpu") if mask.device.type == "mps" else mask.device  # which has no float64
    levels = (mask.to(exact).double() * 255).round()
    # Pillow goes along the rows first (along the columns where H > 2 W), and rounds to 8 bits in between.
    dimensions = (2, 3) if mask.shape[2] > 2 * mask.shape[3] else (3, 2)
    for dimension in dimensions:
        levels = levels.movedim(dimension, -1) @ _bicubic_weights(levels.shape[dimension], factor).to(exact)
        levels = ((levels + 2**21) / 2**22).floor().clamp(0, 255).movedim(-1, dimension)
    return levels.float().to(mask.device)


@lru_cache(16)
def _bicubic_weights(size: int, factor: int) -> Tensor:
    """(size, size / F) whole numbers, 2^22 for 1, as Pillow has them: sums of them with 8 bits are exact in float64."""
    cells = size // factor
    x = (torch.arange(size)[:, None] + 0.5 - (torch.arange(cells) + 0.5) * factor).double().abs() / factor
    near = (1.5 * x - 2.5) * x * x + 1  # Keys' cubic with a = -0.5
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = weights / weights.cumsum(0)[-1]  # adding from left to right, as Pillow does
    return (weights.abs() * 2**22 + 0.5).floor() * weights.sign()


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
    "bilinear": lambda mask, factor: _resized(mask, factor),
    "bilinear-round": lambda mask, factor: _resized(mask, factor) > 0.5,  # ComfyUI's round() sends 0.5 to 0
    "bicubic": lambda mask, factor: _bicubic(mask, factor) / 255,
    "bicubic-round": lambda mask, factor: _bicubic(mask, factor) >= 128,
    "max": lambda mask, factor: F.max_pool2d(mask.float(), factor).to(mask.dtype),
    "area": lambda mask, factor: _resized(mask, factor, antialias=True).clamp(0, 1),
    "unshuffle": F.pixel_unshuffle,
    "kandinsky": _kandinsky,
}
