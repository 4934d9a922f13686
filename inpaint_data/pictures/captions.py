"""The caption of a sample: a member that is a text, or a field of one that is JSON."""

import json
import re
from collections.abc import Mapping
from typing import Any

from inpaint_data.errors import SampleError
from inpaint_data.shown import shortened

MAX_JSON_BYTES = 2**24
_YOLO = re.compile(r"\d+(?: -?\d*\.\d+){4,}(?:\s*\n\d+(?: -?\d*\.\d+){4,})*")  # lines: class, then shares
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # that files begin with


def caption_of(members: Mapping[str, bytes], caption: str = "txt") -> str:
    """The caption, "" where there is none, and where its text is labels as YOLO writes them.

    Args:
        members: of the sample, by extension.
        caption: the member, or member:field, whose dots lead into mappings and lists.

    Raises:
        SampleError: it is not a text.
    """
    member, _, path = caption.partition(":")
    if member not in members:
        return ""
    value: Any = field_of(json_of(member, members[member]), path) if path else text_of(member, members[member])
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SampleError(f"{caption}: the caption is {shortened(value)} and not a text; name the text's own field")
    # Some tools end a text with zero bytes.
    value = value.rstrip("\0 \t\r\n").strip().strip("\ufeff").strip()
    if "\0" in value:
        raise SampleError(f"{caption}: the caption has zero bytes in it, as UTF-16 without its mark; save it as UTF-8")
    if _YOLO.fullmatch(value):
        return ""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise SampleError(f"{caption}: the caption has halves of characters in it; save it as UTF-8")
    return str(value)


def text_of(member: str, data: bytes) -> str:
    """The text of a member: UTF-8, or what its byte order mark says.

    Raises:
        SampleError: it is not.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-16, as it begins" if encoding == "utf-16" else "UTF-8"
        raise SampleError(
            f"{member}: the caption is not {name} ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def json_of(member: str, data: bytes) -> Any:
    """The content of a member that is JSON.

    Raises:
        SampleError: it is not, or is too large.
    """
    if len(data) > MAX_JSON_BYTES:
        raise SampleError(f"{member}: has {len(data)} bytes, above the limit of {MAX_JSON_BYTES}; leave something out")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"{member}: it cannot be read ({error}); save it as JSON in UTF-8") from None


def failed_download(members: Mapping[str, bytes]) -> str | None:
    """What a sample without an image says of itself where img2dataset could not download it; None where it does not."""
    try:
        content = json_of("json", members.get("json", b""))
    except SampleError:
        return None
    status = content.get("status") if isinstance(content, dict) else None
    if not isinstance(status, str) or status == "success":
        return None
    message = content.get("error_message")
    return f"{status}: {message}"[:200] if isinstance(message, str) else status[:200]


def field_of(value: Any, path: str) -> Any:
    """What lies at a dotted path; None where nothing does."""
    for step in path.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isascii() and step.isdigit() and len(step) < 7:
            value = value[int(step)] if int(step) < len(value) else None
        else:
            return None
    return value
