"""Annotations that one file has for many images, as COCO and VIA have them: each image gets its own."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from inpaint_data.folders.files import File, LeftOut


@dataclass
class Annotated:
    """What one or several files of COCO's say of an image."""

    annotations: list[dict[str, Any]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    has_objects: bool = False  # whether a file of objects names it, be it an image without any

    def json(self) -> bytes:
        """The annotations in the order of the files, the same bytes whenever they are packed."""
        return json.dumps(self.annotations, ensure_ascii=False, separators=(",", ":")).encode()

    def add(self, other: "Annotated") -> None:
        """What another file says too. `instances` and `person_keypoints` share annotations: the first one's count."""
        known = {number for annotation in self.annotations if (number := _number(annotation, "id")) is not None}
        self.annotations += [new for new in other.annotations if _number(new, "id") not in known]
        self.captions += other.captions
        self.has_objects |= other.has_objects


def is_coco(content: Any) -> bool:
    """Whether a json has COCO's shape: a list of images with names, and a list of annotations."""
    if not isinstance(content, dict):
        return False
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        return False
    return all(isinstance(image, dict) and isinstance(image.get("file_name"), str) for image in images)


def read_coco(file: File, content: Any) -> tuple[dict[str, Annotated], list[LeftOut]]:
    """The images of a COCO-shaped file, by their names in it, and what belongs to none.

    Annotations are left as they are, crowds too, with the name of their category beside its number.
    """
    names = {_number(image, "id"): image["file_name"] for image in content["images"]}
    names.pop(None, None)
    listed = content.get("categories")
    categories = {
        _number(category, "id"): category["name"]
        for category in (listed if isinstance(listed, list) else [])
        if isinstance(category, dict) and isinstance(category.get("name"), str)
    }
    annotations: Collection[Any] = content["annotations"]
    has_objects = not annotations or not all(map(_is_caption, annotations))
    images = {name: Annotated(has_objects=has_objects) for name in names.values()}
    left_out = []
    for number, annotation in enumerate(annotations):
        name = names.get(_number(annotation, "image_id"))
        if name is None:
            left_out.append(LeftOut(f"{file.name}, annotation {number}", "an annotation of no image"))
        elif _is_caption(annotation):
            images[name].captions.append(annotation["caption"])
        else:
            category = categories.get(_number(annotation, "category_id"))
            images[name].annotations.append(annotation | ({"category_name": category} if category else {}))
    return images, left_out


def via_files(content: Any) -> dict[str, bytes]:
    """The images that a project of VIA names, each with its own part of it as json; none of what is no project."""
    content = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    files = list(content.values()) if isinstance(content, dict) else []
    if not all(isinstance(file, dict) and isinstance(file.get("regions"), list | dict) for file in files):
        return {}
    named = [file for file in files if isinstance(file.get("filename"), str)]
    return {file["filename"]: json.dumps(file, ensure_ascii=False).encode() for file in named}


def _number(entry: Any, name: str) -> int | str | None:
    """A number that images and categories are known by; some tools write texts."""
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, int | str) else None


def _is_caption(annotation: Any) -> bool:
    return isinstance(annotation, dict) and isinstance(annotation.get("caption"), str) and "bbox" not in annotation
