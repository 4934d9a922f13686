"""Annotations as COCO has them, one file for many images: each image gets the list of its own."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from inpaint_data.folders.files import File, LeftOut


@dataclass
class Annotated:
    """An image of COCO's: its annotations in the order of the files, and its captions."""

    name: str
    beside: list[File] = field(default_factory=list)  # the files that name it
    annotations: list[dict[str, Any]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    has_objects: bool = False  # whether a file of objects names it, be it an image without any

    def json(self) -> bytes:
        """The same bytes whenever it is packed."""
        return json.dumps(self.annotations, ensure_ascii=False, separators=(",", ":")).encode()


def is_coco(content: Any) -> bool:
    """Whether a json has COCO's shape: a list of images with names, and a list of annotations."""
    if not isinstance(content, dict):
        return False
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        return False
    return all(isinstance(image, dict) and isinstance(image.get("file_name"), str) for image in images)


def read_coco(files: Iterable[tuple[File, Any]]) -> tuple[list[Annotated], list[LeftOut]]:
    """The images of COCO-shaped files with what all of them say, and what belongs to no image.

    Annotations are left as they are, crowds too, with the name of their category beside its number. Of annotations that
    several files have (`instances` and `person_keypoints` share theirs), the first file's count.
    """
    images: dict[str, Annotated] = {}
    left_out: list[LeftOut] = []
    seen: set[tuple[str, Any]] = set()
    for file, content in files:
        names = {_number(image, "id"): image["file_name"] for image in content["images"]}
        names.pop(None, None)
        listed = content.get("categories")
        categories = {
            _number(category, "id"): category["name"]
            for category in (listed if isinstance(listed, list) else [])
            if isinstance(category, dict) and isinstance(category.get("name"), str)
        }
        is_of_captions = bool(content["annotations"]) and all(map(_is_caption, content["annotations"]))
        for name in names.values():
            image = images.setdefault(name, Annotated(name))
            image.beside.append(file)
            image.has_objects |= not is_of_captions
        mine: set[tuple[str, Any]] = set()
        for number, annotation in enumerate(content["annotations"]):
            name = names.get(_number(annotation, "image_id"))
            if name is None:
                left_out.append(LeftOut(f"{file.name}, annotation {number}", "an annotation of no image"))
            elif _is_caption(annotation):
                images[name].captions.append(annotation["caption"])
            elif (identity := (name, _number(annotation, "id"))) not in seen:
                mine.add(identity)
                category = categories.get(_number(annotation, "category_id"))
                images[name].annotations.append(annotation | ({"category_name": category} if category else {}))
        seen |= {identity for identity in mine if identity[1] is not None}
    return list(images.values()), left_out


def _number(entry: Any, name: str) -> int | str | None:
    """A number that images and categories are known by; some tools write texts."""
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, int | str) else None


def _is_caption(annotation: Any) -> bool:
    return isinstance(annotation, dict) and isinstance(annotation.get("caption"), str) and "bbox" not in annotation
