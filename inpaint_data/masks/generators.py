"""Mask generators: one small pure function for each kind of training mask.

Every generator is (height, width, rng) -> (height, width) bool, True = repaint. Lengths are those published for 512
pixels and scale with the short side. The parameters of a generator, which a `MaskMixture` may set, stand after the `*`
of its signature.

Everything that decides a pixel is integer arithmetic or plain float64, so that machines agree on it.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.masks import opencv as cv2
from inpaint_data.masks.drawn import BoolArray, Count, MaskGenerator, Span, whole
from inpaint_data.masks.free_form import comodgan, comodgan_256, free_form, mat, mat_256
from inpaint_data.masks.kohya import kohya, kohya_cloud, kohya_polygon, kohya_shape, kohya_wobbly
from inpaint_data.masks.lama import (
    boxes,
    lama_medium,
    lama_medium_256,
    lama_mix,
    lama_thick,
    lama_thick_256,
    lama_thin,
    lama_thin_256,
    outpaint,
    strokes,
)


def full(height: int, width: int, rng: np.random.Generator) -> BoolArray:  # noqa: ARG001 - a generator's signature
    """The whole image. A share of these keeps the model able to paint without any context."""
    return np.ones((height, width), np.bool_)


def none(height: int, width: int, rng: np.random.Generator) -> BoolArray:  # noqa: ARG001 - a generator's signature
    """Nothing: the model learns to give the image back."""
    return np.zeros((height, width), np.bool_)


def center(
    height: int,
    width: int,
    rng: np.random.Generator,  # noqa: ARG001 - a generator's signature
    *,
    side: float = 0.5,
) -> BoolArray:
    """The box in the middle, `side` of each side: with a half, the centre mask of Context Encoders, a quarter hole."""
    box_h, box_w = max(1, round(height * side)), max(1, round(width * side))
    top, left = (height - box_h) // 2, (width - box_w) // 2
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + box_h, left : left + box_w] = True
    return mask


def grid(
    height: int, width: int, rng: np.random.Generator, *, cell: Span = (16, 128), share: Span = (0.1, 0.5)
) -> BoolArray:
    """Some of the square cells that the image is divided into, as MAE hides patches. At least one."""
    side = max(1, round(rng.uniform(*cell) * min(height, width) / 512))
    rows, columns = -(-height // side), -(-width // side)
    chosen = np.zeros(rows * columns, np.bool_)
    chosen[rng.permutation(rows * columns)[: max(1, round(rng.uniform(*share) * rows * columns))]] = True
    return np.repeat(np.repeat(chosen.reshape(rows, columns), side, 0)[:height], side, 1)[:, :width]


def polygons(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    count: Count = (1, 2),
    corners: Count = (6, 6),
    share: Span = (0.1, 0.6),
    irregularity: float = 0.4,
) -> BoolArray:
    """Polygons with a corner in each sector around their centre, convex or not.

    A corner is up to `irregularity` of the radius inside a circle, whose radius lies between those of circles that
    fill the two ends of `share`. After the polygon masks of kohya's sd-scripts, whose corners may crowd on one side and
    leave a sliver, hence our sectors; theirs are `kohya-polygon`.
    """
    canvas = np.zeros((height, width), np.uint8)
    for _ in range(whole(rng, count)):
        radius = math.sqrt(height * width / math.pi) * rng.uniform(math.sqrt(share[0]), math.sqrt(share[1]))
        rim_y, rim_x = min(0.2 * radius, height / 2), min(0.2 * radius, width / 2)
        y, x = rng.uniform(rim_y, height - rim_y), rng.uniform(rim_x, width - rim_x)
        number = whole(rng, corners)
        angles = (np.arange(number) + rng.random(number)) * (2 * math.pi / number)
        radii = radius * rng.uniform(1 - irregularity, 1, number)
        points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
        cv2.fillPoly(canvas, [np.floor(points).astype(np.int32)], 1)
    return canvas.view(np.bool_)


def clouds(
    height: int, width: int, rng: np.random.Generator, *, share: Span = (0.1, 0.3), octaves: int = 4
) -> BoolArray:
    """The peaks of smooth noise: each octave has cells half as long and weighs half as much as the one before.

    After the cloud masks of kohya's sd-scripts, from which the shares are. There the finest octave weighs most, see
    `kohya-cloud`; here the coarsest does, for holes as wide as those that LaMa found to generalise.
    """
    # 128 points along the short side are enough for shapes so smooth, and at 512 pixels 16 times as fast.
    step = max(1, min(height, width) // 128)
    rows, columns = -(-height // step), -(-width // step)
    noise = np.zeros((rows, columns))
    for octave in range(octaves):
        cells = [max(2, round(4 * 2**octave * extent / min(height, width)) + 1) for extent in (height, width)]
        noise += _smooth_noise(rng, (cells[0], cells[1]), (rows, columns)) * 0.5**octave
    highest = max(1, round(rng.uniform(*share) * noise.size))
    levels = (4096 * noise).astype(np.int16)  # the octaves' sum is below 2
    cutoff = np.partition(levels, noise.size - highest, None)[noise.size - highest]
    # 8 bits around the cutoff, in the only interpolation that OpenCV promises to be the same on every machine.
    near_cutoff = np.clip(128 + ((levels - cutoff) >> 4), 0, 255).astype(np.uint8)
    enlarged = cv2.resize(near_cutoff, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    mask: BoolArray = cv2.threshold(enlarged, 127, 1, cv2.THRESH_BINARY)[1].view(np.bool_)
    return mask


GENERATORS: Mapping[str, MaskGenerator] = MappingProxyType(
    {
        "strokes": strokes,
        "boxes": boxes,
        "full": full,
        "none": none,
        "center": center,
        "grid": grid,
        "outpaint": outpaint,
        "polygons": polygons,
        "clouds": clouds,
        "free-form": free_form,
        "mat": mat,
        "mat-256": mat_256,
        "comodgan": comodgan,
        "comodgan-256": comodgan_256,
        "lama-thin": lama_thin,
        "lama-medium": lama_medium,
        "lama-thick": lama_thick,
        "lama-thin-256": lama_thin_256,
        "lama-medium-256": lama_medium_256,
        "lama-thick-256": lama_thick_256,
        "lama-mix": lama_mix,
        "kohya": kohya,
        "kohya-cloud": kohya_cloud,
        "kohya-polygon": kohya_polygon,
        "kohya-shape": kohya_shape,
        "kohya-wobbly": kohya_wobbly,
    }
)


def _smooth_noise(rng: np.random.Generator, cells: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Random values at the corners of cells, blended in between with the slope 0 at each corner: (size) in [0, 1]."""
    noise = rng.random(cells)
    for extent in size:  # rows first, then columns
        before, blend = _blending(noise.shape[0], extent)
        blended = np.diff(noise, axis=0).take(before, 0)
        blended *= blend
        blended += noise.take(before, 0)
        noise = np.ascontiguousarray(blended.T)
    return noise


@lru_cache(64)
def _blending(cells: int, extent: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """For each of `extent` points the corner (extent,) before it, and how much the next one counts (extent, 1)."""
    positions = np.linspace(0, cells - 1.0, extent)
    before = np.minimum(positions.astype(np.int64), cells - 2)
    blend = positions - before
    return before, (blend * blend * (3 - 2 * blend))[:, None]
