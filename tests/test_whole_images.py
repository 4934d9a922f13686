"""A picture whose pixels are all there is decoded, whatever else is wrong with its file; one that lacks some is not."""

import contextlib
import io
import re
import zlib
from collections.abc import Callable, Iterator
from random import Random

import cv2
import numpy as np
import pytest
from PIL import Image
from test_images import FILES, chunk, odd_sampling_jpeg, photo, png, saved

from inpaint_data.errors import SampleError
from inpaint_data.pictures.formats import Decoding
from inpaint_data.pictures.images import decode_alpha, decode_image, image_size

STRICT = Decoding(strict=True)
SIZE = (150, 200)
JPEG = saved(photo(*SIZE), "JPEG", quality=90)
TABLES = JPEG.index(b"\xff\xdb")
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def with_segments(*segments: bytes, data: bytes = JPEG) -> bytes:
    return data[:20] + b"".join(segments) + data[20:]


def scan_limits(data: bytes, *limits: int) -> bytes:
    """The file with other spectral limits in its last scan's header, as Samsung's cameras write them."""
    at = data.rindex(b"\xff\xda")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[: end - 3] + bytes(limits) + data[end:]


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def restarts() -> tuple[bytes, list[int]]:
    """A JPEG with restart markers, and where they are."""
    data = saved(photo(*SIZE), "JPEG", quality=90, restart_marker_blocks=5)
    begin = data.rindex(b"\xff\xda")
    return data, [at for at in range(begin, len(data) - 2) if data[at] == 255 and 0xD0 <= data[at + 1] <= 0xD7]


def padded_restart() -> bytes:
    data, places = restarts()
    return data[: places[4]] + bytes(12) + data[places[4] :]


def multi_picture() -> bytes:
    return saved(photo(*SIZE), "MPO", save_all=True, append_images=[photo(30, 40)], quality=90)


TEXT = chunk(b"tEXt", b"Comment\0hello")
BROKEN_TEXT = TEXT[:-1] + bytes([TEXT[-1] ^ 1])
PNG = saved(photo(), "PNG")
IDAT = PNG.index(b"IDAT") - 4
PROFILE = chunk(b"iCCP", b"name\0\0" + zlib.compress(b"no profile"))

# Name -> the file, and whether `strict` refuses it.
DEFECTS: dict[str, tuple[Callable[[], bytes], bool]] = {
    "limits of a Samsung scan": (lambda: scan_limits(JPEG, 0, 0, 0), True),
    "other limits": (lambda: scan_limits(JPEG, 1, 5, 0), True),
    "bytes before a marker": (lambda: JPEG[:TABLES] + b"abc" + JPEG[TABLES:], True),
    "zeros before a marker": (lambda: JPEG[:TABLES] + bytes(300) + JPEG[TABLES:], True),
    "zeros before the end": (lambda: JPEG[:-2] + bytes(300) + JPEG[-2:], False),
    "zeros before a restart": (padded_restart, True),
    "fill bytes before the end": (lambda: JPEG[:-2] + b"\xff" * 20 + JPEG[-2:], False),
    "a restart too many": (lambda: JPEG[:-2] + b"\xff\xd3" + JPEG[-2:], False),
    "garbage behind the end": (lambda: JPEG + b"\xff\xd8\xff garbage \xff\xd9" + bytes(999), False),
    "a later JFIF": (lambda: changed(JPEG, 11, b"\7"), True),
    "two JFIF": (lambda: with_segments(JPEG[2:20]), False),
    "an Adobe of no kind beside a JFIF": (lambda: with_segments(ADOBE + b"\x09"), False),
    "an Adobe of no kind": (lambda: JPEG[:2] + ADOBE + b"\x09" + JPEG[20:], True),
    "an Adobe of ink in three colours": (lambda: JPEG[:2] + ADOBE + b"\x02" + JPEG[20:], True),
    "two Adobes": (lambda: JPEG[:2] + ADOBE + b"\x00" + ADOBE + b"\x07" + JPEG[20:], True),
    "a profile in pieces that do not fit": (
        lambda: with_segments(segment(0xE2, b"ICC_PROFILE\0\3\2" + b"x" * 40)),
        True,
    ),
    "an EXIF block of nonsense": (lambda: with_segments(segment(0xE1, b"Exif\0\0II*\0" + b"\xff" * 30)), False),
    "two pictures of a phone": (multi_picture, False),
    "bytes behind a PNG": (lambda: PNG + b"garbage", False),
    "a text with a wrong checksum": (lambda: PNG[:33] + BROKEN_TEXT + PNG[33:], True),
    "a text with a wrong checksum behind the pixels": (lambda: PNG[:-12] + BROKEN_TEXT + PNG[-12:], True),
    "a profile with a wrong checksum": (lambda: PNG[:33] + PROFILE[:-1] + b"\0" + PNG[33:], True),
    "a profile that is none": (lambda: PNG[:33] + PROFILE + PNG[33:], False),
    "no closing chunk": (lambda: PNG[:-12], True),
    "half a closing chunk": (lambda: PNG[:-5], True),
    "a closing chunk with a wrong checksum": (lambda: PNG[:-1] + b"\0", True),
    "half a text behind the pixels": (lambda: PNG[:-12] + TEXT[:15], True),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_beside_the_pixels_does_not_matter(name: str) -> None:
    make, strictly_refused = DEFECTS[name]
    data = make()
    whole = PNG if data.startswith(b"\x89PNG") else restarts()[0] if "restart" in name and "many" not in name else JPEG
    pixels = decode_image(data)
    assert np.array_equal(pixels, decode_image(whole))
    assert image_size(data) == image_size(data[: 2**16]) == pixels.shape[:2]
    assert decode_alpha(data) is None
    if whole is not PNG:
        for shown in (
            np.asarray(Image.open(io.BytesIO(data))),
            cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1],
        ):
            assert np.array_equal(pixels, shown)
    with pytest.raises(SampleError) if strictly_refused else contextlib.nullcontext():
        decode_image(data, STRICT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", [name for name in DEFECTS if name not in ("two pictures of a phone",)])
def test_a_defect_beside_the_pixels_does_not_hide_a_hole(name: str) -> None:
    data = DEFECTS[name][0]()
    kind = b"IDAT" if data.startswith(b"\x89PNG") else b"\xff\xda"
    begin = data.index(kind) + 200
    hole = data[:begin] + data[begin + 700 :]
    with pytest.raises(SampleError, match="damaged"):
        decode_image(hole)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_camera_s_defect_leaves_its_orientation_and_profile(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(*SIZE), "JPEG", exif=exif)
    begin = data.index(b"\xff\xdb")
    defect = scan_limits(data[:begin] + b"x" * 5 + data[begin:], 0, 0, 0)
    assert np.array_equal(decode_image(defect), decode_image(data))
    assert image_size(defect) == (SIZE if orientation == 1 else SIZE[::-1])


def test_a_png_keeps_what_is_transparent_or_is_refused() -> None:
    data = FILES["P with transparency"]()
    at = data.index(b"tRNS")
    with pytest.raises(SampleError, match="wrong checksum"):
        decode_alpha(changed(data, at + 4, b"\x55"))


def scans_of(data: bytes) -> list[int]:
    return [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]


def test_a_progressive_jpeg_without_its_last_scan_is_what_viewers_show_but_not_strictly() -> None:
    data = saved(photo(*SIZE), "JPEG", quality=90, progressive=True)
    scans = scans_of(data)
    for count in range(1, len(scans)):
        shorter = data[: scans[count]]
        shorter = shorter[: shorter.rindex(b"\xff\xc4")] if b"\xff\xc4" in shorter[scans[count - 1] :] else shorter
        ended = shorter + b"\xff\xd9"
        assert np.array_equal(decode_image(ended), np.asarray(Image.open(io.BytesIO(ended))))
        with pytest.raises(SampleError, match="last scans"):
            decode_image(ended, STRICT)
        with pytest.raises(SampleError, match="damaged"):
            decode_image(shorter)  # without the end it is plainly cut
    assert np.array_equal(decode_image(data, STRICT), decode_image(data))


def test_a_jpeg_whose_later_colours_have_no_scan_is_refused_though_every_viewer_shows_it_grey() -> None:
    data = saved(photo(*SIZE), "JPEG", progressive=True)
    first = scans_of(data)[0]
    # The same file that says that its first scan, of the means, was of one colour alone.
    one = data[:first] + segment(0xDA, b"\1\1\0\0\0\1") + b"\x00" * 8 + b"\xff\xd9"
    with pytest.raises(SampleError, match="2 of the JPEG's 3 colours have no data"):
        decode_image(one)


def arithmetic(seed: int) -> bytes | None:
    """A grey JPEG with arithmetic coding of that seed's bytes, as many as are needed; None where they are invalid."""
    head = FILES["grey jpeg"]()
    frame, scan = head.index(b"\xff\xc0"), head.index(b"\xff\xda")
    head = head[:frame] + b"\xff\xc9" + head[frame + 2 : scan + 10]
    noise = Random(seed).randbytes(4000).replace(b"\xff", b"\xfe")
    for length in range(20, len(noise), 10):
        data = head + noise[:length] + b"\xff\xd9"
        with contextlib.suppress(SampleError):
            decode_image(data)
            return data
    return None


def test_arithmetic_coding_is_decoded_and_many_of_its_cuts_are_told() -> None:
    data = next(filter(None, map(arithmetic, range(30))))
    assert np.array_equal(decode_image(data)[..., 0], np.asarray(Image.open(io.BytesIO(data))))
    pixels, told = data.index(b"\xff\xda") + 10, 0
    for end in range(pixels, len(data) - 2):
        shorter = data[:end] + data[-2:]
        Image.open(io.BytesIO(shorter)).load()  # viewers do not notice
        try:
            decode_image(shorter)
        except SampleError:
            told += 1
    assert told > (len(data) - 2 - pixels) / 3  # this code needs so few bytes that not all are missed


def test_a_chroma_sampling_without_a_name_is_decoded_and_its_cuts_are_refused() -> None:
    whole = odd_sampling_jpeg(64)
    assert np.array_equal(decode_image(whole), np.asarray(Image.open(io.BytesIO(whole))))
    assert np.array_equal(decode_image(whole), decode_image(whole, STRICT))
    for cut in (3, 6, 9):
        with pytest.raises(SampleError, match="damaged"):
            decode_image(whole[: -2 - cut] + whole[-2:])


@pytest.mark.parametrize(
    ("marker", "bits", "reason"),
    [
        (0xC0, 12, "12 bits a colour; save it with 8"),
        (0xC1, 12, "12 bits a colour"),
        (0xC3, 8, "lossless or hierarchical"),
        (0xC3, 16, "16 bits a colour"),
        (0xC5, 8, "lossless or hierarchical"),
    ],
)
def test_a_jpeg_that_nobody_decodes_is_named_by_its_kind(marker: int, bits: int, reason: str) -> None:
    at = JPEG.index(b"\xff\xc0")
    with pytest.raises(SampleError, match=reason):
        decode_image(changed(changed(JPEG, at + 4, bytes([bits])), at + 1, bytes([marker])))


@pytest.mark.parametrize("colour_type", [1, 5, 6, 7])
@pytest.mark.parametrize("depth", [0, 3, 6, 8])
def test_what_a_decoder_says_becomes_a_sentence(colour_type: int, depth: int) -> None:
    data, sentences = png((4, 4), depth, colour_type, bytes(80)), []
    for decoding in (Decoding(), STRICT):
        try:
            decode_image(data, decoding)
        except SampleError as error:
            sentences.append(str(error))
    assert all(re.fullmatch(r"image is damaged.*: .*\w+ .*\w+ .*\w+.*", sentence) for sentence in sentences), sentences


def damages(data: bytes, count: int) -> Iterator[bytes]:
    """The file with a cut, a hole, other bytes, or bytes too many or too few, each by its seed."""
    for seed in range(count):
        rng = Random(seed)
        at, length = rng.randrange(2, len(data)), rng.choice([1, 2, 16, 64, 512])
        after = data[at + length :]
        yield rng.choice(
            [
                data[:at],
                data[:at] + data[-2:],
                data[:at] + bytes(len(data) - at),
                data[:at] + after,
                data[:at] + bytes(length) + after,
                data[:at] + b"\xff" * length + after,
                data[:at] + rng.randbytes(length) + data[at:],
                data[:at] + rng.randbytes(length) + after,
            ]
        )


def outcome(data: bytes, decoding: Decoding) -> bytes | None:
    try:
        return decode_image(data, decoding).tobytes()
    except SampleError:
        return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["baseline", "restarts", "cmyk", "grey jpeg", "png", "RGBA"])
def test_no_damage_to_pixels_passes_that_strict_refuses(name: str) -> None:
    data = FILES[name]()
    whole = decode_image(data).tobytes()
    for damaged in damages(data, 300):
        lenient = outcome(damaged, Decoding())
        if lenient is not None and lenient != whole:
            assert lenient == outcome(damaged, STRICT)  # a change that no decoder can tell
            assert name not in ("png", "RGBA")
