"""Free-form masks: boxes that stick out of the image and curling brush strokes, as in CoModGAN and MAT.

Source: RandomMask and RandomBrush in training/mask_generator.py of github.com/zsyzzsoft/co-mod-gan at c8b9ffe, and in
datasets/mask_generator_512.py and datasets/mask_generator_256.py of github.com/fenglinglwb/MAT at d273d89. They differ
in how many shapes they draw; the greatest number itself is never drawn, since `randint` leaves it out.
"""

import math

import numpy as np

from inpaint_data.masks import opencv as cv2
from inpaint_data.masks.drawn import BoolArray, Span, draw_within

BRUSH = (12.0, 48.0)  # width at 512
BRUSH_256 = (24.0, 96.0)  # the published ones are as wide at 256 as at 512
Fewer = tuple[int, int, int]  # small boxes, large boxes and brushes, each fewer than this


def free_form(height: int, width: int, rng: np.random.Generator, *, hole: Span = (0.0, 1.0)) -> BoolArray:
    """Boxes and curling brush strokes, drawn again until the hole ratio is in `hole`; never empty or everything.

    0 to 5 boxes of up to half a side, 0 to 3 of up to a side, which may stick out by half, and 0 to 9 brushes; fewer
    for small holes. These are the numbers in MAT's code as they read; what it draws of them is `mat`.

    Raises:
        UsageError: no draw met `hole`.
    """
    small, large, brushes = (math.ceil(most * _part(hole)) + 1 for most in (5, 3, 9))
    return _draw(height, width, rng, "free-form", (small, large, brushes), hole, BRUSH)


def mat(height: int, width: int, rng: np.random.Generator, *, hole: Span = (0.0, 1.0)) -> BoolArray:
    """MAT's masks for 512 pixels: 0 to 4 small boxes, 0 to 2 large ones, 0 to 8 brushes; fewer for small holes.

    Raises:
        UsageError: no draw met `hole`.
    """
    return _draw(height, width, rng, "mat", _fewer((5, 3, 9), hole), hole, BRUSH)


def mat_256(height: int, width: int, rng: np.random.Generator, *, hole: Span = (0.0, 1.0)) -> BoolArray:
    """MAT's masks for 256 pixels: 0 to 3 small boxes, 0 or 1 large one, 0 to 7 brushes, twice as wide.

    Raises:
        UsageError: no draw met `hole`.
    """
    return _draw(height, width, rng, "mat-256", _fewer((4, 2, 8), hole), hole, BRUSH_256)


def comodgan(height: int, width: int, rng: np.random.Generator, *, hole: Span = (0.0, 1.0)) -> BoolArray:
    """CoModGAN's masks, at 512 pixels: 0 to 9 small boxes, 0 to 4 large ones, 0 to 19 brushes; fewer for small holes.

    Raises:
        UsageError: no draw met `hole`.
    """
    return _draw(height, width, rng, "comodgan", _fewer((10, 5, 20), hole), hole, BRUSH)


def comodgan_256(height: int, width: int, rng: np.random.Generator, *, hole: Span = (0.0, 1.0)) -> BoolArray:
    """CoModGAN's masks, at 256 pixels, where its brushes are twice as wide.

    Raises:
        UsageError: no draw met `hole`.
    """
    return _draw(height, width, rng, "comodgan-256", _fewer((10, 5, 20), hole), hole, BRUSH_256)


def _part(hole: Span) -> float:
    """How much of the greatest numbers of shapes is drawn for these limits."""
    return min(hole[0] + hole[1], 1.0)


def _fewer(published: Fewer, hole: Span) -> Fewer:
    """Numbers for these limits, rounded down as published. Where nothing would be left, one brush may be drawn."""
    small, large, brushes = (int(number * _part(hole)) for number in published)
    return max(small, 1), max(large, 1), max(brushes, 2)


def _draw(
    height: int, width: int, rng: np.random.Generator, name: str, fewer: Fewer, hole: Span, brush: Span
) -> BoolArray:
    def draw() -> BoolArray:
        mask = np.zeros((height, width), np.bool_)
        for number, part in ((fewer[0], 2), (fewer[1], 1)):
            for _ in range(rng.integers(number)):
                box_w, box_h = int(rng.integers(max(1, width // part))), int(rng.integers(max(1, height // part)))
                left, top = _sticking_out(rng, width, box_w), _sticking_out(rng, height, box_h)
                mask[max(top, 0) : top + box_h, max(left, 0) : left + box_w] = True
        return mask | _brushes(height, width, rng, int(rng.integers(fewer[2])), brush)

    half_a_pixel = 0.5 / (height * width)  # the limits themselves do not count
    return draw_within(hole[0] + half_a_pixel, hole[1] - half_a_pixel, draw, name)


def _sticking_out(rng: np.random.Generator, extent: int, side: int) -> int:
    """Where a box of this side begins: by half of it outside at most."""
    half = side // 2
    return int(rng.integers(-half, max(1 - half, extent - side + half)))


def _brushes(height: int, width: int, rng: np.random.Generator, number: int, brush: Span) -> BoolArray:
    canvas = np.zeros((height, width), np.uint8)
    step = math.hypot(height, width) / 8
    for _ in range(number):
        corners = int(rng.integers(4, 18))
        bend = 2 * math.pi / 15
        low, high = (2 * math.pi / 5 + sign * rng.uniform(0, bend) for sign in (-1, 1))
        angles = rng.uniform(low, high, corners)
        angles[::2] *= -1
        lengths = np.clip(rng.normal(step, step // 2, corners), 0, 2 * step)
        x, y = int(rng.integers(width)), int(rng.integers(height))
        points = [(x, y)]
        for dx, dy in zip((lengths * np.cos(angles)).tolist(), (lengths * np.sin(angles)).tolist(), strict=True):
            x, y = int(min(max(x + dx, 0), width)), int(min(max(y + dy, 0), height))
            points.append((x, y))
        thickness = int(rng.uniform(*brush) * min(height, width) / 512)
        # Thick lines have round ends. OpenCV draws an odd thickness two pixels wider than Pillow, which drew theirs.
        cv2.polylines(canvas, [np.array(points, np.int32)], False, 1, max(1, thickness - thickness % 2))
    # The strokes run to the right, so half of the masks are turned over.
    upside_down, mirrored = rng.random(2) < 0.5
    mask = canvas.view(np.bool_)
    mask = mask[::-1] if upside_down else mask
    return mask[:, ::-1] if mirrored else mask
