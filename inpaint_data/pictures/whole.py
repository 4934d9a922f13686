"""What decoders pass over in a PNG or a WEBP: holes, a missing end, chunks of other pixels than were saved."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from inpaint_data.errors import SampleError

_CLOSING = b"\0\0\0\0IEND\xaeB`\x82"
# What a PNG can lose with its pixels, and which of them are transparent, as they were.
_WITHOUT_PIXELS = {
    b"bKGD", b"cHRM", b"cICP", b"eXIf", b"gAMA", b"hIST", b"iCCP", b"iTXt", b"pHYs", b"sBIT", b"sPLT", b"sRGB", b"tEXt",
    b"tIME", b"zTXt", b"IEND",
}  # fmt: skip
_PIECE = 2**16  # bytes unpacked from at a time
# Encoders end a WEBP's entropy-coded data within 8 bytes behind the last that a decoder reads.
_WEBP_SLACK = 12
_ALPHA = b"\x10\0\0\0"  # flags of a VP8X chunk


def check_png(data: bytes, strict: bool) -> bool:
    """Check the checksums of a PNG, and that there are as many bytes as its pixels need.

    Pillow opens a file whose pixels have a wrong checksum, and one without its closing chunk.

    Returns:
        False if something is broken or missing that no pixel depends on.

    Raises:
        SampleError: pixels are missing or changed; or, if `strict`, anything is.
    """
    missing = _png_scanline_bytes(data)
    inflate = zlib.decompressobj()
    whole, kind = True, b""
    for chunk in _png_chunks(data):
        kind, cut = chunk.kind, chunk.end > len(data)
        if cut and (strict or kind == b"IDAT"):
            raise SampleError(f"image is damaged: the PNG is cut short after {len(data)} bytes")
        if not chunk.whole and not cut and (strict or kind not in _WITHOUT_PIXELS):
            raise SampleError(f"image is damaged: PNG chunk {kind!r} at byte {chunk.start} has a wrong checksum")
        if kind == b"IDAT":
            missing -= _unpacked_bytes(inflate, data[chunk.start + 8 : chunk.end - 4], missing)
        whole = whole and chunk.whole
    if strict and kind != b"IEND":
        raise SampleError(f"image is damaged: the PNG is cut short after {len(data)} bytes")
    if missing > 0:
        raise SampleError(f"image is damaged: the PNG's pixels end {missing} bytes early")
    return whole and kind == b"IEND"


def without_broken_chunks(data: bytes) -> bytes:
    """A PNG, or the beginning of one, without the chunks that no pixel depends on and whose checksum is wrong.

    It has a closing chunk.
    """
    kept = [data[chunk.start : chunk.end] for chunk in _png_chunks(data) if chunk.whole or chunk.kind == b"IDAT"]
    return data[:8] + b"".join(kept) + _CLOSING


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a PNG, [start, end) in the file, whole if its checksum is right."""

    kind: bytes
    start: int
    end: int
    whole: bool


def _png_chunks(data: bytes) -> Iterator[_Chunk]:
    """The chunks up to the closing one; the last one ends behind the data where that is cut short."""
    at, kind, view = 8, b"", memoryview(data)
    while at < len(data) and kind != b"IEND":
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        whole = end <= len(data) and zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big")
        yield _Chunk(kind, at, end, whole)
        at = end


def _unpacked_bytes(inflate: "zlib._Decompress", packed: bytes, limit: int) -> int:
    """How many bytes, up to `limit`, come out of a piece of compressed data."""
    count = 0
    for start in range(0, len(packed), _PIECE):
        piece = packed[start : start + _PIECE]
        while piece and count < limit:
            count += len(inflate.decompress(piece, min(limit - count, 2**20)))
            piece = inflate.unconsumed_tail
    return count


def _png_scanline_bytes(data: bytes) -> int:
    """The length of a PNG's unpacked pixels: each row of each pass has one byte in front that names its filter."""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    depth, colour_type, interlaced = data[24], data[25], data[28]
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    passes = [(0, 0, 1, 1)]  # (first column, first row, column step, row step)
    if interlaced:  # Adam7
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def check_webp(data: bytes) -> None:
    """Check that a WEBP needs its data up to the end, as decoders do not: what lacks the last bytes must not decode.

    WEBP has no checksums, and a decoder that has lost its way stops wherever it has pixels enough. That is nearly never
    at the end of the data.

    Raises:
        SampleError: it is another image than was saved.
    """
    chunks = _webp_chunks(data, 12)
    if b"ANMF" in chunks:  # an animation: its first image counts
        chunks = _webp_chunks(chunks[b"ANMF"], 16)
    for kind in (b"VP8 ", b"VP8L"):
        if kind in chunks and _decodes({kind: chunks[kind][:-_WEBP_SLACK]}):
            raise SampleError("image is damaged: the data of the WEBP has a hole, or is cut short")
    if b"VP8 " in chunks and b"ALPH" in chunks:
        lossy = chunks[b"VP8 "]
        size = [(int.from_bytes(lossy[at : at + 2], "little") & 0x3FFF) - 1 for at in (6, 8)]
        canvas = _ALPHA + b"".join(max(0, side).to_bytes(3, "little") for side in size)
        if _decodes({b"VP8X": canvas, b"ALPH": chunks[b"ALPH"][:-_WEBP_SLACK], b"VP8 ": lossy}):
            raise SampleError("image is damaged: the alpha of the WEBP has a hole, or is cut short")


def _webp_chunks(data: bytes, at: int) -> dict[bytes, bytes]:
    """The content of the first chunk of each kind."""
    chunks: dict[bytes, bytes] = {}
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        chunks.setdefault(data[at : at + 4], data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return chunks


def _decodes(chunks: dict[bytes, bytes]) -> bool:
    """True if libwebp finds an image in a file of these chunks."""
    content = b"WEBP" + b"".join(_webp_chunk(kind, body) for kind, body in chunks.items())
    file = np.frombuffer(_webp_chunk(b"RIFF", content), np.uint8)
    return cv2.imdecode(file, cv2.IMREAD_UNCHANGED) is not None


def _webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2)
