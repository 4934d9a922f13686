"""Image files: their bytes to uint8 pixels and back.

What a file is, is told by its content and not by a name. It comes out whole or not at all: what a viewer would show
half grey is a SampleError here. Turned upright as EXIF says, everywhere in this file.
"""

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from inpaint_data.errors import InpaintDataError, SampleError
from inpaint_data.pictures.colours import in_srgb
from inpaint_data.pictures.formats import DEFAULT, Decoding, decoder_of, format_of, refuse_raw
from inpaint_data.pictures.geometry import reduced_size
from inpaint_data.pictures.jpeg import bare_jpeg_pixels, check_jpeg, jpeg_pixels, with_more, without_defects
from inpaint_data.pictures.whole import check_png, check_webp, without_broken_chunks

Uint8Array = npt.NDArray[np.uint8]
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")  # modes of one colour
EXIF_ORIENTATION = 0x0112
# What opens where decoders stop at something that no pixel depends on.
REPAIRS: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {"jpeg": without_defects, "png": without_broken_chunks}
)
UPRIGHT: Mapping[int, Callable[[Uint8Array], Uint8Array]] = MappingProxyType(
    {
        2: lambda pixels: pixels[:, ::-1],
        3: lambda pixels: pixels[::-1, ::-1],
        4: lambda pixels: pixels[::-1],
        5: lambda pixels: pixels.swapaxes(0, 1),
        6: lambda pixels: pixels[::-1].swapaxes(0, 1),
        7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
        8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
    }
)


def decode_image(data: bytes, decoding: Decoding = DEFAULT) -> Uint8Array:
    """The colours of an image file, (H, W, 3) uint8 RGB; of an animation or of pages those of the first.

    Alpha is ignored, not composited: a transparent pixel keeps the colour that is stored under it. 16 bits become
    8: grey as round(v / 257), colour as v // 256 (Pillow's own reduction).

    With `decoding.reduced` a JPEG has fewer pixels. One that EXIF turns is whole unless its sides can be divided:
    its first row or column would else stand for less than the others.

    Raises:
        SampleError: of a format that `decoding` leaves out, damaged, cut short, or above its `max_pixels`.
    """
    if format_of(data, decoding.formats) == "jpeg":
        # Without Pillow: most of what trains.
        bare = bare_jpeg_pixels(data, decoding)
        if bare is not None:
            return np.require(in_srgb(bare, False, None), requirements=["C", "W"])
    with _opened(data, decoding) as (image, kind):
        size = _upright_size(image, kind, data)
        pixels, orientation = _pixels(image, kind, data, decoding)
        profile = image.info.get("icc_profile") if decoding.icc == "srgb" else None
        upright = _upright(in_srgb(pixels, image.mode in GREY, profile), orientation)
        if upright.shape[:2] not in (size, reduced_size(size, decoding.reduced)):
            raise SampleError(f"image is damaged: it is said to be {_shown(size)} and is {_shown(upright.shape)}")
        return upright


def decode_alpha(data: bytes, decoding: Decoding = DEFAULT) -> Uint8Array | None:
    """The alpha of an image file, (H, W) uint8, or None where it has none.

    Raises:
        SampleError: as `decode_image`.
    """
    with _opened(data, decoding) as (image, kind):
        return _alpha(image, kind, data)


def decode_values(
    data: bytes, decoding: Decoding = DEFAULT
) -> tuple[npt.NDArray[np.uint8] | npt.NDArray[np.uint16], Uint8Array | None]:
    """The values of a file that is a mask, and its alpha (H, W) or None: grey of 16 bits whole, (H, W) uint16, all else
    (H, W, 3) uint8 RGB. No colour profile counts.

    Raises:
        SampleError: as `decode_image`.
    """
    decoding = replace(decoding, decoder="libjpeg")
    with _opened(data, decoding) as (image, kind):
        pixels, orientation = _pixels(image, kind, data, decoding)
        alpha = _alpha(image, kind, data)
        if image.mode.startswith("I"):
            return UPRIGHT.get(orientation, np.asarray)(np.asarray(image).astype(np.uint16)), alpha
        return _upright(in_srgb(pixels, image.mode in GREY, None), orientation), alpha


def stated_orientation(data: bytes, decoding: Decoding = DEFAULT) -> int | None:
    """The EXIF orientation that an image file states, which decoding has undone; None where it states none.

    Raises:
        SampleError: as `image_size`.
    """
    with _opened(data, decoding, check=False) as (image, kind):
        if kind == "tiff":
            orientation = image.tag_v2.get(EXIF_ORIENTATION)
            return orientation if orientation in range(1, 9) else None
        return _stated_orientation(image, data)


def in_planes(pictures: Sequence[Uint8Array]) -> Uint8Array:
    """Pictures (H, W, 3) of one size as (B, 3, H, W), colour by colour, as autoencoders take them.

    Here, where a colour is a byte: on a CPU to turn floats around costs more than all else that is done to them.
    """
    height, width = pictures[0].shape[:2]
    planes = np.empty((len(pictures), 3, height, width), np.uint8)
    for picture, (red, green, blue) in zip(pictures, planes, strict=True):
        cv2.split(np.ascontiguousarray(picture), (red, green, blue))
    return planes


def image_size(data: bytes, decoding: Decoding = DEFAULT) -> tuple[int, int]:
    """(height, width) of the image once upright, from the header alone.

    Raises:
        SampleError: of a format that `decoding` leaves out, or above its `max_pixels`.
    """
    with _opened(data, decoding, check=False) as (image, kind):
        return _upright_size(image, kind, data)


def encode_png(array: Uint8Array) -> bytes:
    """(H, W, 3) RGB or (H, W) grey uint8 to a PNG, without loss, the same bytes every time."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"a PNG is made of (H, W, 3) or (H, W) uint8, not {array.shape} {array.dtype}")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, "PNG", compress_level=6)
    return file.getvalue()


@contextmanager
def _opened(data: bytes, decoding: Decoding, check: bool = True) -> Iterator[tuple[Any, str]]:
    """The file's header read by Pillow, and its format; whatever is raised in the block becomes a SampleError."""
    kind = format_of(data, decoding.formats)
    try:
        with _refuse_truncated(), _header(data, kind, decoding.strict) as image:
            width, height = image.size
            if min(width, height) < 1:
                raise SampleError(f"image is {height}x{width}: it has no pixels")
            if width * height > decoding.max_pixels:
                raise SampleError(
                    f"image is {height}x{width}, above max_pixels, {decoding.max_pixels}; raise it, or make the image "
                    "smaller"
                )
            if kind == "tiff":
                refuse_raw(image.tag_v2)
            plain = _checked(data, kind, decoding.strict) if check else data
            if plain is data:
                yield image, kind
                return
            with _header(plain, kind, decoding.strict) as other:
                yield other, kind
    except (InpaintDataError, MemoryError):
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error …
        raise SampleError(f"image is damaged: {_words(error, kind)}") from error


def _words(error: Exception, kind: str) -> str:
    """What a decoder says, as a part of a sentence: some say no more than a number."""
    said = str(error)
    return said if " " in said else f"the decoder of {kind.upper()} stops at it ({type(error).__name__} {said})"


def _header(data: bytes, kind: str, strict: bool) -> Any:
    """The open image, by the decoder of its format and no other."""
    decoder = decoder_of(kind)
    try:
        return decoder(io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:  # as in _opened
        if kind == "jpeg":
            with suppress(IndexError, ValueError):
                check_jpeg(data, strict)  # which knows more kinds than Pillow opens
        if kind in REPAIRS and not strict:
            with suppress(Exception):
                return decoder(io.BytesIO(REPAIRS[kind](data)))
        other = "" if kind in REPAIRS else f", or a {kind.upper()} of a kind that is not decoded"
        raise SampleError(
            f"image is damaged at its start or cut short{other}, {len(data)} bytes long: {_words(error, kind)}"
        ) from error


def _checked(data: bytes, kind: str, strict: bool) -> bytes:
    """The file, or what Pillow takes of it, if all of its pixels are there; else a SampleError."""
    if kind == "jpeg":
        check_jpeg(data, strict)
    elif kind == "webp":
        check_webp(data)
    elif kind == "png" and not check_png(data, strict):
        return without_broken_chunks(data)
    return data


def _shown(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"


_strict_lock = threading.Lock()
_strict_now = 0
_callers_choice = False


@contextmanager
def _refuse_truncated() -> Iterator[None]:
    """Turn off Pillow's global switch for cut files, which training scripts do set, until the last user is done."""
    global _strict_now, _callers_choice
    with _strict_lock:
        if _strict_now == 0:
            _callers_choice, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        _strict_now += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_now -= 1
            if _strict_now == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _callers_choice


def _alpha(image: Any, kind: str, data: bytes) -> Uint8Array | None:
    """The upright alpha of an open image; None where it has none."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # a 16-bit grey that stands for transparent
        alpha = np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    elif kind == "png" and image.mode == "RGB" and data[24] == 16:
        raise SampleError("a 16-bit colour PNG with one transparent colour; save it with an alpha channel")
    else:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return _upright(alpha, _orientation(image, data))


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation 1…8; 1 where there is none or it cannot be read, as every viewer takes it."""
    return _stated_orientation(image, data) or 1


def _stated_orientation(image: Image.Image, data: bytes) -> int | None:
    try:
        # a PNG's eXIf chunk may come after the pixels, and only then is loading them worth it
        is_behind = image.format == "PNG" and b"eXIf" in data
        exif = image.getexif() if is_behind else Image.Image.getexif(image)
        orientation = exif.get(EXIF_ORIENTATION)
    except MemoryError:
        raise
    except Exception:  # as in _opened: a damaged EXIF block, not damaged pixels
        return None
    return orientation if orientation == 1 or orientation in UPRIGHT else None


def _upright(pixels: Uint8Array, orientation: int) -> Uint8Array:
    upright = UPRIGHT[orientation](pixels) if orientation in UPRIGHT else pixels
    return np.require(upright, requirements=["C", "W"])


def _upright_size(image: Any, kind: str, data: bytes) -> tuple[int, int]:
    if kind == "tiff":  # Pillow has turned its size, or not, by its version
        (width, height), orientation = (image.tag_v2[0x100], image.tag_v2[0x101]), image.tag_v2.get(EXIF_ORIENTATION, 1)
    else:
        (width, height), orientation = image.size, _orientation(image, data)
    return (width, height) if 5 <= orientation <= 8 else (height, width)


def _pixels(image: Any, kind: str, data: bytes, decoding: Decoding) -> tuple[Uint8Array, int]:
    """The pixels as they are stored, (H, W, 3) of RGB or (H, W, 4) of ink, and their EXIF orientation."""
    if kind != "jpeg":
        pixels = _pillow_pixels(image, kind)  # first: it turns a TIFF, and then says so
        return pixels, _orientation(image, data)
    orientation = _orientation(image, data)
    reduced = decoding.reduced
    if orientation > 1 and any(side % reduced for side in image.size):
        reduced = 1
    from_turbo = jpeg_pixels(data, replace(decoding, reduced=reduced))
    if from_turbo is not None:
        return from_turbo, orientation
    pixels = _pillow_pixels(image, kind)
    with _header(with_more(data), kind, decoding.strict) as other:
        if not np.array_equal(_pillow_pixels(other, kind), pixels):
            raise SampleError("image is damaged: the data of the JPEG ends too early")
    return pixels, orientation


def _pillow_pixels(image: Any, kind: str) -> Uint8Array:
    if image.mode.startswith(("I", "F")):  # 16-bit grey, which Pillow itself would clip at 255
        bits, white_is_high = (
            (image.tag_v2.get(0x102), image.tag_v2.get(0x106) == 1) if kind == "tiff" else ((16,), True)
        )
        if bits != (16,) or not white_is_high or (kind == "tiff" and not image.mode.startswith("I;16")):
            raise SampleError(
                f"image is a {kind.upper()} of mode {image.mode}, of which nobody knows what is white; save it with 8 "
                "bits, or with 16 from black to white"
            )
        grey = np.asarray(image).astype(np.uint32)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image if image.mode == "CMYK" else image.convert("RGB"))
