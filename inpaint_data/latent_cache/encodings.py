"""Encodings: arrays, masks and records to the bytes of a cached member, and back.

Shapes: K masks of a sample, H W the image.
"""

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import CacheError, InpaintDataError
from inpaint_data.latent_cache.contents import Content
from inpaint_data.latent_cache.storage import storage_of
from inpaint_data.shown import shortened

_PBM_HEADER = re.compile(rb"P4\s+([0-9]{1,9})\s+([0-9]{1,9})\s")


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_npy(data: bytes) -> npt.NDArray[Any]:
    """The array in a .npy file, as a view into its bytes.

    Raises:
        CacheError: it is damaged, or not an array as caches have it.
    """
    with _only_cache_errors():
        start = _start_of_array(data)
        shape, dtype = _npy_header(data[:start])
        return np.frombuffer(data, dtype, offset=start).reshape(shape)


def npy_layout(content: Content) -> tuple[bytes, tuple[int, ...], np.dtype[Any]]:
    """The header of the first sample's .npy file, and the shape and the dtype that it says.

    Raises:
        CacheError: see `read_npy`.
    """
    with _only_cache_errors():
        first = _first_bytes(content, 128)  # NumPy writes as many, most often
        start = _start_of_array(first)
        head = first[:start] if start <= len(first) else _first_bytes(content, start)
        return head, *_npy_header(head)


def _first_bytes(content: Content, count: int) -> bytes:
    data = bytearray(min(content.sizes[0], count))
    content.into(0, 0, (data,))
    return bytes(data)


@contextmanager
def _only_cache_errors() -> Iterator[None]:
    """The header is parsed like Python, so that damage raises anything: TokenError, SyntaxError …"""
    try:
        yield
    except (InpaintDataError, OSError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {shortened(str(error))}"
        raise CacheError(f"not an array, or not laid out as the cache writes arrays ({reason})") from None


def _start_of_array(data: bytes) -> int:
    if data[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("it does not begin like one")
    return 10 + int.from_bytes(data[8:10], "little")


@lru_cache(64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype; kept, since the samples of a cache have only a few different headers."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or storage_of(dtype) is None or min(shape, default=0) < 0:
        raise ValueError(f"it has the shape {shape} of {dtype}")
    return shape, dtype


def pbm_bytes(masks: npt.NDArray[np.bool_]) -> bytes:
    """(K, H, W) bool, True = repaint -> a binary PBM of K masks stacked downwards, repaint white.

    In P4 a set bit is black, so the bits are the complement; rows are padded to whole bytes.
    """
    count, height, width = masks.shape
    header = f"P4\n{width} {count * height}\n".encode()
    return header + np.packbits(~masks.reshape(count * height, width), axis=1).tobytes()


def pbm_layout(content: Content) -> tuple[bytes, int, int]:
    """The header of the first sample's binary PBM, its width and its height.

    Raises:
        CacheError: it is damaged.
    """
    match = _PBM_HEADER.match(_first_bytes(content, 64))
    width, rows = map(int, match.groups()) if match else (0, 0)
    if match is None or not width or not rows:
        raise CacheError("mask.pbm: not a P4 file")
    return match[0], width, rows


def read_pbm(data: bytes, count: int, row: int | None = None) -> npt.NDArray[np.bool_]:
    """The (K, H, W) bool masks that `pbm_bytes` encoded, K = `count`; with `row` that one alone, (1, H, W).

    Raises:
        CacheError: it is damaged, or not of K masks.
    """
    header = _PBM_HEADER.match(data)
    width, rows = map(int, header.groups()) if header else (0, 0)
    packed = np.frombuffer(data, np.uint8, offset=header.end() if header else 0)
    if not width or not rows or rows % count or packed.size != rows * ((width + 7) // 8):
        raise CacheError(f"mask.pbm: not a P4 file of {count} masks")
    lines = packed.reshape(count, rows // count, -1)[slice(None) if row is None else slice(row, row + 1)]
    masks: npt.NDArray[np.bool_] = np.unpackbits(lines, axis=2, count=width) == 0
    return masks


def png_bytes(levels: npt.NDArray[np.uint8]) -> bytes:
    """(K, H, W) uint8, 255 = repaint -> a grey PNG of K masks stacked downwards."""
    from inpaint_data.pictures.images import encode_png  # soft masks alone need Pillow

    return encode_png(levels.reshape(-1, levels.shape[-1]))


def read_png(data: bytes, count: int) -> npt.NDArray[np.uint8]:
    """The (K, H, W) uint8 masks that `png_bytes` encoded, K = `count`.

    Raises:
        SampleError: not a PNG, damaged, or too large.
        CacheError: another kind of image, or not of K masks.
    """
    from inpaint_data.pictures.formats import Decoding
    from inpaint_data.pictures.images import decode_image  # as above

    # Bit depth and colour type in its header: 8 bits, grey.
    if data[:4] != b"\x89PNG" or data[24:26] != b"\x08\x00":
        raise CacheError("soft_mask.png: not a grey PNG of 8 bits")
    levels = decode_image(data, Decoding(formats=("png",), icc="keep"))[..., 0]
    if len(levels) % count:
        raise CacheError(f"soft_mask.png: its height is not that of {count} masks")
    return levels.reshape(count, -1, levels.shape[-1])


def picture_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 -> a PNG."""
    from inpaint_data.pictures.images import encode_png  # as above

    return encode_png(pixels)


def read_picture(data: bytes) -> npt.NDArray[np.uint8]:
    """The (H, W, 3) uint8 that `picture_bytes` encoded.

    Raises:
        SampleError: damaged, or too large.
        CacheError: not a PNG of colours.
    """
    from inpaint_data.pictures.formats import Decoding
    from inpaint_data.pictures.images import decode_image  # as above

    if data[:4] != b"\x89PNG" or data[24:26] != b"\x08\x02":
        raise CacheError("not a PNG of three colours of 8 bits")
    return decode_image(data, Decoding(formats=("png",), icc="keep"))


def json_bytes(value: Any) -> bytes:
    """The one way JSON is written here: sorted and compact, so that equal values are equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # A name that is not UTF-8 has lone surrogates, which JSON can escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"
