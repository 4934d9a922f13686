"""Which members of a sample are its image, its mask and its paired pictures, and what they hold."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from inpaint_data.batch import PAIRED
from inpaint_data.errors import FilteredError, SampleError
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.captions import failed_download
from inpaint_data.pictures.formats import Decoding
from inpaint_data.pictures.images import decode_alpha, decode_image, image_size, stated_orientation
from inpaint_data.pictures.mask_files import (
    MaskReading,
    check_size,
    frame_of,
    in_order,
    in_place,
    mask_pattern,
    read_mask,
)
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.shards.reading import IMAGE_EXTENSIONS, Sample, image_member, named_otherwise

REFERENCES = "references"  # the one of `PAIRED` that may be several, of any size
T = TypeVar("T")
PAIRED_MEMBERS = tuple(f"{name}.{extension}" for name in PAIRED for extension in IMAGE_EXTENSIONS)
_REFERENCE = re.compile(rf"reference(?:\.(?P<number>[0-9]+))?\.(?:{'|'.join(IMAGE_EXTENSIONS)})")


def image_of(sample: Sample, named: str | None) -> str:
    """The member that is the image. Raises SampleError if there is none, FilteredError if it was never downloaded."""
    try:
        return image_member(sample, named)
    except SampleError:
        if reason := failed_download(sample.members):
            raise FilteredError(f"status: its json says that it was not downloaded, {reason}") from None
        raise


def paired_picture(
    sample: Sample, name: str, reading: MaskReading, reduced: int = 1
) -> tuple[str, npt.NDArray[np.uint8]]:
    """The member that holds the paired picture of that name, and its pixels; a JPEG's decoded `reduced` times smaller.

    Raises:
        SampleError: it has none or several, or one that is damaged or of another size; or EXIF turns the image, and
            nothing says whether this picture is upright.
    """
    member = _paired_member(sample, name)
    size, turned = reading.size, reading.turned
    data = sample.members[member]
    decoding = replace(reading.decoding, reduced=reduced if turned == 1 else 1)
    pixels = decoded(member, decode_image, data, decoding)
    shape = image_size(data, decoding) if decoding.reduced > 1 else pixels.shape[:2]
    if turned != 1 and stated_orientation(data, reading.decoding) is None:
        if frame_of(pixels.shape[:2], size, turned, None) is None:
            raise SampleError(
                f"{member}: image is turned by its EXIF orientation {turned}, and this fits it upright and as it "
                "is stored; save both upright"
            )
        pixels = in_place(pixels, size, turned, None)
        shape = pixels.shape[:2]
    check_size(member, shape, size, f"{name}s")
    return member, pixels


def _paired_member(sample: Sample, name: str) -> str:
    members = [member for member in sample.members if member in PAIRED_MEMBERS and member.startswith(f"{name}.")]
    if len(members) != 1:
        problem = f"several {name}s: {', '.join(members)}; keep one" if members else f"no {name}; add {name}.jpg"
        raise SampleError(f"{problem}, or set {name}: false")
    return members[0]


def check_paired_members(sample: Sample, pictures: PictureSettings) -> None:
    """Raises SampleError for a sample whose members' names show that it lacks a paired picture or a reference."""
    for name in pictures.paired:
        if name == REFERENCES:
            _references_among(sample, pictures.references)
        else:
            _paired_member(sample, name)


def reference_members(sample: Sample) -> list[str]:
    """The members that are references, by their number."""
    found = {name: match for name in sample.members if (match := _REFERENCE.fullmatch(name))}
    return sorted(found, key=lambda name: (int(found[name]["number"] or 0), name))


def references_of(sample: Sample, count: int, decoding: Decoding) -> list[npt.NDArray[np.uint8]]:
    """The pixels of its references, each of its own size.

    Raises:
        SampleError: it has more or fewer than `count`, or one that is damaged.
    """
    members = _references_among(sample, count)
    return [decoded(name, decode_image, sample.members[name], decoding) for name in members]


def _references_among(sample: Sample, count: int) -> list[str]:
    members = reference_members(sample)
    if len(members) != count:
        raise SampleError(
            f"{len(members)} references ({', '.join(members) or 'none'}) where references is {count}; give each sample "
            f"{count}, reference.0.jpg and so on, or set references: {len(members)}"
        )
    if len({member.rpartition(".")[0] for member in members}) < count:
        raise SampleError(f"two references of one number ({', '.join(members)}); number them, or keep one")
    return members


def mask_of(sample: Sample, image_data: bytes, reading: MaskReading) -> npt.NDArray[np.uint8]:
    """The one mask that the sample brings, its mask member or the alpha of its image, in levels; see `read_mask`.

    Raises:
        SampleError: it has none or several, or one that cannot be used.
    """
    masks = reading.masks
    if masks.source == "alpha":
        return _mask_from_alpha(image_data, reading)
    name = mask_member(sample, masks)
    return read_mask(name, sample.members[name], reading)


def mask_member(sample: Sample, masks: MaskSettings) -> str:
    """The member that is the sample's one mask. Raises SampleError if it has none or several."""
    pattern = mask_pattern(masks.mask)
    named = [name for name in in_order(sample.members, pattern) if not pattern.fullmatch(name)[1]]  # type: ignore[index]
    if len(named) == 1:
        return named[0]
    names = ", ".join(sorted(sample.members))
    if named:
        raise SampleError(f"several masks: the sample has {names}; keep one, or name it with mask: {named[0]}")
    others = named_otherwise(sample)
    naming = f"name it with mask: {' or '.join(others[:3])}, " if others and masks.mask is None else ""
    objects = in_order(sample.members, pattern) or "json" in sample.members
    raise SampleError(
        f"no mask: the sample has {names}; add {sample.key}.{masks.mask or 'mask.png'}, {naming}"
        f"or {'take its objects with source: object' if objects else 'draw masks with source: mixture'}"
    )


def decoded(member: str, decode: Callable[[bytes, Decoding], T], data: bytes, decoding: Decoding) -> T:
    """Decode, and say in the error which member it was."""
    try:
        return decode(data, decoding)
    except SampleError as error:
        raise SampleError(f"{member}: {error}") from None


def _mask_from_alpha(image_data: bytes, reading: MaskReading) -> npt.NDArray[np.uint8]:
    alpha = decode_alpha(image_data, reading.decoding)
    if alpha is None:
        raise SampleError("no mask: the image has no alpha channel; set source: sample or mixture below masks")
    return alpha if reading.masks.repaint == "opaque" else 255 - alpha
