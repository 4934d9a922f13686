"""What a training mask looks like: generators, their mixture and the offset drawn for it.

Every generator is a pure function (height, width, rng) -> (height, width) bool, True = repaint. Lengths are those
published for 512 pixels and scale with the short side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from inpaint_data.errors import UsageError

BoolArray = npt.NDArray[np.bool_]
MAX_OFFSET = 128  # the node's range


def strokes(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """Brush strokes as LaMa's medium preset draws them: 4-10 strokes, each of 1-5 straight segments.

    Source: LaMa, configs/data_gen/random_medium_512.yaml and saicinpainting/training/data/masks.py: segments up to
    200 long and 100 wide, angles up to 4 rad, mirrored on every second segment.
    """
    scale = min(height, width) / 512
    canvas = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(4, 11)):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        for segment in range(rng.integers(1, 6)):
            angle = 0.01 + rng.uniform(0, 4)
            if segment % 2 == 0:
                angle = 2 * np.pi - angle
            length = (10 + rng.uniform(0, 200)) * scale
            thickness = max(1, round((5 + rng.uniform(0, 100)) * scale))
            to_x = int(np.clip(x + length * np.sin(angle), 0, width - 1))
            to_y = int(np.clip(y + length * np.cos(angle), 0, height - 1))
            cv2.line(canvas, (x, y), (to_x, to_y), 1, thickness)
            x, y = to_x, to_y
    return canvas.astype(bool)


def boxes(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """1-5 upright rectangles with sides of 30-150, as LaMa's medium preset draws them."""
    scale = min(height, width) / 512
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 6)):
        box_h = min(height, max(1, round(rng.uniform(30, 150) * scale)))
        box_w = min(width, max(1, round(rng.uniform(30, 150) * scale)))
        top, left = rng.integers(height - box_h + 1), rng.integers(width - box_w + 1)
        mask[top : top + box_h, left : left + box_w] = True
    return mask


def full(height: int, width: int, rng: np.random.Generator) -> BoolArray:  # noqa: ARG001 - a generator's signature
    """The whole picture. A share of these keeps the model able to paint without any context."""
    return np.ones((height, width), bool)


GENERATORS: Mapping[str, Callable[[int, int, np.random.Generator], BoolArray]] = MappingProxyType(
    {"strokes": strokes, "boxes": boxes, "full": full}
)


@dataclass(frozen=True)
class MaskMixture:
    """Draws one generator by weight, then its mask.

    Args:
        weights: generator name -> weight, zero or more, renormalised. The default is LaMa's medium preset
            (strokes 1, boxes 0.3) with a tenth of full masks (OneTrainer's `unmasked_probability`).

    Raises:
        UsageError: an unknown name, a negative weight, or no weight above zero.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"strokes": 1.0, "boxes": 0.3, "full": 0.145})

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(GENERATORS))
        if unknown:
            raise UsageError(f"masks: no generator is called {unknown[0]!r}; choose from {', '.join(GENERATORS)}")
        if any(not weight >= 0 for weight in self.weights.values()) or not sum(self.weights.values()) > 0:
            raise UsageError(f"masks: weights must be zero or more and not all zero, not {dict(self.weights)}")

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[BoolArray, str]:
        """A mask (height, width) bool and the name of its generator."""
        names = sorted(self.weights)
        share = np.array([self.weights[name] for name in names], float)
        name = names[int(rng.choice(len(names), p=share / share.sum()))]
        return GENERATORS[name](height, width, rng), name


def check_offset(mask_offset: int | tuple[int, int]) -> tuple[int, int]:
    """The inclusive range (low, high) that `mask_offset` names.

    Raises:
        UsageError: low above high, or beyond -128...128.
    """
    pair: Any = (mask_offset, mask_offset) if isinstance(mask_offset, int) else mask_offset
    if not isinstance(pair, tuple | list) or [type(each) for each in pair] != [int, int]:
        raise UsageError(f"mask_offset: {mask_offset!r} is neither a whole number of pixels nor a range [low, high]")
    low, high = pair
    if low > high:
        raise UsageError(f"mask_offset: the range [{low}, {high}] is empty; give the lower number first")
    if low < -MAX_OFFSET or high > MAX_OFFSET:
        named = low if low == high else [low, high]
        raise UsageError(f"mask_offset: {named} is outside -{MAX_OFFSET}...{MAX_OFFSET} pixels; stay within")
    return low, high


def draw_offset(mask_offset: int | tuple[int, int], rng: np.random.Generator) -> int:
    """One offset in pixels, uniform over the inclusive range."""
    low, high = check_offset(mask_offset)
    return int(rng.integers(low, high + 1))
