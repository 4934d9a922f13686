"""What the mask in a file means: which of its pixels are repainted, and which pixels of the image these are.

What is surely meant is done. What is in doubt raises SampleError with the question and the setting that answers it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from inpaint_data.errors import SampleError
from inpaint_data.masks.drawn import BoolArray
from inpaint_data.masks.settings import MaskSettings, Orientation, Repaint
from inpaint_data.pictures.formats import DEFAULT, Decoding
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.images import UPRIGHT, Uint8Array, decode_values, stated_orientation
from inpaint_data.shards.reading import MASK_MEMBER

COLOURED = 64  # between the channels of a pixel; a JPEG's grey stays far below
ONE_COLOUR = 8  # within a channel, for a colour that a lossy format has kept nearly constant
Values = npt.NDArray[Any]  # (H, W) uint16, or (H, W, 3) uint8
FILLS = 0.005  # share of a mask that a value fills, away from edges, if it is a class and not a soft border
MOSTLY = 0.75  # share between black and white above which it is no mask with soft borders
LIGHT = 240  # this and above count as white; JPEG makes 254 of it
NOISE = 4  # up to this a file of many values counts as black


@lru_cache
def mask_pattern(named: str | None) -> re.Pattern[str]:
    """The names of the members that are masks: `named` with or without a number, or mask.png, mask.0.jpg ..."""
    if named is None:
        return MASK_MEMBER
    stem, dot, extension = named.rpartition(".")
    ending = re.escape(dot + extension) if stem else ""
    return re.compile(rf"{re.escape(stem or named)}(?:\.([0-9]+))?{ending}")


def in_order(names: Iterable[str], pattern: re.Pattern[str]) -> list[str]:
    """The masks among members, by their number, those without first. Digits are not counted on: there may be many."""

    def number(name: str) -> tuple[int, str, str]:
        match = pattern.fullmatch(name)
        digits = (match and match[1]) or ""
        significant = digits.lstrip("0")
        return (len(significant) if digits else -1, significant, name)

    return sorted(filter(pattern.fullmatch, names), key=number)


@dataclass(frozen=True)
class MaskReading:
    """How the masks that come with an image are read.

    Attributes:
        size: of the upright image.
        turned: the EXIF orientation of the image.
        masks: which members are masks, and what they mean where they do not say it.
        decoding: how their files are decoded.
    """

    size: Size
    turned: int = 1
    masks: MaskSettings = field(default_factory=MaskSettings)
    decoding: Decoding = DEFAULT


def read_mask(name: str, data: bytes, reading: MaskReading) -> Uint8Array:
    """The mask in a file on the pixels of the upright image, (height, width) in levels: 128 and more = repaint.

    Its levels stay until it has the size of the image that is encoded, as diffusers' `VaeImageProcessor` first resizes
    a mask and then makes it hard.

    Args:
        name: of the member.
        data: its bytes.
        reading: how it is read.

    Raises:
        SampleError: it cannot be decoded, has another size, or may mean more than one thing.
    """
    size = reading.size
    try:
        mask = repainted(data, reading.masks.repaint, reading.decoding)
        if reading.turned != 1 and stated_orientation(data, reading.decoding) is None:
            mask = in_place(mask, size, reading.turned, reading.masks.orientation)
    except SampleError as error:
        raise SampleError(f"{name}: {error}") from None
    check_size(name, mask.shape, size)
    return mask


def check_size(name: str, shape: tuple[int, ...], size: Size, plural: str = "masks") -> None:
    """Raises SampleError if the member of that name has a `shape` other than the `size` of the image."""
    if shape != size:
        raise SampleError(
            f"{name} is {shape[0]} high and {shape[1]} wide, but image is {size[0]} high and {size[1]} wide; give "
            f"{plural} the image's size"
        )


def frame_of(shape: Size | None, size: Size, turned: int, asked: Orientation | None) -> Orientation | None:
    """Whether what has `shape`, if known, lies on the upright pixels of an image or on those that its file stores.

    None if it may be either, and nobody has said which.

    Args:
        shape: (height, width) of what was drawn.
        size: of the upright image.
        turned: the EXIF orientation of the image.
        asked: the setting.
    """
    stored = size[::-1] if turned >= 5 else size
    if turned != 1 and shape in (None, size) and shape in (None, stored):
        return asked
    return "stored" if turned != 1 and shape == stored else "upright"


def in_place(pixels: Values, size: Size, turned: int, asked: Orientation | None) -> Values:
    """Pixels without an orientation of their own on those of an upright image: see `frame_of`.

    Raises:
        SampleError: they may be either, and differ.
    """
    frame = frame_of((pixels.shape[0], pixels.shape[1]), size, turned, asked)
    if frame == "upright":
        return pixels
    upright = UPRIGHT[turned](pixels)
    if frame is None and not np.array_equal(upright, pixels):
        raise SampleError(question_of(turned))
    return np.ascontiguousarray(upright)


def question_of(turned: int) -> str:
    return (
        f"image is turned by its EXIF orientation {turned}, and this fits it upright and as it is stored; say which it "
        "was drawn on with orientation: upright or stored (below masks), or save both upright"
    )


def repainted(data: bytes, repaint: Repaint | None, decoding: Decoding = DEFAULT) -> Uint8Array:
    """What of a mask file is repainted, (H, W) in levels 0...255: 128 and more.

    Raises:
        SampleError: it cannot be decoded, or may mean more than one thing.
    """
    values, alpha = decode_values(data, decoding)
    if repaint in ("opaque", "transparent"):
        if alpha is None:
            raise SampleError(f"it has no transparency, and repaint is {repaint}; set repaint to light or nonzero")
        return alpha if repaint == "opaque" else 255 - alpha
    if repaint == "dark":
        return 255 - _grey(values)
    if repaint == "nonzero":
        return levels_of(values > 0 if values.ndim == 2 else values.any(2))
    if repaint is None and alpha is not None and alpha.min() < 255:
        return _by_transparency(values, alpha)
    is_lossy = data[:2] == b"\xff\xd8" or data[4:8] == b"ftyp" or (data[:4] == b"RIFF" and b"VP8L" not in data[:64])
    if values.dtype == np.uint16:
        return _grey(values) if repaint == "light" else _by_16_bits(values)
    return _grey(values) if repaint == "light" else _by_colours(values.astype(np.uint8, copy=False), is_lossy)


def levels_of(mask: Any) -> Uint8Array:
    """A hard mask, (H, W) bool, in levels: 255 = repaint."""
    levels: Uint8Array = np.where(mask, np.uint8(255), np.uint8(0))
    return levels


def _grey(pixels: Values) -> Uint8Array:
    """ITU-R 601. Of 16 bits the upper eight: what is above half is 128 and more."""
    if pixels.ndim == 2:
        return (pixels >> 8).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).convert("L"))


def _by_transparency(values: Values, alpha: Uint8Array) -> Uint8Array:
    opaque, light = alpha > 127, _grey(values) > 127
    seen = values[alpha > 0] if alpha.any() else values.reshape(-1, *values.shape[2:])
    if int(np.ptp(seen, axis=0).max()) <= ONE_COLOUR:
        if light[alpha > 0].any() or (not alpha.any() and light.any()):
            return alpha  # a white brush, as AUTOMATIC1111, GIMP and Photoshop save it
        raise SampleError(
            "it has one dark colour, and only its transparency varies: the opaque is repainted in most tools, the "
            "transparent in ComfyUI; say which with repaint: opaque or transparent (below masks)"
        )
    if np.array_equal(opaque, light):
        return alpha
    raise SampleError(
        f"{light.mean():.0%} of it is light and {opaque.mean():.0%} opaque, not the same: an image with a hole, or a "
        "mask; say what is repainted with repaint: light, opaque or transparent (below masks), or save it without "
        "transparency"
    )


def _by_16_bits(values: Values) -> Uint8Array:
    top: int = values.max()
    if top in (1, 255) and np.isin(values, (0, top)).all():
        return levels_of(values > 0)
    if 0 < top <= 32767:
        raise SampleError(f"its values of 16 bits are {_listed(np.unique(values))}, {CLASSES}")
    return _grey(values)


CLASSES = (
    "which may be the numbers of classes, or a dark mask; repaint them all with repaint: nonzero, what is above half "
    "with repaint: light (below masks), or save black and white"
)


def _by_colours(pixels: Uint8Array, is_lossy: bool) -> Uint8Array:
    grey = _grey(pixels)
    if _spread(pixels) >= COLOURED:
        colours = np.unique(pixels.reshape(-1, 3), axis=0)
        if len(colours) == 2:
            if len(np.unique(grey > 127)) == 2 and colours[0].max() <= NOISE:
                return levels_of(grey > 127)
            if not colours[0].any():  # black, and the one class of a palette
                return levels_of(pixels.any(2))
        raise SampleError(f"it has {len(colours)} colours, {CLASSES}")
    counts = np.bincount(grey.ravel(), minlength=256)
    values = np.flatnonzero(counts)
    top = int(values[-1])
    if top == 1 and not is_lossy:
        return levels_of(grey == 1)  # classes 0 and 1
    if top < 128 and top > (NOISE if is_lossy else 0):
        raise SampleError(f"its values are {_listed(values)} of 255, {CLASSES}")
    between = counts[NOISE + 1 : LIGHT].sum() / grey.size
    if between > MOSTLY:
        raise SampleError(f"{between:.0%} of it is neither black nor white, as in a photograph, {CLASSES}")
    if len(values) > 2 and not is_lossy:
        low = 1 if len(values) <= 16 else NOISE + 1
        middle = [value for value in values[1:-1].tolist() if low <= value < LIGHT]
        if any(counts[value] >= FILLS * grey.size and _fills(grey == value) for value in middle):
            raise SampleError(f"areas of it have values between black and white, {_listed(values)}, {CLASSES}")
    return grey


def _spread(pixels: Uint8Array) -> int:
    """How far the channels of any pixel are apart."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return 0
    return int((np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)).max())


def _fills(places: BoolArray) -> bool:
    """Whether a value has areas, and is not only the border between others."""
    inside = places[1:-1, 1:-1] & places[:-2, 1:-1] & places[2:, 1:-1] & places[1:-1, :-2] & places[1:-1, 2:]
    return bool(inside.mean() >= FILLS) if inside.size else False


def _listed(values: Values) -> str:
    return ", ".join(map(str, values[:6].tolist())) + (f" … {values[-1]}" if len(values) > 6 else "")
