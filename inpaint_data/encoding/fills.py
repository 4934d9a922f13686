"""Fills: what a hole holds when the image is encoded.

Shapes: B batch, H W the image. Pixels are float in [low, 1], low being -1, or 0 as ComfyUI has them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inpaint_data.encoding.noise import CPU, normal_noise
from inpaint_data.errors import UsageError
from inpaint_data.masks import opencv as cv2
from inpaint_data.masks.presets import Fill

Pixels = npt.NDArray[np.uint8]

# Radius and how often it is laid over what is there already, from far to near (AUTOMATIC1111, modules/masking.py).
PYRAMID = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
INPAINT_RADIUS = 3  # pixels around each one that is painted: of OpenCV's own sample; Telea's paper takes 3 to 10


def fill_hole(pixels: Tensor, mask: Tensor, fill: Fill, low: float, noise: Tensor | None = None) -> Tensor:
    """Hide what is under the mask.

    A sample's fill depends on its own pixels and mask alone, never on its batch, and but for "original" on nothing that
    is under its mask. Known pixels keep every bit, save for "grey" with low = 0, see there.

    "mean", "blur", "telea" and "navier-stokes" work on 8 bits, to which pixels are rounded (half to even) and on which
    uint8 images stay exact. "blur", "telea" and "navier-stokes" run on the CPU, one sample after another, whatever
    the device: `benchmarks/fills.py` prints their cost.

    Args:
        pixels: (B, 3, H, W) float in [low, 1].
        mask: (B, 1, H, W) or (1, 1, H, W) bool, True = to be hidden; or soft, float in [0, 1], which hides from 0.5 on.
        fill:
            "grey": the middle of the range (ComfyUI, diffusers), in the arithmetic of ComfyUI's nodes;
            "black", "white": its ends;
            "original": changes nothing;
            "mean": the mean colour of the sample's known pixels, rounded to 8 bits, half up;
            "blur": known pixels blurred with alpha by 256, 64, 16, 4 and 2 pixels and laid over each other, the widest
                first, as AUTOMATIC1111 does for "masked content: fill"; equal to it in 8 bits. Under a soft mask it
                does as there: pixels are as well known as they are unmasked, so all that is not 0 of it changes, and
                what is neither 0 nor 1 goes in with its part;
            "telea", "navier-stokes": OpenCV's `inpaint` with radius 3, of the image with its hole blanked (128);
            "noise": `noise`, see `hole_noise`.
            Where nothing is known, "mean", "telea" and "navier-stokes" are grey (128), and "blur" is black, as it is
            there.
        low: the low end of the range, 0 or -1.
        noise: (B, 3, H, W) float, only read for "noise".

    Raises:
        UsageError: "noise" without noise.
    """
    if fill == "original":
        return pixels
    soft = mask
    mask = mask if mask.dtype == torch.bool else mask >= 0.5
    if fill == "grey":
        # The node's own arithmetic: in [0, 1] it rounds dark pixels by up to 2^-26, and stays exact in [-1, 1].
        middle = (low + 1) / 2
        return (pixels - middle).mul_((~mask).to(pixels.dtype)).add_(middle)
    if fill in ("black", "white"):
        return torch.where(mask, low if fill == "black" else 1.0, pixels)
    if fill == "noise":
        if noise is None:
            raise UsageError('fill "noise" needs the noise; draw it with hole_noise')
        middle, half = (low + 1) / 2, (1 - low) / 2
        return torch.where(mask, (noise * (half / 2) + middle).clamp(low, 1).to(pixels), pixels)
    scale = 255 / (1 - low)
    levels = ((pixels - low) * scale).round().clamp(0, 255).to(torch.uint8)
    cover = (soft.float() * 255).round().to(torch.uint8) if fill == "blur" else mask
    cover = cover.expand(len(pixels), -1, -1, -1)
    filled = _mean(levels, cover) if fill == "mean" else _one_by_one(levels, cover, _ON_CPU[fill])
    return torch.where(cover > 0, filled.to(pixels.dtype) / scale + low, pixels)


def hole_noise(
    seed: int, samples: Sequence[str], variants: Sequence[int], height: int, width: int, device: torch.device = CPU
) -> Tensor:
    """The noise for fill "noise", from (seed, sample, variant): (B, 3, H, W) standard normal float32 on `device`.

    The fill is its half of half the range around the middle, cut at the ends: in [-1, 1] normal with deviation 0.5.
    """
    return normal_noise(seed, samples, variants, "fill", (3, height, width), device)


def _mean(levels: Tensor, mask: Tensor) -> Tensor:
    """(B, 3, 1, 1) uint8. In whole numbers, so that no order of adding up can change it."""
    count = (~mask).sum((2, 3), keepdim=True)
    total = (levels * ~mask).sum((2, 3), keepdim=True, dtype=torch.int64)
    mean = (2 * total + count) // (2 * count).clamp(min=1)
    return torch.where(count > 0, mean, 128).to(torch.uint8)


def _one_by_one(levels: Tensor, mask: Tensor, fill: Callable[[Pixels, npt.NDArray[Any]], Pixels]) -> Tensor:
    """(B, 3, H, W) uint8, each sample filled on the CPU."""
    result = torch.empty_like(levels, device="cpu")
    for row, image, hidden in zip(result, levels.cpu(), mask[:, 0].cpu(), strict=True):
        if hidden.any():
            image = torch.from_numpy(fill(image.permute(1, 2, 0).contiguous().numpy(), hidden.numpy()))
            row.copy_(image.permute(2, 0, 1))
    return result.to(levels.device)


def _blur(image: Pixels, cover: Pixels) -> Pixels:
    """(H, W, 3) RGB and (H, W) 0...255 -> everything filled, and the pixels whose cover is 0 as they are."""
    from PIL import Image, ImageFilter  # not for the grey of ComfyUI's nodes, whose Python may lack it

    alpha = 255 - cover[..., None]
    # Premultiplied ("RGBa"), so that a blur weighs colours by how well they are known. Nothing lies halfway.
    weighed = ((image.astype(np.int32) * alpha + 127) // 255).astype(np.uint8)
    known = Image.frombytes("RGBa", cover.shape[::-1], np.dstack([weighed, alpha]).tobytes())
    filled = Image.new("RGBA", known.size)
    for radius, times in PYRAMID:
        blurred = known.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            filled.alpha_composite(blurred)
    return np.array(filled)[..., :3]


def _opencv(image: Pixels, hidden: npt.NDArray[np.bool_], method: int) -> Pixels:
    # OpenCV lets some of what is hidden through: all of it where nothing is known, and near the image's edges.
    blank = np.where(hidden[..., None], np.uint8(128), image)
    if hidden.all():
        return blank
    painted = cv2.inpaint(blank, hidden.astype(np.uint8), INPAINT_RADIUS, method)
    return np.asarray(painted, np.uint8)


_ON_CPU: dict[Fill, Callable[[Pixels, npt.NDArray[Any]], Pixels]] = {
    "blur": _blur,
    "telea": lambda image, hidden: _opencv(image, hidden, cv2.INPAINT_TELEA),
    "navier-stokes": lambda image, hidden: _opencv(image, hidden, cv2.INPAINT_NS),
}
