"""JPEG files: all that was saved of their pixels, or an error.

Whole is decided by what libjpeg decodes, which as `strict` here stops at its first complaint: data that ends too early,
a code that there is not, bytes that nothing needs. Some complaints have nothing to do with pixels, so a file that has
any is built again without what pixels do not depend on, and has to decode without one then.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import simplejpeg

from inpaint_data.errors import SampleError, UsageError
from inpaint_data.pictures.formats import DEFAULT, Decoding

Uint8Array = npt.NDArray[np.uint8]
MAX_SCANS = 100  # of a JPEG; libjpeg's own progressive ones have 10
# All that begin a segment or end the image: not stuffed bytes, restarts and others that stand alone.
_MARKER = re.compile(rb"\xff([^\xff\x00\x01\xd0-\xd8])", re.DOTALL)
# Zeros before a marker, not the one that makes a byte of FF data.
_PADDING = re.compile(rb"(?<!\xff)\x00+(?=\xff+[^\xff\x00]|\Z)", re.DOTALL)
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL, _PROGRESSIVE, _ARITHMETIC = {0xC0, 0xC1, 0xC9}, {0xC2, 0xCA}, {0xC9, 0xCA}
_TURNED_OR_COLOURED = {0xE1, 0xE2}  # segments with EXIF, XMP and profiles
_JFIF, _ADOBE, _SCAN, _END, _NONE = 0xE0, 0xEE, 0xDA, 0xD9, 0
_WITHOUT_PIXELS = {*range(0xE0, 0xF0), 0xFE, 0xDC}  # EXIF, profiles, comments and the like
_MORE = 16  # bytes that are put behind pixels, to see whether they need them


def check_jpeg(data: bytes, strict: bool) -> set[int]:
    """Check what decoders pass over: colours without data, and so many scans that they take minutes.

    A progressive JPEG may end before its last bits are sent, which its standard allows; every block of it has data.

    Returns:
        the markers of its segments, up to the first scan at least.

    Raises:
        SampleError: a colour has no data, it has more than MAX_SCANS, its kind has no decoder; or, if `strict`, a
            progressive one ends early.
    """
    frame, colours, scans = 0, 0, 0
    missing: dict[int, set[int]] = {}  # colour -> coefficients whose last bit was not sent
    begun: set[int] = set()  # colours that have the means of their blocks
    markers: set[int] = set()
    for marker, start, end in _segments(data):
        markers.add(marker)
        if marker in _FRAMES:
            frame, colours = marker, data[start + 9]
            if data[start + 4] != 8:
                raise SampleError(f"image is a JPEG of {data[start + 4]} bits a colour; save it with 8")
            if frame not in _SEQUENTIAL | _PROGRESSIVE:
                raise SampleError("image is a lossless or hierarchical JPEG; save it as a usual one")
            missing = {colour: set(range(64)) for colour in data[start + 10 : start + 10 + 3 * colours : 3]}
        elif marker == _SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise SampleError(f"image is a JPEG of more than {MAX_SCANS} scans; save it again")
            count = data[start + 4]
            if frame in _SEQUENTIAL and count >= colours:  # nearly always, and no more scans follow
                missing.clear()
                break
            first, last, bits = data[end - 3 : end]
            for colour in missing.keys() & set(data[start + 5 : start + 5 + 2 * count : 2]):
                if first == 0 or frame in _SEQUENTIAL:
                    begun.add(colour)
                if frame in _SEQUENTIAL:
                    missing[colour].clear()
                elif bits & 15 == 0:
                    missing[colour].difference_update(range(first, last + 1))
    if scans and (without := [colour for colour, left in missing.items() if left and colour not in begun]):
        raise SampleError(f"image is damaged: {len(without)} of the JPEG's {colours} colours have no data")
    if scans and strict and any(missing.values()):
        raise SampleError("image is damaged: the last scans of the progressive JPEG are missing, so it is blurred")
    if frame in _ARITHMETIC:
        _check_arithmetic(data)
    return markers


def _check_arithmetic(data: bytes) -> None:
    """Check that no scan needs many more bytes than it has; with an arithmetic code libjpeg takes zeros for them."""
    scans = sum(marker == _SCAN for marker, _, _ in _segments(data))
    for scan in range(scans):
        try:
            _decoded(without_defects(data, more=(scan, bytes(_MORE))))
        except ValueError:  # it complains of bytes that nothing needs
            continue
        raise SampleError("image is damaged: the data of the JPEG ends too early")


def bare_jpeg_pixels(data: bytes, decoding: Decoding) -> Uint8Array | None:
    """The pixels of a JPEG as `jpeg_pixels` gives them, if it needs no other look at its header.

    None of one that may be turned or have a profile, is larger than its `max_pixels`, or that libjpeg complains of.

    Raises:
        SampleError: as `check_jpeg`.
    """
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if height * width > decoding.max_pixels or check_jpeg(data, decoding.strict) & _TURNED_OR_COLOURED:
            return None
        return _decoded(data, decoding)
    except UsageError:  # of the GPU, and not of the file
        raise
    except (ValueError, IndexError):
        return None


def jpeg_pixels(data: bytes, decoding: Decoding) -> Uint8Array | None:
    """(H, W, 3) red, green and blue, or (H, W, 4) ink, 255 = full; None where only Pillow knows its chroma sampling.

    With `decoding.reduced` the sides are as many times shorter, rounded up; all of the data is read and checked.

    Raises:
        ValueError: not all of its pixels are there.
    """
    try:
        return _decoded(data, decoding)
    except UsageError:  # as above
        raise
    except ValueError as error:
        complaint = error
    plain = without_defects(data)
    try:
        simplejpeg.decode_jpeg_header(plain)
    except ValueError:
        return None
    for other in [_unpadded(data)] if decoding.strict else [plain, without_defects(data, padding=False)]:
        try:
            return _decoded(other, decoding)
        except ValueError:
            continue
    raise complaint


def _decoded(data: bytes, decoding: Decoding = DEFAULT) -> Uint8Array:
    reduced = decoding.reduced
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    least = {"min_height": -(-height // reduced), "min_width": -(-width // reduced)} if reduced > 1 else {}
    if colours in ("CMYK", "YCCK"):
        # Adobe, and with it everyone, stores ink inverted.
        ink: Uint8Array = 255 - simplejpeg.decode_jpeg(data, "CMYK", min_factor=reduced, **least)
        return ink
    if decoding.decoder == "nvjpeg" and reduced == 1:
        from inpaint_data.pictures.gpu_jpeg import decoded_on_gpu  # few have it

        # libjpeg reads all of the data and makes an eighth of the pixels, and so complains as it does of whole ones.
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
        return decoded_on_gpu(data)
    pixels: Uint8Array = simplejpeg.decode_jpeg(data, "RGB", min_factor=reduced, **least)
    return pixels


def _unpadded(data: bytes) -> bytes:
    """The file without zeros before its end: some cameras put them there."""
    end = data.rfind(b"\xff\xd9")
    return data[:end].rstrip(b"\0") + data[end:]


def with_more(data: bytes) -> bytes:
    """The file with more behind its pixels: it changes none, unless some are missing."""
    return without_defects(data, more=(0, b"\x5a" * _MORE))


def without_defects(data: bytes, padding: bool = True, more: tuple[int, bytes] = (0, b"")) -> bytes:
    """The file built again of the segments that its pixels depend on.

    Bytes that follow a segment go or stay with it: behind a table they may be the rest of it, moved by a damage.
    Which colours they are is said by a JFIF or an Adobe segment; in the new file by a plain one, read as libjpeg
    reads it. The limits in a scan's header mean something in progressive JPEGs alone, and some cameras write others
    there.

    Args:
        data: a JPEG, or the beginning of one.
        padding: whether zeros before the markers within the pixels stay.
        more: the number of a scan, and what is put behind its pixels.
    """
    parts: list[bytes] = []
    jfif, adobe, sequential, colours, scan = False, None, False, 0, 0
    segments = [*_segments(data), (_NONE, len(data), len(data))]
    for (marker, start, end), (_, following, _) in pairwise(segments):
        if marker == _JFIF:
            jfif = jfif or (end - start >= 16 and data[start + 4 : start + 9] == b"JFIF\0")
        elif marker == _ADOBE and end - start >= 16 and data[start + 4 : start + 9] == b"Adobe":
            adobe = data[start + 15]
        elif marker in _FRAMES:
            sequential, colours = marker in _SEQUENTIAL, data[start + 9]
            parts.append(data[start:end])
        elif marker == _SCAN:
            pixels = data[end:following]
            unused = sequential and data[end - 1] == 0 and max(data[end - 3 : end]) < 64
            parts.append(data[start : end - 3] + b"\0\x3f\0" if unused else data[start:end])
            parts.append(pixels if padding else _PADDING.sub(b"", pixels))
            parts.append(more[1] if scan == more[0] else b"")
            scan += 1
            continue
        elif marker not in _WITHOUT_PIXELS:
            parts.append(data[start:end])
        if marker not in _WITHOUT_PIXELS:
            parts.append(data[end:following])
    marks = [b"\xff\xd8"]
    if jfif:
        marks.append(b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0")
    if adobe is not None:
        usual = 2 if colours == 4 else 1
        marks.append(b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([adobe if adobe in (0, usual) else usual]))
    return b"".join(marks + parts)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment, to the end of the image. A scan's pixels follow its end."""
    at = 2
    while match := _MARKER.search(data, at):
        marker, start = match[1][0], match.end() - 2
        at = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4], "big")) if marker != _END else start + 2
        yield marker, start, at
        if marker == _END:
            return
