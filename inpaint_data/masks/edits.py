"""Edits that clean a mask up or make it coarser before it is used.

Every edit is a pure function of a (height, width) bool mask and returns another; lengths are for 512 pixels and scale
with the short side. Every pixel is decided in whole numbers, so that machines agree on it. Outside the frame counts as
masked where a mask would shrink, as in `offset_mask`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from inpaint_data.masks import opencv as cv2
from inpaint_data.masks.drawn import BoolArray
from inpaint_data.masks.lama import strokes

OPENING = 8  # pixels: BrushNet's window
SMOOTHING = 4  # pixels: a standard deviation as wide as the steps of a mask drawn at 128 pixels
SHARES = (0.0, 0.1, 0.25, 0.5)  # of the mask's equivalent radius, by which each level of precision grows
BOX = len(SHARES)  # the last level


def fill_holes(mask: BoolArray) -> BoolArray:
    """Mask what the mask encloses: every unmasked pixel from which no way of steps up, down, left and right leaves the
    image without crossing the mask."""
    height, width = mask.shape
    canvas = np.zeros((height + 2, width + 2), np.uint8)
    canvas[1:-1, 1:-1] = mask
    cv2.floodFill(canvas, None, (0, 0), (2,))  # connects to four neighbours
    return np.asarray(canvas[1:-1, 1:-1] != 2)


def open_mask(mask: BoolArray) -> BoolArray:
    """Leave what an 8x8 square covers that lies in the mask, so that spikes and specks go.

    Source: BrushNet, MyWebDataset in examples/brushnet/train_brushnet.py, which erodes and dilates by that square, in
    the image's own size.
    """
    side = max(1, round(OPENING * min(mask.shape) / 512))
    padded = cv2.copyMakeBorder(mask.view(np.uint8), side, side, side, side, cv2.BORDER_CONSTANT, value=(1,))
    square = np.ones((side, side), np.uint8)
    corners = cv2.erode(padded, square, anchor=(0, 0))
    opened = cv2.dilate(corners, square, anchor=(side - 1, side - 1))
    return np.asarray(opened[side:-side, side:-side], np.bool_)


def smooth(mask: BoolArray) -> BoolArray:
    """Round off steps and teeth: masked is where a Gaussian blur of the mask, of 4 pixels, is a half or more.

    Outside the frame the pixels of the border are repeated.
    """
    deviation = SMOOTHING * min(mask.shape) / 512
    reach = math.ceil(3 * deviation)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    # In whole numbers, so that all sums are below 2^24, and exact in float32 in any order.
    kernel = np.rint(4000 * weights / weights.sum()).astype(np.float32)
    blurred = cv2.sepFilter2D(mask.view(np.uint8), cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(2 * blurred >= float(kernel.sum()) ** 2)


def convex_hull(mask: BoolArray) -> BoolArray:
    """All pixels whose centres lie in the convex hull of the masked pixels' centres; one hull around all parts."""
    rows = np.flatnonzero(mask.any(1))
    hull = np.zeros_like(mask)
    if not len(rows):
        return hull
    width = mask.shape[1]
    outermost = (mask[rows].argmax(1), width - 1 - mask[rows, ::-1].argmax(1))
    points = np.concatenate([np.stack([columns, rows], 1) for columns in outermost])
    corners = cv2.convexHull(points.astype(np.int32))[:, 0].tolist()
    left, right = np.full(len(mask), width), np.full(len(mask), -1)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        high = max(1, y1 - y0)
        span = slice(y0, y1 + 1)
        crossed = x0 * high + (x1 - x0) * np.arange(y1 - y0 + 1)  # where it crosses each row, times its height
        left[span] = np.minimum(left[span], -(-crossed // high))
        right[span] = np.maximum(right[span], crossed // high)
    columns = np.arange(width)
    return (columns >= left[:, None]) & (columns <= right[:, None])


def at_precision(mask: BoolArray, level: int) -> BoolArray:
    """The mask as carelessly drawn as `level` says: 0 exact, 4 its bounding box, 1 to 3 in between.

    Levels 1 to 3 grow by a disc of 0.1, 0.25 and 0.5 of the radius of the disc that has the mask's area, within the
    box; so each level lies within the next. A mask of several parts has one box, around all of them.
    Source: the mask precision of SmartBrush, which blurs more and more instead.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if level == 0 or not len(rows):
        return mask
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    grown = np.zeros_like(mask)
    if level == BOX:
        grown[box] = True
        return grown
    radius = round(SHARES[level] * math.sqrt(np.count_nonzero(mask) / math.pi))
    distances = cv2.distanceTransform((~mask[box]).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    grown[box] = distances <= math.sqrt(radius**2 + 0.5)  # halfway to the next possible distance
    return grown


# In the order in which they are applied, each with the word for it in `Origin`.
EDITS: Mapping[str, tuple[str, Callable[[BoolArray], BoolArray]]] = MappingProxyType(
    {
        "fill_holes": ("filled", fill_holes),
        "opening": ("opened", open_mask),
        "smooth": ("smoothed", smooth),
        "convex_hull": ("hull", convex_hull),
    }
)


def edit(mask: BoolArray, names: Sequence[str], level: int) -> tuple[BoolArray, tuple[str, ...]]:
    """Apply the edits in `names`, then the precision.

    An edit that would leave nothing, such as the opening of a thin line, is left out.

    Returns:
        The mask, and what was applied: ("opened", "precision2").
    """
    applied: list[str] = []
    for name in names:
        word, apply = EDITS[name]
        edited = apply(mask)
        if edited.any():
            mask = edited
            applied.append(word)
    if level:
        applied.append(f"precision{level}")
    return at_precision(mask, level), tuple(applied)


class Way(NamedTuple):
    """The edits and other changes that a mask gets after it was drawn."""

    edits: tuple[str, ...]
    level: int  # of precision
    inverted: bool
    stroked: bool

    @property
    def last(self) -> tuple[str, ...]:
        """The words for what follows all edits and is never left out."""
        words = {"inverted": self.inverted, "stroke": self.stroked}
        return tuple(word for word, applies in words.items() if applies)


class Origin(NamedTuple):
    """The origin of a mask: its generator, and what was done to it afterwards, in this order, of "filled", "opened",
    "smoothed", "hull", "precision1" to 4, "inverted" and "stroke"."""

    generator: str
    edits: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join((self.generator, *self.edits))


def finish(mask: BoolArray, generator: str, way: Way, rng: np.random.Generator) -> tuple[BoolArray, Origin]:
    """The mask after all its changes, and its origin."""
    mask, edits = edit(mask, way.edits, way.level)
    mask = ~mask if way.inverted else mask
    if way.stroked:
        mask = mask | strokes(mask.shape[0], mask.shape[1], rng, count=(1, 1))
    return mask, Origin(generator, edits + way.last)
