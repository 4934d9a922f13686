"""Annotations in the `json` of a sample, whatever tool wrote them, as COCO's: "segmentation" or "bbox" each.

COCO's own (one, a list, or below "annotations", as SA-1B has them), LabelMe's shapes and VIA's regions.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from inpaint_data.errors import SampleError
from inpaint_data.pictures.captions import json_of
from inpaint_data.shown import shortened

# What a stranger's json may ask for. The largest files of COCO, LVIS and SA-1B stay far below.
MAX_OBJECTS = 4096
MAX_LINE = 1024  # points of a line
CIRCLE = 64  # corners that stand for it
LINE = 10  # pixels: what LabelMe draws lines with
_YOLO = re.compile(r"\d+( -?[\d.]+){4,}")  # a line: class, then numbers
Annotation = Mapping[str, Any]
Flat = list[float]  # x, y, x, y ...


@dataclass(frozen=True)
class Annotations:
    """The objects of a sample, and the (height, width) of the image that they say they were drawn on."""

    objects: Sequence[Annotation]
    size: tuple[int, int] | None


def annotations_of(data: bytes, key: str) -> Annotations:
    """The annotations of a `json`.

    Args:
        data: its bytes.
        key: of the sample, by which it is found among the files of a VIA project.

    Raises:
        SampleError: it cannot be read, has too many objects, or none for this sample among those of several files.
    """
    content = json_of("json", data)
    objects: Sequence[Annotation]
    size: Any = None
    if isinstance(content, dict):
        if isinstance(content.get("shapes"), list):
            objects = _labelme(_limited(content["shapes"]))
            size = (content.get("imageHeight"), content.get("imageWidth"))
        elif (regions := _via_regions(content, key)) is not None:
            objects = [_attributes(region) | _via(region) for region in _limited(regions)]
        else:
            image = content.get("image")
            size = (image.get("height"), image.get("width")) if isinstance(image, dict) else None
            listed = content.get("annotations")
            objects = _coco(listed if isinstance(listed, list) else [content])
    else:
        objects = _coco(content if isinstance(content, list) else [])
    known = isinstance(size, tuple) and all(type(side) is int for side in size)
    return Annotations(_limited(objects), size if known else None)


def _limited(objects: Sequence[Any]) -> Sequence[Any]:
    if len(objects) > MAX_OBJECTS:
        raise SampleError(f"json: has {len(objects)} objects, above the limit of {MAX_OBJECTS}; leave some out")
    return objects


def foreign_format(members: Mapping[str, bytes]) -> str | None:
    """The name of a format that is not read, where a sample has annotations in it."""
    if "xml" in members:
        return "annotations in xml (Pascal VOC, CVAT)"
    lines = members.get("txt", b"")[:4096].decode("utf-8", "replace").split("\n")
    if _YOLO.fullmatch(lines[0].strip()):
        return "YOLO's labels in txt"
    try:
        content = json_of("json", members.get("json", b""))
    except SampleError:
        return None
    if isinstance(content, dict) and isinstance(content.get("objects"), list) and isinstance(content.get("size"), dict):
        return "Supervisely's annotations in json"
    return None


def _coco(entries: Sequence[Any]) -> list[Annotation]:
    return [entry for entry in entries if isinstance(entry, dict) and (entry.get("segmentation") or entry.get("bbox"))]


def _labelme(shapes: Sequence[Any]) -> list[Annotation]:
    """An object for each shape, or for all shapes of one label and group."""
    groups: dict[Any, list[Any]] = {}
    for number, shape in enumerate(shapes):
        if isinstance(shape, dict):
            group = shape.get("group_id")
            named = type(group) in (int, str)
            groups.setdefault((str(shape.get("label")), group) if named else number, []).append(shape)
    objects: list[Annotation] = []
    for group in groups.values():
        polygons = [_labelme_polygons(shape) for shape in group]
        wrong = next((problem for problem in polygons if isinstance(problem, str)), "it has no area")
        usable = [polygon for each in polygons if not isinstance(each, str) for polygon in each]
        label = {"label": group[0].get("label")}
        objects.append(label | ({"segmentation": usable} if usable else {"problem": wrong}))
    return objects


def _labelme_polygons(shape: Mapping[str, Any]) -> list[Flat] | str:
    """The polygons of a shape, or the problem with it."""
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        return "its points are not a list of [x, y]; correct it"
    flat = [coordinate for point in points for coordinate in point]
    if not _are_numbers(flat):
        return "its points are not numbers; correct it"
    if kind == "polygon":
        return [flat]
    if kind == "rectangle" and len(points) == 4:
        return [flat]
    if kind == "rectangle" and len(points) == 2:
        return [_rectangle(flat[0], flat[1], flat[2], flat[3])]
    if kind == "circle" and len(points) == 2:
        radius = math.hypot(flat[2] - flat[0], flat[3] - flat[1])
        return [_ellipse(flat[0], flat[1], radius, radius)]
    if kind in ("line", "linestrip") and 1 < len(points) <= MAX_LINE:
        return [_thick(*start, *end) for start, end in pairwise(points)]
    return f"its shape {shortened(kind)} with {len(points)} points is not read; draw a polygon"


def _via_regions(content: Mapping[str, Any], key: str) -> Sequence[Any] | None:
    """The regions of the sample's file; None where this is not VIA's.

    Raises:
        SampleError: it has those of several other files.
    """
    content = content.get("_via_img_metadata", content)
    if not isinstance(content, dict):
        return None
    files = [content] if "regions" in content else list(content.values())
    if not files or not all(isinstance(file, dict) and isinstance(file.get("regions"), list | dict) for file in files):
        return None
    if len(files) > 1:
        name = key.rpartition("/")[2]
        files = [file for file in files if str(file.get("filename")).rpartition("/")[2].partition(".")[0] == name]
        if len(files) != 1:
            raise SampleError(f"json: has the regions of several files, and {len(files)} of them is {name}; keep one")
    regions = files[0]["regions"]
    return list(regions.values()) if isinstance(regions, dict) else regions


def _attributes(region: Any) -> dict[str, Any]:
    """What VIA's user says of a region."""
    attributes = region.get("region_attributes") if isinstance(region, dict) else None
    return dict(attributes) if isinstance(attributes, dict) else {}


def _via(region: Any) -> dict[str, Any]:
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict):
        return {"problem": "it has no shape_attributes; correct it"}
    name = shape.get("name")
    try:
        if name == "polygon":
            pairs = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
            return {"segmentation": [[coordinate for pair in pairs for coordinate in pair]]}
        if isinstance(name, str) and name in _VIA_SHAPES:
            fields, outline = _VIA_SHAPES[name]
            values = [({"theta": 0} | shape)[field] for field in fields]
            if _are_numbers(values):
                return {"segmentation": [outline(*values)]}
    except (KeyError, TypeError, ValueError):
        pass
    return {"problem": f"its shape {shortened(name)} is not read, or lacks numbers; draw a polygon"}


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and abs(value) < 1e9 for value in values)


def _rectangle(left: float, top: float, right: float, bottom: float) -> Flat:
    return [left, top, left, bottom, right, bottom, right, top]


def _ellipse(x: float, y: float, across: float, down: float, theta: float = 0) -> Flat:
    outline: Flat = []
    for number in range(CIRCLE):
        angle = 2 * math.pi * number / CIRCLE
        right, below = across * math.cos(angle), down * math.sin(angle)
        outline += (x + right * math.cos(theta) - below * math.sin(theta),)
        outline += (y + right * math.sin(theta) + below * math.cos(theta),)
    return outline


def _thick(x: float, y: float, to_x: float, to_y: float) -> Flat:
    """A line as the rectangle around it."""
    length = math.hypot(to_x - x, to_y - y) or 1.0
    right, down = LINE / 2 * (to_y - y) / length, LINE / 2 * (x - to_x) / length
    return [x + right, y + down, to_x + right, to_y + down, to_x - right, to_y - down, x - right, y - down]


_VIA_SHAPES: Mapping[str, tuple[tuple[str, ...], Callable[..., Flat]]] = MappingProxyType(
    {
        "rect": (("x", "y", "width", "height"), lambda x, y, width, height: _rectangle(x, y, x + width, y + height)),
        "circle": (("cx", "cy", "r"), lambda x, y, radius: _ellipse(x, y, radius, radius)),
        "ellipse": (("cx", "cy", "rx", "ry", "theta"), _ellipse),
    }
)
