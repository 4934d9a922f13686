"""Image files: their bytes to uint8 pixels and back.

JPEG, PNG and WEBP, told by their content and not by a name. A file comes out whole or not at all: what a viewer
would show half grey is a SampleError here. Turned upright as EXIF says, everywhere in this file.
"""

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from inpaint_data.errors import SampleError
from inpaint_data.pictures.whole import check_jpeg, check_png, check_webp

Uint8Array = npt.NDArray[np.uint8]
MAX_PIXELS = 2**28 // 3  # 89 megapixels, 256 MiB of RGB: more is taken for a decompression bomb, as Pillow does
CHECKS: Mapping[str, Callable[[bytes], None]] = MappingProxyType(
    {"JPEG": check_jpeg, "PNG": check_png, "WEBP": check_webp}
)
FORMATS = tuple(CHECKS)
EXIF_ORIENTATION = 0x0112
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


def decode_image(data: bytes) -> Uint8Array:
    """The colours of an image file, (H, W, 3) uint8 RGB.

    Alpha is ignored, not composited: a transparent pixel keeps the colour that is stored under it. 16 bits become
    8: grey as round(v / 257), colour as v // 256 (Pillow's own reduction).

    Raises:
        SampleError: not a JPEG, PNG or WEBP, damaged, cut short, or above MAX_PIXELS.
    """
    with _opened(data) as image:
        orientation = _orientation(image, data)
        pixels = _jpeg_rgb(data, image) if data[:2] == b"\xff\xd8" else _pillow_rgb(image)
        return _upright(pixels, orientation)


def decode_alpha(data: bytes) -> Uint8Array | None:
    """The alpha of an image file, (H, W) uint8, or None where it has none.

    Raises:
        SampleError: as `decode_image`.
    """
    with _opened(data) as image:
        if not image.has_transparency_data:
            return None
        orientation = _orientation(image, data)
        return _upright(_alpha(image, data), orientation)


def decode_values(data: bytes) -> tuple[npt.NDArray[np.uint8] | npt.NDArray[np.uint16], Uint8Array | None]:
    """The values of a file that is a mask, and its alpha (H, W) or None: grey of 16 bits whole, (H, W) uint16, all else
    (H, W, 3) uint8 RGB.

    Raises:
        SampleError: as `decode_image`.
    """
    with _opened(data) as image:
        orientation = _orientation(image, data)
        alpha = _upright(_alpha(image, data), orientation) if image.has_transparency_data else None
        if image.mode.startswith("I"):
            values = np.asarray(image).astype(np.uint16)
            return UPRIGHT.get(orientation, np.asarray)(values), alpha
        pixels = _jpeg_rgb(data, image) if data[:2] == b"\xff\xd8" else np.asarray(image.convert("RGB"))
        return _upright(pixels, orientation), alpha


def stated_orientation(data: bytes) -> int | None:
    """The EXIF orientation that an image file states, which decoding has undone; None where it states none.

    Raises:
        SampleError: as `image_size`.
    """
    with _opened(data, check=False) as image:
        return _stated_orientation(image, data)


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the image once upright, from the header alone.

    Raises:
        SampleError: not a JPEG, PNG or WEBP, or above MAX_PIXELS.
    """
    with _opened(data, check=False) as image:
        width, height = image.size
        return (width, height) if _orientation(image, data) >= 5 else (height, width)


def encode_png(array: Uint8Array) -> bytes:
    """(H, W, 3) RGB or (H, W) grey uint8 to a PNG, without loss, the same bytes every time."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"a PNG is made of (H, W, 3) or (H, W) uint8, not {array.shape} {array.dtype}")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, "PNG", compress_level=6)
    return file.getvalue()


@contextmanager
def _opened(data: bytes, check: bool = True) -> Iterator[Image.Image]:
    """The file's header read by Pillow; whatever Pillow raises in the block becomes a SampleError."""
    try:
        with _refuse_truncated(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if min(width, height) < 1:
                raise SampleError(f"image is {height}x{width}: it has no pixels")
            if width * height > MAX_PIXELS:
                raise SampleError(f"image is {height}x{width}, above {MAX_PIXELS} pixels; make it smaller")
            if check:
                CHECKS[image.format or ""](data)
            yield image
    except (SampleError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise SampleError(f"{_problem_at_start(data)} {len(data)} bytes long") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error …
        raise SampleError(f"image is damaged: {error or type(error).__name__}") from error


def _problem_at_start(data: bytes) -> str:
    if not data:
        return "image is empty,"
    if data[:3] == b"\xff\xd8\xff" or data[:4] in (b"\x89PNG", b"RIFF"):
        return "image is damaged at its start or cut short,"
    return "image is not a JPEG, PNG or WEBP,"


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


def _alpha(image: Image.Image, data: bytes) -> Uint8Array:
    if image.mode.startswith("I"):  # a 16-bit grey that stands for transparent
        return np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    if image.mode == "RGB" and data[24] == 16:
        raise SampleError("a 16-bit colour PNG with one transparent colour; save it with an alpha channel")
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation 1…8; 1 where there is none or it cannot be read, as every viewer takes it."""
    return _stated_orientation(image, data) or 1


def _stated_orientation(image: Image.Image, data: bytes) -> int | None:
    try:
        # an eXIf chunk may come after the pixels, and only then is loading them worth it
        exif = image.getexif() if b"eXIf" in data else Image.Image.getexif(image)
        orientation = exif.get(EXIF_ORIENTATION)
    except MemoryError:
        raise
    except Exception:  # as in _opened: a damaged EXIF block, not damaged pixels
        return None
    return orientation if orientation == 1 or orientation in UPRIGHT else None


def _upright(pixels: Uint8Array, orientation: int) -> Uint8Array:
    upright = UPRIGHT[orientation](pixels) if orientation in UPRIGHT else pixels
    return np.require(upright, requirements=["C", "W"])


def _jpeg_rgb(data: bytes, image: Image.Image) -> Uint8Array:
    """simplejpeg makes each of libjpeg's warnings an error; Pillow passes over a hole in the middle of a file."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # a chroma sampling that TurboJPEG has no name for
        return _pillow_rgb(image)
    if (width, height) != image.size:
        raise SampleError(f"image is damaged: it says both {height}x{width} and {image.size[1]}x{image.size[0]}")
    if colours not in ("CMYK", "YCCK"):
        try:
            rgb: Uint8Array = simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            # Some cameras pad the scan with zeros, which libjpeg warns of as it does of damage.
            end = data.rfind(b"\xff\xd9")
            rgb = simplejpeg.decode_jpeg(data[:end].rstrip(b"\0") + data[end:], "RGB")
        return rgb
    ink = 255 - simplejpeg.decode_jpeg(data, "CMYK")  # Adobe, and with it everyone, stores ink inverted
    return np.asarray(Image.frombytes("CMYK", image.size, ink.tobytes()).convert("RGB"))


def _pillow_rgb(image: Image.Image) -> Uint8Array:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow itself would clip at 255
        grey = np.asarray(image).astype(np.uint32)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
