"""Object masks that a sample brings: its mask members, or the annotations in its `json`.

Members: `mask.png`, `mask.0.png`, `mask.1.png` ..., white = the object. Where there are none, see `annotations_of`. Of
each annotation the "segmentation" counts (RLE, compressed or not, or polygons), else the "bbox". Pixels are those that
pycocotools gives, to the last one.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import SampleError
from inpaint_data.masks.drawn import BoolArray
from inpaint_data.pictures.annotations import Annotations, annotations_of, foreign_format
from inpaint_data.pictures.captions import field_of, json_of
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.images import UPRIGHT, Uint8Array
from inpaint_data.pictures.mask_files import (
    MaskReading,
    frame_of,
    in_order,
    levels_of,
    mask_pattern,
    question_of,
    read_mask,
)
from inpaint_data.shown import shortened

MAX_POLYGONS = 1024  # of one object; COCO, LVIS and SA-1B stay far below
_STEPS_AT_ONCE = 2**18


@dataclass(frozen=True)
class ObjectMask:
    """An object of a sample: called, it makes the object's mask in levels, see `read_mask`.

    Attributes:
        make: the function that makes it.
        annotation: what the sample says of it.
        number: of its member, mask.N.png; None of an annotation.
    """

    make: Callable[[], Uint8Array]
    annotation: Mapping[str, Any] = field(default_factory=dict)
    number: int | None = None

    def __call__(self) -> Uint8Array:
        return self.make()

    def text(self, source: str, members: Mapping[str, bytes]) -> str:
        """Its own text: a field of its annotation, or with json:PATH its number's item of a list; "" where none is."""
        value: Any = self.annotation.get(source)
        if source.startswith("json:") and self.number is not None and "json" in members:
            texts = field_of(json_of("json", members["json"]), source.removeprefix("json:"))
            value = texts[self.number] if isinstance(texts, list) and self.number < len(texts) else None
        return " ".join(value.split()) if isinstance(value, str) else ""


def find_objects(members: Mapping[str, bytes], reading: MaskReading, key: str = "") -> list[ObjectMask]:
    """The objects of a sample. One can be used at least.

    Those that are not raise SampleError when they are made. Whoever draws passes them over, as an empty one.

    Args:
        members: the sample's, by extension.
        reading: how its masks are read.
        key: of the sample.

    Raises:
        SampleError: the sample brings no object mask, its json cannot be read, or none can be used: all are empty, or
            the first has a problem.
    """
    objects: list[ObjectMask]
    pattern = mask_pattern(reading.masks.mask)
    if names := in_order(members, pattern):
        objects = [
            ObjectMask(partial(read_mask, name, members[name], reading), number=_number_of(name, pattern))
            for name in names
        ]
    else:
        found = annotations_of(members["json"], key) if "json" in members else Annotations((), None)
        if not found.objects:
            foreign = foreign_format(members)
            problem = f"; {foreign} are not read" if foreign else ""
            raise SampleError(
                f"no object mask: the sample has {', '.join(sorted(members))}{problem}; add mask.png or mask.0.png, or "
                "annotations of COCO, LabelMe or VIA as its json"
            )
        objects = [
            ObjectMask(partial(_from_annotation, annotation, number, found.size, reading), annotation)
            for number, annotation in enumerate(found.objects)
        ]
    return _with_a_usable_one(objects)


def _number_of(name: str, pattern: re.Pattern[str]) -> int | None:
    match = pattern.fullmatch(name)
    number = re.search("[0-9]+", match[1] or "") if match else None
    return int(number[0]) if number and len(number[0]) < 10 else None


def _with_a_usable_one(objects: list[ObjectMask]) -> list[ObjectMask]:
    """The objects. Raises SampleError if all are empty or unusable: no draw decides whether a sample is lost."""
    problem: SampleError | None = None
    for number, make in enumerate(objects):
        try:
            mask = make()
        except SampleError as error:
            problem = problem or error
            continue
        if (mask > 127).any():
            objects[number] = replace(make, make=mask.copy)  # not to be made again
            return objects
    raise problem or SampleError("every object mask is empty; give objects that show, or leave the sample out")


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


def _from_annotation(
    annotation: Mapping[str, Any], number: int, drawn_on: Size | None, reading: MaskReading
) -> Uint8Array:
    size, turned, asked = reading.size, reading.turned, reading.masks.orientation
    kind = "segmentation" if annotation.get("segmentation") else "bbox" if "bbox" in annotation else "shape"
    shape = annotation.get("segmentation")
    try:
        if "problem" in annotation:
            raise SampleError(annotation["problem"])
        sides = shape.get("size") if isinstance(shape, dict) else None
        if isinstance(sides, list) and [type(side) for side in sides] == [int, int]:
            frame = frame_of((sides[0], sides[1]), size, turned, asked)
        else:
            frame = frame_of(drawn_on, size, turned, asked)
        if frame is None:
            raise SampleError(question_of(turned))
        if frame == "stored":
            stored = size[::-1] if turned >= 5 else size
            return np.ascontiguousarray(UPRIGHT[turned](levels_of(_drawn(annotation, stored))))
        if drawn_on not in (None, size):
            raise SampleError(
                f"it was drawn on an image of {shortened(drawn_on)}, but this one is {size[0]} high and {size[1]} "
                "wide; give annotations of this image"
            )
        return levels_of(_drawn(annotation, size))
    except SampleError as error:
        raise SampleError(f"json: {kind} of annotation {number}: {error}") from None


def _drawn(annotation: Mapping[str, Any], size: Size) -> BoolArray:
    shape = annotation.get("segmentation")
    if isinstance(shape, dict) and shape:
        return decode_rle(shape, size)
    mask = np.zeros(size, np.bool_)
    for corners in _polygons(annotation, size):
        mask |= fill_polygon(corners, size)
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
    # As detectron2 does, what has no three corners is passed over where others have.
    has_corners = [isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in shape]
    usable = [polygon for polygon, has in zip(shape, has_corners, strict=True) if has] or shape
    polygons = [_corners(polygon, size) for polygon in usable]
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
