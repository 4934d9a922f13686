"""kohya's masks: peaks of noise, polygons, rectangles and ellipses, as sd-scripts trains inpainting with.

Source: library/mask_generator.py of github.com/kohya-ss/sd-scripts at 063ef10. Its numbers are pixels at any size; here
they are for 512.
"""

import math
from functools import lru_cache

import numpy as np

from inpaint_data.masks import opencv as cv2
from inpaint_data.masks.drawn import BoolArray, FloatArray, draw_within, whole

SHARE = (0.1, 0.6)  # of the image: of the circle around a polygon, and of a rectangle's sides multiplied
BITS = 14  # of the noise and of the weights between its values: sums of their products are exact in float64


def kohya(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """What sd-scripts trains with, `random_mask`: clouds, a third of them with one more shape, polygons and shapes."""
    kind = rng.random()
    if kind < 0.35:
        return kohya_polygon(height, width, rng)
    if kind < 0.35 + 0.25:
        return kohya_shape(height, width, rng)
    mask = kohya_cloud(height, width, rng)
    if rng.random() < 0.33:
        mask |= _polygons(height, width, rng, 1) if rng.random() < 0.5 else kohya_shape(height, width, rng)
    return mask


def kohya_cloud(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """The highest 10 to 30 % of noise, `cloud_mask`: values 16, 32, 64 and 128 pixels apart, the finest weighs most."""
    cell = 16 * min(height, width) / 512
    noise = np.zeros((height, width))
    for octave in range(4):
        rows, columns = (max(2, int(extent / (cell * 2**octave))) for extent in (height, width))
        values = rng.integers(2**BITS, size=(rows, columns)).astype(np.float64)
        noise += _cubic(rows, height) @ values @ _cubic(columns, width).T * (8 >> octave)
    highest = max(1, round(rng.uniform(0.1, 0.3) * noise.size))
    mask: BoolArray = noise >= np.partition(noise, noise.size - highest, None)[noise.size - highest]
    return mask


def kohya_polygon(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """One or two polygons of six corners, `polygon_mask`, which may crowd on one side of their centre.

    Drawn again where all of it lies outside the image, which theirs is now and then.
    """
    return draw_within(
        0.5 / (height * width), 1, lambda: _polygons(height, width, rng, whole(rng, (1, 2))), "kohya-polygon"
    )


def kohya_shape(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """An upright rectangle or ellipse, `shape_mask`, whose sides are those of a tenth to 0.6 of the image."""
    box_h, box_w = (whole(rng, (_root(extent, SHARE[0]), _root(extent, SHARE[1]))) for extent in (height, width))
    top, left = whole(rng, (0, height - max(box_h, 1))), whole(rng, (0, width - max(box_w, 1)))
    # Both ends belong to it, so that it is a pixel larger than its sides.
    y, x = np.arange(height) - top, np.arange(width) - left
    if rng.random() < 0.5:
        far_y, far_x = ((2 * y - box_h) / (box_h + 1)) ** 2, ((2 * x - box_w) / (box_w + 1)) ** 2
        inside: BoolArray = far_y[:, None] + far_x <= 1
        return inside
    return ((y >= 0) & (y <= box_h))[:, None] & ((x >= 0) & (x <= box_w))


def kohya_wobbly(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """An ellipse whose radius wobbles by half of it, `wobbly_ellipse_mask`: one piece, about a fifth of the image."""
    y, x = rng.uniform(0.25, 0.75) * height, rng.uniform(0.25, 0.75) * width
    aspect, turned = rng.uniform(0.6, 1.4), rng.uniform(0, math.pi)
    across = math.sqrt(0.2 * height * width / math.pi)
    along = across / aspect
    angles = np.linspace(0, 2 * math.pi, 128, endpoint=False)
    waves = np.arange(1, 5)[:, None]
    amplitudes = 0.5 ** (waves - 1)
    wobble = (amplitudes * np.cos(waves * angles + rng.uniform(0, 2 * math.pi, (4, 1)))).sum(0)
    wobble *= 0.5 / math.sqrt(float((amplitudes**2).sum()) / 2)  # a standard deviation of a half
    radii = across * along / np.hypot(along * np.cos(angles - turned), across * np.sin(angles - turned))
    canvas = np.zeros((height, width), np.uint8)
    _fill(canvas, y, x, angles, np.maximum(radii * (1 + wobble), 1))
    canvas[int(y), int(x)] = 1  # the centre, which a polygon smaller than a pixel may miss
    return canvas.view(np.bool_)


def _polygons(height: int, width: int, rng: np.random.Generator, number: int) -> BoolArray:
    canvas = np.zeros((height, width), np.uint8)
    smallest, largest = (math.sqrt(share * height * width / math.pi) for share in SHARE)
    for _ in range(number):
        radius = rng.uniform(smallest, largest)
        y, x = (0.2 * radius + rng.random() * (extent - 0.4 * radius) for extent in (height, width))
        _fill(canvas, y, x, np.sort(rng.uniform(0, 2 * math.pi, 6)), radius * rng.uniform(0.6, 1, 6))
    return canvas.view(np.bool_)


def _fill(
    canvas: np.ndarray[tuple[int, int], np.dtype[np.uint8]], y: float, x: float, angles: FloatArray, radii: FloatArray
) -> None:
    """Fill the polygon with a corner at each angle from (y, x)."""
    points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
    cv2.fillPoly(canvas, [np.floor(points).astype(np.int32)], 1)


def _root(extent: int, share: float) -> int:
    """The side of this extent where the other side has the same share of its own."""
    return int(extent * share**0.5)


@lru_cache(64)
def _cubic(values: int, extent: int) -> FloatArray:
    """Weights (extent, values) of cubic interpolation as OpenCV has it, times 2**BITS, whole numbers."""
    positions = (np.arange(extent) + 0.5) * values / extent - 0.5
    before = np.floor(positions).astype(np.int64)
    weights = np.zeros((extent, values))
    for tap in (-1, 0, 1, 2):
        far = abs(positions - before - tap)
        near = (1.25 * far - 2.25) * far * far + 1
        outer = ((-0.75 * far + 3.75) * far - 6) * far + 3
        np.add.at(
            weights,
            (np.arange(extent), np.clip(before + tap, 0, values - 1)),
            np.rint(np.where(far <= 1, near, outer) * 2**BITS),
        )
    return weights
