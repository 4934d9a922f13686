"""LaMa's masks: wide strokes, boxes, bands for outpainting, and the presets that its training and evaluation draw.

Source: github.com/advimman/lama at 786f593, saicinpainting/training/data/masks.py, with the numbers of its
configurations as they are drawn there: `randint` leaves the upper end out, and a mask has up to one stroke more than
`max_times`.
"""

from collections.abc import Callable

import numpy as np

from inpaint_data.masks import opencv as cv2
from inpaint_data.masks.drawn import THICKEST, BoolArray, Count, Span, draw_within, whole


def strokes(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    count: Count = (4, 11),
    length: Span = (10, 209),
    thickness: Span = (5, 104),
) -> BoolArray:
    """Wide polylines of 1-5 segments; by default those of LaMa's medium preset.

    Source: make_random_irregular_mask. The angle of a segment is 0.01
    plus 0, 1, 2 or 3 rad, mirrored on every second stroke, so that a stroke runs to one side and never back.
    """
    scale = min(height, width) / 512
    canvas = np.zeros((height, width), np.uint8)
    number = whole(rng, count)
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

    Source: make_random_rectangle_mask.
    """
    scale = min(height, width) / 512
    rim = min(round(margin * scale), (min(height, width) - 1) // 2)
    mask = np.zeros((height, width), np.bool_)
    for _ in range(whole(rng, count)):
        box_h = min(height - 2 * rim, max(1, round(rng.uniform(*side) * scale)))
        box_w = min(width - 2 * rim, max(1, round(rng.uniform(*side) * scale)))
        top = rim + int(rng.integers(height - 2 * rim - box_h + 1))
        left = rim + int(rng.integers(width - 2 * rim - box_w + 1))
        mask[top : top + box_h, left : left + box_w] = True
    return mask


def outpaint(
    height: int, width: int, rng: np.random.Generator, *, depth: Span = (0.04, 0.25), side: float = 0.5
) -> BoolArray:
    """A band along the left, right, upper and lower side, each with probability `side`, at least along one.

    `depth` is a share of the image's extent across the band. Source: OutpaintingMaskGenerator.
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


def lama_thin(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's thin masks, configs/data_gen/random_thin_512.yaml: 4-71 thin strokes, up to half of the image."""
    return draw_within(
        0, 0.5, lambda: strokes(height, width, rng, count=(4, 71), length=(10, 109), thickness=(5, 24)), "lama-thin"
    )


def lama_medium(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's medium masks, configs/data_gen/random_medium_512.yaml: strokes 1, boxes 0.3, up to half of the image."""
    return _strokes_or_boxes("lama-medium", rng, lambda: strokes(height, width, rng), lambda: boxes(height, width, rng))


def lama_thick(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's thick masks, configs/data_gen/random_thick_512.yaml: strokes 1, boxes 0.3, up to half of the image."""
    return _strokes_or_boxes(
        "lama-thick",
        rng,
        lambda: strokes(height, width, rng, count=(1, 6), length=(10, 459), thickness=(5, 254)),
        lambda: boxes(height, width, rng, count=(1, 4), side=(30, 300), margin=10),
    )


def lama_thin_256(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's thin masks for 256 pixels, configs/data_gen/random_thin_256.yaml: other ones than those for 512.

    Lengths are twice those published, as they are at 512; so with everything that is named for 256.
    """
    return draw_within(
        0, 0.5, lambda: strokes(height, width, rng, count=(4, 51), length=(20, 98), thickness=(10, 28)), "lama-thin-256"
    )


def lama_medium_256(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's medium masks for 256 pixels, configs/data_gen/random_medium_256.yaml: strokes 1, boxes 0.3."""
    return _strokes_or_boxes(
        "lama-medium-256",
        rng,
        lambda: strokes(height, width, rng, count=(4, 6), length=(20, 218), thickness=(10, 108)),
        lambda: boxes(height, width, rng, side=(20, 100)),
    )


def lama_thick_256(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's thick masks for 256 pixels, configs/data_gen/random_thick_256.yaml: strokes 1, boxes 0.3."""
    return _strokes_or_boxes(
        "lama-thick-256",
        rng,
        lambda: strokes(height, width, rng, count=(1, 6), length=(20, 418), thickness=(10, 208)),
        lambda: boxes(height, width, rng, count=(1, 3), side=(60, 300), margin=20),
    )


def _strokes_or_boxes(
    name: str, rng: np.random.Generator, stroke: Callable[[], BoolArray], box: Callable[[], BoolArray]
) -> BoolArray:
    """What LaMa's medium and thick masks have in common: strokes 1, boxes 0.3, up to half of the image."""
    return draw_within(0, 0.5, lambda: stroke() if rng.random() < 1 / 1.3 else box(), name)


def lama_mix(height: int, width: int, rng: np.random.Generator) -> BoolArray:
    """LaMa's training masks for 256 pixels, configs/training/data/abl-04-256-mh-dist.yaml: strokes and boxes alike."""
    if rng.random() < 0.5:
        return strokes(height, width, rng, count=(1, 6), length=(20, 418), thickness=(10, 208))
    return boxes(height, width, rng, count=(1, 4), side=(60, 300), margin=20)
