"""Object masks that a sample brings: its mask members, or COCO annotations in its `json`.

Members: `mask.png`, `mask.0.png`, `mask.1.png` ..., white = the object. Where there are none, `json` may be a COCO
annotation, a list of them, or have such a list under "annotations", as SA-1B's files do. Of each annotation the
"segmentation" counts (RLE, compressed or not, or polygons), else the "bbox". Pixels are those that pycocotools gives,
to the last one.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import SampleError
from inpaint_data.pictures.images import decode_mask

BoolArray = npt.NDArray[np.bool_]
Size = tuple[int, int]  # (height, width)
MEMBER = re.compile(r"mask\.(?:(\d+)\.)?png")


def find_objects(members: Mapping[str, bytes], size: Size) -> list[Callable[[], BoolArray]]:
    """A function for each object mask of a sample, which makes it, (height, width) bool; nothing is decoded before.

    Args:
        members: the sample's, by extension.
        size: of the upright image. A mask of another size raises SampleError when it is made.

    Raises:
        SampleError: the sample brings no object mask, or its json cannot be read.
    """
    numbered_names = sorted((int(match[1] or -1), name) for name in members if (match := MEMBER.fullmatch(name)))
    if numbered_names:
        return [partial(_from_member, name, members[name], size) for _, name in numbered_names]
    annotations = _annotations(members["json"]) if "json" in members else []
    if not annotations:
        raise SampleError(
            f"no object mask: the sample has {', '.join(sorted(members))}; add mask.png or mask.0.png, or a COCO "
            "segmentation or bbox to its json"
        )
    return [partial(_from_annotation, annotation, number, size) for number, annotation in enumerate(annotations)]


def decode_rle(rle: Mapping[str, Any], size: Size) -> BoolArray:
    """A COCO run-length encoding, `counts` a list or packed into a string, as (height, width) bool.

    Runs go down the columns and begin with the unmasked ones. Source: cocoapi, common/maskApi.c.

    Raises:
        SampleError: another size than `size`, or damaged.
    """
    sides = rle.get("size")
    if not isinstance(sides, list | tuple) or [type(side) for side in sides] != [int, int]:
        raise SampleError(f"its size is {sides!r} and not [height, width]; correct it")
    if tuple(sides) != size:
        raise SampleError(
            f"it is {sides[0]} high and {sides[1]} wide, but image is {size[0]} high and {size[1]} wide; "
            "give masks the image's size"
        )
    counts = rle.get("counts")
    runs = _unpack(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or any(type(run) is not int or run < 0 for run in runs):
        raise SampleError("its counts are not run lengths; encode it again")
    if sum(runs) != size[0] * size[1]:
        raise SampleError(f"its counts cover {sum(runs)} pixels instead of {size[0] * size[1]}; encode it again")
    mask: BoolArray = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[1], size[0]).T
    return mask


def fill_polygon(points: npt.NDArray[np.float64], size: Size) -> BoolArray:
    """The inside of a polygon of (x, y) corners (N, 2), as (height, width) bool.

    The outline is traced on a grid five times as fine. Wherever it crosses the middle of a column, inside and outside
    change places for all that follows down the column. Source: rleFrPoly in cocoapi, common/maskApi.c; equal to it.
    """
    height, width = size
    fine = np.trunc(5 * points + 0.5).astype(np.int64)
    outline = np.concatenate([_trace(start, end) for start, end in zip(fine, np.roll(fine, -1, 0), strict=True)])
    (before_x, before_y), (x, y) = outline[:-1].T, outline[1:].T
    column = (np.where(x < before_x, x, x - 1) + 0.5) / 5 - 0.5
    row = np.ceil(np.clip((np.minimum(y, before_y) + 0.5) / 5 - 0.5, 0, height)).astype(np.int64)
    crossings = (x != before_x) & (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    places = column[crossings].astype(np.int64) * height + row[crossings]
    changes = np.bincount(places, minlength=height * width + 1)[: height * width]
    mask: BoolArray = (np.cumsum(changes) % 2 == 1).reshape(width, height).T
    return mask


def _trace(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The grid points (N, 2) on the way from `start` to `end`, one for each step along the longer axis."""
    along = 0 if abs(end - start)[0] >= abs(end - start)[1] else 1
    # Always from the lower end, so that an edge that two polygons share is rounded alike in both.
    low, high = (start, end) if start[along] <= end[along] else (end, start)
    steps = np.arange(high[along] - low[along] + 1)
    slope = (high - low)[1 - along] / max(1, len(steps) - 1)
    points = np.empty((len(steps), 2), np.int64)
    points[:, along] = low[along] + steps
    points[:, 1 - along] = np.trunc(low[1 - along] + slope * steps + 0.5)
    return points if low is start else points[::-1]


def _from_member(name: str, data: bytes, size: Size) -> BoolArray:
    try:
        mask = decode_mask(data)
    except SampleError as error:
        raise SampleError(f"{name}: {error}") from None
    if mask.shape != size:
        raise SampleError(
            f"{name} is {mask.shape[0]} high and {mask.shape[1]} wide, but image is {size[0]} high and {size[1]} "
            "wide; give masks the image's size"
        )
    return mask


def _annotations(data: bytes) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"json: it cannot be read ({error}); save it as JSON in UTF-8") from None
    if isinstance(content, dict):
        content = content["annotations"] if isinstance(content.get("annotations"), list) else [content]
    if not isinstance(content, list):
        return []
    return [entry for entry in content if isinstance(entry, dict) and (entry.get("segmentation") or entry.get("bbox"))]


def _from_annotation(annotation: Mapping[str, Any], number: int, size: Size) -> BoolArray:
    shape = annotation.get("segmentation")
    try:
        if shape and isinstance(shape, dict):
            return decode_rle(shape, size)
        if not shape:
            polygons = [_box(annotation["bbox"], size)]
        elif isinstance(shape, list):
            polygons = [_corners(polygon, size) for polygon in shape]
        else:
            raise SampleError("it is neither an RLE with size and counts nor a list of polygons; correct it")
    except SampleError as error:
        kind = "segmentation" if shape else "bbox"
        raise SampleError(f"json: {kind} of annotation {number}: {error}") from None
    mask = np.zeros(size, np.bool_)
    for corners in polygons:
        mask |= fill_polygon(corners, size)
    return mask


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
        raise SampleError(f"the box is {box!r} and not [left, top, width, height]; correct it")
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
