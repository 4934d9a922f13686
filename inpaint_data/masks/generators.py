"""Mask generators: one small pure function for each kind of training mask.

Every generator is (height, width, rng) -> (height, width) bool, True = repaint. Lengths are those published for 512
pixels and scale with the short side. The parameters of a generator, which a `MaskMixture` may set, stand after the `*`
of its signature.

Everything that decides a pixel is integer arithmetic or plain float64, so that machines agree on it.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import UsageError
from inpaint_data.masks import opencv as cv2

BoolArray = npt.NDArray[np.bool_]
MaskGenerator = Callable[..., BoolArray]  # (height, width, rng, *, parameters)
Span = tuple[float, float]  # both ends belong to it
Count = tuple[int, int]
THICKEST = 32767  # pixels; OpenCV refuses more
TRIES = 1000  # a limit that one draw in fifty meets is missed once in 600 million times


def strokes(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    count: Count = (4, 10),
    length: Span = (10, 210),
    thickness: Span = (5, 105),
) -> BoolArray:
    """Wide polylines of 1-5 segments; by default those of LaMa's medium preset.

    Source: LaMa, make_random_irregular_mask in saicinpainting/training/data/masks.py. The angle of a segment is 0.01
    plus 0, 1, 2 or 3 rad, mirrored on every second stroke, so that a stroke runs to one side and never back.
    """
    scale = min(height, width) / 512
    canvas = np.zeros((height, width), np.uint8)
    number = _whole(rng, count)
    starts = rng.integers((width, height), size=(number, 2))
    segments = rng.integers(1, 6, number)
    total = int(segments.sum())
    mirrored = np.repeat(np.where(np.arange(number) % 2 == 0, -1, 1), segments)
    angles = mirrored * (0.01 + rng.integers(4, size=total))
    lengths, widths = rng.uniform(*length, total) * scale, rng.uniform(*thickness, total) * scale
    dx, dy = (lengths * np.sin(angles)).tolist(), (lengths * np.cos(angles)).tolist()
    thick = np.clip(np.rint(widths), 1, THICKEST).astype(np.int64).tolist()
    first = 0
    for (x, y), last in zip(starts.tolist(), np.cumsum(segments).tolist(), strict=True):
        for i in range(first, last):
            to_x, to_y = min(max(int(x + dx[i]), 0), width), min(max(int(y + dy[i]), 0), height)
            cv2.line(canvas, (x, y), (to_x, to_y), 1, thick[i])
            x, y = to_x, to_y
        first = last
    return canvas.view(np.bool_)


def boxes(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    count: Count = (1, 5),
    side: Span = (30, 150),
    margin: float = 0,
) -> BoolArray:
    """Upright rectangles; by default those of LaMa's medium preset. `margin` keeps them away from the border.

    Source: LaMa, make_random_rectangle_mask in saicinpainting/training/data/masks.py.
    """
    scale = min(height, width) / 512
    rim = min(round(margin * scale), (min(height, width) - 1) // 2)
    mask = np.zeros((height, width), np.bool_)
    for _ in range(_whole(rng, count)):
        box_h = min(height - 2 * rim, max(1, round(rng.uniform(*side) * scale)))
        box_w = min(width - 2 * rim, max(1, round(rng.uniform(*side) * scale)))
        top = rim + int(rng.integers(height - 2 * rim - box_h + 1))
        left = rim + int(rng.integers(width - 2 * rim - box_w + 1))
        mask[top : top + box_h, left : left + box_w] = True
    return mask


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


def outpaint(
    height: int, width: int, rng: np.random.Generator, *, depth: Span = (0.04, 0.25), side: float = 0.5
) -> BoolArray:
    """A band along the left, right, upper and lower side, each with probability `side`, at least along one.

    `depth` is a share of the image's extent across the band. Source: LaMa, OutpaintingMaskGenerator.
    """
    deep = rng.uniform(*depth, size=4).tolist()
    chosen = rng.random(4) < side
    if not chosen.any():
        chosen[rng.integers(4)] = True
    left, right = (max(1, round(share * width)) for share in deep[:2])
    top, bottom = (max(1, round(share * height)) for share in deep[2:])
    mask = np.zeros((height, width), np.bool_)
    mask[:, :left] |= chosen[0]
    mask[:, width - right :] |= chosen[1]
    mask[:top] |= chosen[2]
    mask[height - bottom :] |= chosen[3]
    return mask


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
    fill the two ends of `share`. Source: the polygon masks of kohya's sd-scripts (2026), whose corners may crowd on
    one side and leave a sliver; hence our sectors.
    """
    canvas = np.zeros((height, width), np.uint8)
    for _ in range(_whole(rng, count)):
        radius = math.sqrt(height * width / math.pi) * rng.uniform(math.sqrt(share[0]), math.sqrt(share[1]))
        rim_y, rim_x = min(0.2 * radius, height / 2), min(0.2 * radius, width / 2)
        y, x = rng.uniform(rim_y, height - rim_y), rng.uniform(rim_x, width - rim_x)
        number = _whole(rng, corners)
        angles = (np.arange(number) + rng.random(number)) * (2 * math.pi / number)
        radii = radius * rng.uniform(1 - irregularity, 1, number)
        points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
        cv2.fillPoly(canvas, [np.floor(points).astype(np.int32)], 1)
    return canvas.view(np.bool_)


def clouds(
    height: int, width: int, rng: np.random.Generator, *, share: Span = (0.1, 0.3), octaves: int = 4
) -> BoolArray:
    """The peaks of smooth noise: each octave has cells half as long and weighs half as much as the one before.

    Source: the cloud masks of kohya's sd-scripts (2026), from which the shares are. There the finest octave weighs
    most; here the coarsest does, for holes as wide as those that LaMa found to generalise.
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


def free_form(height: int, width: int, rng: np.random.Generator, *, hole: Span = (0.0, 1.0)) -> BoolArray:
    """Boxes and curling brush strokes, drawn again until the hole ratio is in `hole`; never empty or everything.

    Up to 5 boxes of up to half a side, up to 3 of up to a side, which may stick out by half, and up to 9 brushes;
    fewer for small holes. Source: RandomMask and RandomBrush of MAT (datasets/mask_generator_512.py), after CoModGAN;
    there the greatest numbers themselves are never drawn.

    Raises:
        UsageError: no draw met `hole`.
    """
    fewer = min(hole[0] + hole[1], 1.0)

    def draw() -> BoolArray:
        mask = np.zeros((height, width), np.bool_)
        for most, part in ((5, 2), (3, 1)):
            for _ in range(rng.integers(math.ceil(most * fewer) + 1)):
                box_w, box_h = int(rng.integers(width // part + 1)), int(rng.integers(height // part + 1))
                left = int(rng.integers(-(box_w // 2), width - box_w + box_w // 2 + 1))
                top = int(rng.integers(-(box_h // 2), height - box_h + box_h // 2 + 1))
                mask[max(top, 0) : top + box_h, max(left, 0) : left + box_w] = True
        return mask | _brushes(height, width, rng, int(rng.integers(math.ceil(9 * fewer) + 1)))

    pixel = 1 / (height * width)
    return draw_within(max(hole[0], pixel), min(hole[1], 1 - pixel), draw, "free-form")


def _brushes(height: int, width: int, rng: np.random.Generator, number: int) -> BoolArray:
    canvas = np.zeros((height, width), np.uint8)
    step = math.hypot(height, width) / 8
    for _ in range(number):
        corners = int(rng.integers(4, 19))
        bend = 2 * math.pi / 15
        low, high = (2 * math.pi / 5 + sign * rng.uniform(0, bend) for sign in (-1, 1))
        angles = rng.uniform(low, high, corners)
        angles[::2] *= -1
        lengths = np.clip(rng.normal(step, step / 2, corners), 0, 2 * step)
        x, y = int(rng.integers(width)), int(rng.integers(height))
        points = [(x, y)]
        for dx, dy in zip((lengths * np.cos(angles)).tolist(), (lengths * np.sin(angles)).tolist(), strict=True):
            x, y = int(min(max(x + dx, 0), width)), int(min(max(y + dy, 0), height))
            points.append((x, y))
        thickness = max(1, round(rng.uniform(12, 48) * min(height, width) / 512))
        cv2.polylines(canvas, [np.array(points, np.int32)], False, 1, thickness)  # thick lines have round ends
    # The strokes run to the right, so half of the masks are turned over.
    upside_down, mirrored = rng.random(2) < 0.5
    mask = canvas.view(np.bool_)
    mask = mask[::-1] if upside_down else mask
    return mask[:, ::-1] if mirrored else mask


def lama_thin(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's thin masks, configs/data_gen/random_thin_512.yaml: 4-70 thin strokes, up to half of the image."""
    return draw_within(
        0, 0.5, lambda: strokes(height, width, rng, count=(4, 70), length=(10, 110), thickness=(5, 25)), "lama-thin"
    )


def lama_medium(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's medium masks, configs/data_gen/random_medium_512.yaml: strokes 1, boxes 0.3, up to half of the image."""

    def draw() -> BoolArray:
        return strokes(height, width, rng) if rng.random() < 1 / 1.3 else boxes(height, width, rng)

    return draw_within(0, 0.5, draw, "lama-medium")


def lama_thick(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's thick masks, configs/data_gen/random_thick_512.yaml: strokes 1, boxes 0.3, up to half of the image."""

    def draw() -> BoolArray:
        if rng.random() < 1 / 1.3:
            return strokes(height, width, rng, count=(1, 5), length=(10, 460), thickness=(5, 255))
        return boxes(height, width, rng, count=(1, 4), side=(30, 300), margin=10)

    return draw_within(0, 0.5, draw, "lama-thick")


def lama_mix(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's training masks: strokes and boxes equally often, published for 256 pixels, so twice as long at 512."""
    if rng.random() < 0.5:
        return strokes(height, width, rng, count=(1, 5), length=(20, 420), thickness=(10, 210))
    return boxes(height, width, rng, count=(1, 4), side=(60, 300), margin=20)


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
        "lama-thin": lama_thin,
        "lama-medium": lama_medium,
        "lama-thick": lama_thick,
        "lama-mix": lama_mix,
    }
)


def hole_ratio(mask: BoolArray) -> float:
    """The share of the image that is to be repainted."""
    return float(np.count_nonzero(mask) / mask.size)


def draw_within(low: float, high: float, draw: Callable[[], BoolArray], name: str) -> BoolArray:
    """The first of at most TRIES draws whose hole ratio is in [low, high].

    Raises:
        UsageError: none was.
    """
    ratios: list[float] = []
    for _ in range(TRIES):
        mask = draw()
        ratios.append(hole_ratio(mask))
        if low <= ratios[-1] <= high:
            return mask
    raise UsageError(
        f"mixture: {TRIES} draws of {name} at {mask.shape[0]}x{mask.shape[1]} had hole ratios of {min(ratios):.3g} to "
        f"{max(ratios):.3g}, none within {low:.3g} to {high:.3g}; widen the limits or choose another generator"
    )


def _whole(rng: np.random.Generator, span: Count) -> int:
    return int(rng.integers(span[0], span[1] + 1))


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
