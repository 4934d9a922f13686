"""Soft borders of masks.

Soft masks have 256 levels, k of which is exactly k / 255, so that one from a cache is the live one to the last bit.
Shapes: B batch, K mask variants, H W the image.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from inpaint_data.errors import UsageError
from inpaint_data.masks.morphology import offset_mask
from inpaint_data.masks.morphology_device import to_device
from inpaint_data.shown import meant

SOFT_KINDS = ("gaussian", "ramp")
MAX_RADIUS = 64
_LEVELS = torch.arange(256) / 255  # divided on the CPU: a GPU multiplies by 1 / 255, and is off by a bit in places


@dataclass(frozen=True)
class SoftBorder:
    """A mask that passes from 0 to 1 over several pixels, for models that blend softly (DifferentialDiffusion,
    ComfyUI's InpaintModelConditioning, A1111's soft inpainting).

    Args:
        kind: "gaussian": AUTOMATIC1111's mask blur with deviation `radius`, to the level: OpenCV's blur in 8 bits with
            a window of int(2.5 * radius + 0.5) pixels on each side, along the rows, rounded, then along the columns,
            and the mask mirrored at its edges (its last row not repeated). Details smaller than the radius become
            faint.
            "ramp": a straight line over `radius` pixels on each side of the border: the mean of the mask grown and
            shrunk by -radius...radius. The hard mask is where it is above 0.5, to the pixel.
        radius: 1...64 pixels.

    Raises:
        UsageError: an unknown kind, or a radius that is not a whole number of 1...64.
    """

    kind: Literal["gaussian", "ramp"] = "gaussian"
    radius: int = 4

    def __post_init__(self) -> None:
        if self.kind not in SOFT_KINDS:
            raise UsageError(
                f"soft: kind: {self.kind!r} is unknown; choose from {', '.join(SOFT_KINDS)}"
                f"{meant(self.kind, SOFT_KINDS)}"
            )
        if type(self.radius) is not int or not 1 <= self.radius <= MAX_RADIUS:
            raise UsageError(
                f"soft: radius: {self.radius!r} is not a whole number of 1...{MAX_RADIUS} pixels; give one"
            )

    def __call__(self, mask: Tensor) -> Tensor:
        """(B, K, H, W) bool, or float in [0, 1] -> float32 in [0, 1] on the same device, each value k / 255.

        In whole numbers throughout: no device and no batch changes a bit. A ramp takes what is above 0.5 of a float.
        """
        flat = mask.flatten(0, 1)[:, None]
        soften = _gaussian if self.kind == "gaussian" else _ramp
        return from_levels(soften(flat, self.radius).reshape(mask.shape) if mask.numel() else mask.to(torch.uint8))


def check_soft(soft: Any) -> None:
    """Check that a setting `soft` is a border or None.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(soft, SoftBorder | None):
        raise UsageError(f"soft: {soft!r} is not a border; give a SoftBorder, such as SoftBorder('gaussian', 4)")


def from_levels(levels: Tensor) -> Tensor:
    """uint8 0...255 -> float32 in [0, 1]."""
    return to_device(_LEVELS, levels.device)[levels.long()]


def to_levels(mask: Tensor) -> Tensor:
    """float32 in [0, 1], as `from_levels` gives it -> uint8 0...255."""
    return (mask * 255).round().to(torch.uint8)


def _ramp(mask: Tensor, radius: int) -> Tensor:
    """(N, 1, H, W) bool or float -> uint8."""
    mask = mask > 0.5
    total = mask.to(torch.int32)
    for step in (1, -1):
        moved = mask
        for _ in range(radius):
            moved = offset_mask(moved, step)
            total += moved
    return _rounded(total, 2 * radius + 1)


def _gaussian(mask: Tensor, radius: int) -> Tensor:
    """(N, 1, H, W) bool or float -> uint8."""
    weights = gaussian_weights(radius)
    levels = (mask.float() * 255).round().to(torch.int32)
    for dimension in (3, 2):
        levels = (_convolved(levels, weights, dimension) + 128) // 256
    return levels.to(torch.uint8)


def gaussian_weights(radius: int) -> list[int]:
    """Whole numbers that add up to 256, as OpenCV has them for 8 bits: from the ends inwards, each weight is rounded
    together with what rounding took from or gave to those before it, and the middle one is what remains."""
    reach = int(2.5 * radius + 0.5)
    density = np.array([math.exp(-((x / radius) ** 2) / 2) for x in range(-reach, reach + 1)])
    exact = (density / density.sum() * 256).tolist()
    ends: list[int] = []
    for weight in exact[:reach]:
        ends.append(math.floor(weight + sum(exact[: len(ends)]) - sum(ends) + 0.5))
    return [*ends, 256 - 2 * sum(ends), *ends[::-1]]


def _convolved(values: Tensor, weights: list[int], dimension: int) -> Tensor:
    """int32, mirrored at both ends, which are not repeated."""
    size, reach = values.shape[dimension], len(weights) // 2
    places = torch.arange(-reach, size + reach) % max(1, 2 * (size - 1))
    places = torch.minimum(places, 2 * (size - 1) - places) if size > 1 else places
    padded = values.index_select(dimension, to_device(places, values.device))
    total = padded.narrow(dimension, reach, size) * weights[reach]
    for step in range(1, reach + 1):  # the window is symmetric
        ends = padded.narrow(dimension, reach - step, size) + padded.narrow(dimension, reach + step, size)
        total += ends * weights[reach + step]
    return total


def _rounded(total: Tensor, whole: int) -> Tensor:
    """The levels of total / whole as uint8, half up."""
    return ((total.long() * 510 + whole) // (2 * whole)).to(torch.uint8)
