"""Which image files are decoded, and what any other file is by its first bytes."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from inpaint_data.errors import SampleError
from inpaint_data.kinds import kind_of

# The decoder of each format: Pillow's own class, asked for by name, so that no other one ever sees the bytes.
DECODERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "avif": ("PIL.AvifImagePlugin", "AvifImageFile"),
        "bmp": ("PIL.BmpImagePlugin", "BmpImageFile"),
        "gif": ("PIL.GifImagePlugin", "GifImageFile"),
        "heic": ("pillow_heif", "HeifImageFile"),
        "jpeg": ("PIL.JpegImagePlugin", "JpegImageFile"),
        "png": ("PIL.PngImagePlugin", "PngImageFile"),
        "tiff": ("PIL.TiffImagePlugin", "TiffImageFile"),
        "webp": ("PIL.WebPImagePlugin", "WebPImageFile"),
    }
)
_MISSING = {"avif": "Pillow 11.3 or newer", "heic": "pip install inpaint_data[heic]"}
DEFAULT_FORMATS = tuple(name for name in DECODERS if name != "heic")  # which needs an extra
MAX_PIXELS = 2**27  # 134 megapixels, 384 MiB of RGB: what phones and cameras take, and no bomb

Decoder = Literal["libjpeg", "nvjpeg"]
_DNG_VERSION, _SUBFILE = 0xC612, 0xFE  # tags of a TIFF
_REDUCED = 1  # bit of the subfile tag: a thumbnail of what stands elsewhere in the file


@dataclass(frozen=True)
class Decoding:
    """How image files are decoded, see `PictureSettings`.

    Attributes:
        reduced: 2, 4 or 8 decodes a JPEG at a half, a quarter or an eighth, sides rounded up; other formats are whole.
        decoder: of JPEGs that are whole and not ink.
    """

    formats: tuple[str, ...] = DEFAULT_FORMATS
    max_pixels: int = MAX_PIXELS
    icc: Literal["srgb", "keep"] = "srgb"
    strict: bool = False
    reduced: int = 1
    decoder: Decoder = "libjpeg"


DEFAULT = Decoding()


def format_of(data: bytes, formats: tuple[str, ...]) -> str:
    """The format of an image file, one of `formats`, by its first bytes and never by a name.

    Raises:
        SampleError: it is of another kind, which the error names with the fix.
    """
    if not data:
        raise SampleError("image is empty, 0 bytes long")
    kind = kind_of(data)
    if kind in formats:
        return kind
    if kind in DECODERS:
        extra = f", and install it with `{_MISSING[kind]}`" if kind == "heic" else ""
        raise SampleError(f"image is {kind.upper()}, which formats leaves out: add {kind} to it{extra}, or convert it")
    accepted = ", ".join(name.upper() for name in formats)
    if not kind:
        raise SampleError(f"image is none of {accepted}, {len(data)} bytes long; convert it, or leave it out")
    fix = "" if ";" in kind else "; convert it, or leave it out"
    raise SampleError(f"image is {kind}, none of {accepted}{fix}")


def decoder_of(kind: str) -> Any:
    """The class that opens image files of a format.

    Raises:
        SampleError: it is not installed.
    """
    module, name = DECODERS[kind]
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SampleError(f"image is {kind.upper()}, which needs {_MISSING.get(kind, 'another Pillow')}") from error


def refuse_raw(tags: Mapping[int, Any]) -> None:
    """Raise SampleError where a TIFF is a camera's raw file, whose first page is but a thumbnail."""
    if _DNG_VERSION in tags or tags.get(_SUBFILE, 0) & _REDUCED:
        raise SampleError("image is a camera's raw file (DNG, NEF, ARW …) with a thumbnail in front; develop it first")
