"""Rows of tables that hold the pictures themselves: which column is what, and the members of a sample in a row."""

from collections.abc import Mapping, Sequence
from typing import Any

from inpaint_data.errors import UsageError
from inpaint_data.folders.files import IMAGES
from inpaint_data.kinds import kind_of
from inpaint_data.shown import shortened

KNOWN = {  # what a column is for -> what it is called
    "image": ("image", "img", "jpg", "png", "picture"),
    "mask": ("mask", "mask_image", "masks"),
    "target": ("target", "target_image"),
    "control": ("control", "conditioning_image"),
    "reference": ("reference", "reference_image", "references"),
    "caption": ("caption", "text", "prompt", "description"),
}


def columns_given(columns: str | Mapping[str, str] | None) -> dict[str, str]:
    """What `image=photo,mask=seg,caption=en`, or a mapping, says. Raises UsageError if it says nothing."""
    if isinstance(columns, Mapping):
        columns = ",".join(f"{use}={name}" for use, name in columns.items())
    given: dict[str, str] = {}
    for part in columns.split(",") if columns else []:
        use, equals, name = part.strip().partition("=")
        if not equals or use not in KNOWN or not name:
            raise UsageError(f"columns: {part!r} is not one of {', '.join(f'{use}=NAME' for use in KNOWN)}")
        given[use] = name
    return given


def columns_of(names: Sequence[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """What a column is for -> its name: as it is given, or else known by it.

    Raises:
        UsageError: one that is given is not there, or none holds the images; the line begins with `where`.
    """
    found: dict[str, str] = {}
    for use, known in KNOWN.items():
        if use in given and given[use] not in names:
            raise UsageError(f"columns: {where} has no column {given[use]!r}; it has {', '.join(names)}")
        name = given.get(use) or next((name for name in known if name in names), None)
        if name is None and use == "image":
            raise UsageError(
                f"{where}: no column is known to hold the images; it has {', '.join(names)}: say which with "
                "columns image=NAME"
            )
        if name is not None:
            found[use] = name
    return found


def members_of_row(record: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, bytes], str | None]:
    """The members of a row, and the problem with it."""
    members: dict[str, bytes] = {}
    for use, column in columns.items():
        value = record[column]
        if use == "caption":
            if isinstance(value, str) and value.strip():
                members["txt"] = value.encode()
            elif value is not None and not isinstance(value, str):
                return members, f"its {column} is not a text: {shortened(value)}"
            continue
        values = value if isinstance(value, list) else [value]
        for number, picture in enumerate(values):
            if picture is None and use != "image":
                continue
            data = picture.get("bytes") if isinstance(picture, dict) else picture
            kind = kind_of(data).replace("jpeg", "jpg") if isinstance(data, bytes) else ""
            if not isinstance(data, bytes) or kind not in IMAGES:
                return members, (
                    f"its {column} holds no picture, or only the path of one; write tables that have their bytes, or "
                    "give the folder of the files"
                )
            name = kind if use == "image" else f"{use}.{kind}"
            members[f"{use}.{number}.{kind}" if len(values) > 1 else name] = data
    return members, None
