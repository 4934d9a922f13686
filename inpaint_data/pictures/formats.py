"""Which image files are decoded, and what any other file is by its first bytes."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from inpaint_data.errors import SampleError

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

# What begins a file of a kind that has one beginning. Those that are decoded, and those that people have instead.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0\x10\0\0\0CR", "a Canon raw file (CR2)"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"IIRO", "an Olympus raw file (ORF)"),
    (b"IIRS", "an Olympus raw file (ORF)"),
    (b"MMOR", "an Olympus raw file (ORF)"),
    (b"IIU\0", "a Panasonic raw file (RW2)"),
    (b"FUJIFILM", "a Fujifilm raw file (RAF)"),
    (b"FOVb", "a Sigma raw file (X3F)"),
    (b"\0MRM", "a Minolta raw file (MRW)"),
    (b"II\x1a\0\0\0HEAP", "a Canon raw file (CRW)"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?R", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
    (b"\0\x05\x16\x07", "what macOS keeps beside a file (AppleDouble)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the files with `git lfs pull`"),
)
_PORTABLE_MAP = re.compile(rb"P[1-7]\s")
_BRANDS = {  # of the container that MP4, HEIC and AVIF share
    b"avif": "avif", b"avis": "avif", b"crx ": "a Canon raw file (CR3)", b"qt  ": "a video (QuickTime)",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "heic"),
}  # fmt: skip
_DNG_VERSION, _SUBFILE = 0xC612, 0xFE  # tags of a TIFF
_REDUCED = 1  # bit of the subfile tag: a thumbnail of what stands elsewhere in the file


@dataclass(frozen=True)
class Decoding:
    """How image files are decoded, see `PictureSettings`."""

    formats: tuple[str, ...] = DEFAULT_FORMATS
    max_pixels: int = MAX_PIXELS
    icc: Literal["srgb", "keep"] = "srgb"
    strict: bool = False


def format_of(data: bytes, formats: tuple[str, ...]) -> str:
    """The format of an image file, one of `formats`, by its first bytes and never by a name.

    Raises:
        SampleError: it is of another kind, which the error names with the fix.
    """
    if not data:
        raise SampleError("image is empty, 0 bytes long")
    kind = _kind_of(data)
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


def _kind_of(data: bytes) -> str:
    """The name of a format that has a decoder, or what else the file is in words; "" where nobody knows."""
    if data[4:8] == b"ftyp":
        return _kind_of_container(data)
    if data[:4] == b"RIFF":
        return {b"AVI ": "a video (AVI)", b"WAVE": "sound (WAV)"}.get(data[8:12], "webp")
    for beginning, kind in _BEGINNINGS:
        if data.startswith(beginning):
            return kind
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "SVG"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, as a server sends in place of a picture; download it again"
    if start.startswith(b"<?xml"):
        return "XML, as a server sends in place of a picture; download it again"
    if start.startswith((b"{", b"[")):
        return "JSON, as a server sends in place of a picture; download it again"
    return "a portable map (PNM)" if _PORTABLE_MAP.match(data) else ""


def _kind_of_container(data: bytes) -> str:
    """By its brands: the main one, then those that it is compatible with, of which one names what is inside."""
    box = data[8 : min(max(16, int.from_bytes(data[:4], "big")), 256)]
    brands = [box[:4], *(box[at : at + 4] for at in range(8, len(box), 4))]
    kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    return "avif" if "avif" in kinds else kinds[0] if kinds else "a video (MP4)"
