"""Object masks that a sample brings: its mask members, or COCO annotations in its `json`.

Members: `mask.png`, `mask.0.png`, `mask.1.png` ..., white = the object. Where there are none, `json` may be a COCO
annotation, a list of them, or have such a list under "annotations", as SA-1B's files do. Of each annotation the
"segmentation" counts (RLE, compressed or not, or polygons), else the "bbox". Pixels are those that pycocotools gives,
to the last one.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import SampleError
from inpaint_data.pictures.formats import Decoding
from inpaint_data.pictures.images import DEFAULT, decode_mask
from inpaint_data.shown import shortened

BoolArray = npt.NDArray[np.bool_]
Size = tuple[int, int]  # (height, width)
MEMBER = re.compile(r"mask\.(?:([0-9]+)\.)?png")

# What a stranger's json may ask for. The largest files of COCO, LVIS and SA-1B stay far below each.
MAX_JSON_BYTES = 2**24
MAX_OBJECTS = 4096
MAX_POLYGONS = 1024  # of one object
_STEPS_AT_ONCE = 2**18


def find_objects(
    members: Mapping[str, bytes], size: Size, decoding: Decoding = DEFAULT
) -> list[Callable[[], BoolArray]]:
    """A function for each object mask of a sample, which makes it, (height, width) bool; nothing is decoded before.

    Args:
        members: the sample's, by extension.
        size: of the upright image. A mask of another size raises SampleError when it is made.
        decoding: how mask members are decoded.

    Raises:
        SampleError: the sample brings no object mask, or its json cannot be read.
    """
    if names := sorted(filter(MEMBER.fullmatch, members), key=_number):
        return [partial(_from_member, name, members[name], size, decoding) for name in names]
    annotations = _annotations(members["json"]) if "json" in members else []
    if not annotations:
        raise SampleError(
            f"no object mask: the sample has {', '.join(sorted(members))}; add mask.png or mask.0.png, or a COCO "
            "segmentation or bbox to its json"
        )
    return [partial(_from_annotation, annotation, number, size) for number, annotation in enumerate(annotations)]


def _number(name: str) -> tuple[int, str, str]:
    """Orders mask members by their number, the one without first. Its digits are not counted on: there may be many."""
    match = MEMBER.fullmatch(name)
    digits = (match and match[1]) or ""
    significant = digits.lstrip("0")
    return (len(significant) if digits else -1, significant, name)


def decode_rle(rle: Mapping[str, Any], size: Size) -> BoolArray:
    """A COCO run-length encoding, `counts` a list or packed into a string, as (height, width) bool.

    Runs go down the columns and begin with the unmasked ones. Source: cocoapi, common/maskApi.c.

    Raises:
        SampleError: another size than `size`, or damaged.
    """
    sides = rle.get("size")
    if not isinstance(sides, list | tuple) or [type(side) for side in sides] != [int, int]:
        raise SampleError(f"its size is {shortened(sides)} and not [height, width]; correct it")
    if tuple(sides) != size:
        raise SampleError(
            f"it is {shortened(sides[0])} high and {shortened(sides[1])} wide, but image is {size[0]} high and "
            f"{size[1]} wide; give masks the image's size"
        )
    counts = rle.get("counts")
    runs = _unpack(counts) if isinstance(counts, str) else counts
    pixels = size[0] * size[1]
    if not isinstance(runs, list) or any(type(run) is not int or not 0 <= run <= pixels for run in runs):
        raise SampleError(f"its counts are not run lengths of an image of {pixels} pixels; encode it again")
    if sum(runs) != pixels:
        raise SampleError(f"its counts cover {sum(runs)} pixels instead of {pixels}; encode it again")
    return _from_runs(runs, size)


def fill_polygon(points: npt.NDArray[np.float64], size: Size) -> BoolArray:
    """The inside of a polygon of (x, y) corners (N, 2), as (height, width) bool.

    The outline is traced on a grid five times as fine. Wherever it crosses the middle of a column, inside and outside
    change places for all that follows down the column. Source: rleFrPoly in cocoapi, common/maskApi.c; equal to it.
    """
    height, width = size
    fine = np.trunc(5 * points + 0.5).astype(np.int64)
    steps = abs(np.roll(fine, -1, 0) - fine).max(axis=1) + 1  # of each edge
    places = np.concatenate([_crossings(outline, size) for outline in _outline(fine, steps)])
    changes, times = np.unique(places[places < height * width], return_counts=True)
    return _from_runs(np.diff(changes[times % 2 == 1], prepend=0, append=height * width), size)


def _from_runs(runs: Sequence[int] | npt.NDArray[np.int64], size: Size) -> BoolArray:
    """Runs of pixels down the columns, unmasked and masked in turn, as (height, width) bool."""
    mask: BoolArray = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[1], size[0]).T
    return mask


def _outline(fine: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """The closed outline of a polygon as grid points (N, 2), in pieces that each begin where the last one ended."""
    piece_of_edge = np.cumsum(steps) // _STEPS_AT_ONCE
    starts = np.flatnonzero(np.diff(piece_of_edge, prepend=-1))
    ends = np.roll(fine, -1, 0)
    for first, last in zip(starts, [*starts[1:], len(fine)], strict=True):
        yield _trace(fine[first:last], ends[first:last], steps[first:last])


def _crossings(outline: npt.NDArray[np.int64], size: Size) -> npt.NDArray[np.int64]:
    """The pixels, counted down the columns, at which inside and outside change places."""
    height, width = size
    (before_x, before_y), (x, y) = outline[:-1].T, outline[1:].T
    column = (np.where(x < before_x, x, x - 1) + 0.5) / 5 - 0.5
    row = np.ceil(np.clip((np.minimum(y, before_y) + 0.5) / 5 - 0.5, 0, height)).astype(np.int64)
    crossings = (x != before_x) & (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    places: npt.NDArray[np.int64] = column[crossings].astype(np.int64) * height + row[crossings]
    return places


def _trace(
    starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The grid points (N, 2) on the way from each start to its end, one for each step along the longer axis."""
    edges = np.arange(len(starts))
    longer = (abs(ends - starts)[:, 1] > abs(ends - starts)[:, 0]).astype(np.int64)
    # Always from the lower end, so that an edge that two polygons share is rounded alike in both.
    forward = starts[edges, longer] <= ends[edges, longer]
    low, high = np.where(forward[:, None], starts, ends), np.where(forward[:, None], ends, starts)
    slope = (high - low)[edges, 1 - longer] / np.maximum(1, steps - 1)
    edge = np.repeat(edges, steps)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(steps) - steps, steps)
    step = np.where(forward[edge], step, steps[edge] - 1 - step)
    points = np.empty((len(edge), 2), np.int64)
    rows = np.arange(len(edge))
    points[rows, longer[edge]] = low[edge, longer[edge]] + step
    points[rows, 1 - longer[edge]] = np.trunc(low[edge, 1 - longer[edge]] + slope[edge] * step + 0.5)
    return points


def _from_member(name: str, data: bytes, size: Size, decoding: Decoding) -> BoolArray:
    try:
        mask = decode_mask(data, decoding)
    except SampleError as error:
        raise SampleError(f"{name}: {error}") from None
    if mask.shape != size:
        raise SampleError(
            f"{name} is {mask.shape[0]} high and {mask.shape[1]} wide, but image is {size[0]} high and {size[1]} "
            "wide; give masks the image's size"
        )
    return mask


def _annotations(data: bytes) -> Sequence[Mapping[str, Any]]:
    if len(data) > MAX_JSON_BYTES:
        raise SampleError(f"json: has {len(data)} bytes, above the limit of {MAX_JSON_BYTES}; leave objects out")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"json: it cannot be read ({error}); save it as JSON in UTF-8") from None
    if isinstance(content, dict):
        content = content["annotations"] if isinstance(content.get("annotations"), list) else [content]
    if not isinstance(content, list):
        return []
    objects = [
        entry for entry in content if isinstance(entry, dict) and (entry.get("segmentation") or entry.get("bbox"))
    ]
    if len(objects) > MAX_OBJECTS:
        raise SampleError(f"json: has {len(objects)} objects, above the limit of {MAX_OBJECTS}; leave some out")
    return objects


def _from_annotation(annotation: Mapping[str, Any], number: int, size: Size) -> BoolArray:
    shape = annotation.get("segmentation")
    try:
        if isinstance(shape, dict) and shape:
            return decode_rle(shape, size)
        mask = np.zeros(size, np.bool_)
        for corners in _polygons(annotation, size):
            mask |= fill_polygon(corners, size)
    except SampleError as error:
        kind = "segmentation" if shape else "bbox"
        raise SampleError(f"json: {kind} of annotation {number}: {error}") from None
    return mask


def _polygons(annotation: Mapping[str, Any], size: Size) -> list[npt.NDArray[np.float64]]:
    """The corners (N, 2) of each polygon of an object that is not an RLE."""
    shape = annotation.get("segmentation")
    if not shape:
        return [_box(annotation["bbox"], size)]
    if not isinstance(shape, list):
        raise SampleError("it is neither an RLE with size and counts nor a list of polygons; correct it")
    if len(shape) > MAX_POLYGONS:
        raise SampleError(f"it has {len(shape)} polygons, above the limit of {MAX_POLYGONS}; encode it as an RLE")
    polygons = [_corners(polygon, size) for polygon in shape]
    length = sum(abs(np.roll(corners, -1, 0) - corners).max(axis=1).sum() for corners in polygons)
    if length > 4 * size[0] * size[1] + 1000:  # around every pixel, and somewhat more for tiny images
        corners = sum(map(len, polygons))
        raise SampleError(f"the outline of its {corners} corners is too long for the image; encode it as an RLE")
    return polygons


def _corners(flat: Any, size: Size, name: str = "a polygon") -> npt.NDArray[np.float64]:
    """[x, y, x, y ...] -> (N, 2)."""
    points = _numbers(flat, name)
    if len(points) < 6 or len(points) % 2:
        raise SampleError(f"{name} has {len(points)} numbers; give x and y of three corners or more")
    corners = np.array(points, np.float64).reshape(-1, 2)
    height, width = size
    # Somewhat outside is usual, for an object that the frame cuts; farther away it belongs to another image.
    if (abs(corners - (width / 2, height / 2)) > (1.5 * width, 1.5 * height)).any():
        raise SampleError(f"{name} lies far outside the image of {height}x{width}; give it in the image's pixels")
    return corners


def _box(box: Any, size: Size) -> npt.NDArray[np.float64]:
    """[left, top, width, height] -> the four corners (4, 2)."""
    numbers = _numbers(box, "the box")
    if len(numbers) != 4 or min(numbers[2:]) < 0:
        raise SampleError(f"the box is {shortened(box)} and not [left, top, width, height]; correct it")
    left, top, right, bottom = numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]
    return _corners([left, top, left, bottom, right, bottom, right, top], size, "the box")


def _numbers(values: Any, name: str) -> Sequence[float]:
    if not isinstance(values, list) or any(type(value) not in (int, float) or not abs(value) < 1e9 for value in values):
        raise SampleError(f"{name} is not a list of numbers; correct it")
    return values


def _unpack(packed: str) -> list[int]:
    """The run lengths in a COCO string: 5 bits a character from '0' on, the sixth says that more follow.

    From the fourth run on each is stored as the difference to the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in packed:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise SampleError("its counts are not a COCO string; encode it again")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:  # the sign
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise SampleError("its counts end in the middle of a run; encode it again")
    return runs
