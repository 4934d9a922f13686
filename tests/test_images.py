"""An image file becomes the right pixels, or an error with its reason: never half a picture."""

import contextlib
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from inpaint_data.demo import PHOTOS
from inpaint_data.errors import SampleError
from inpaint_data.pictures.formats import DEFAULT, Decoding
from inpaint_data.pictures.images import decode_alpha, decode_image, encode_png, image_size
from inpaint_data.pictures.mask_files import repainted
from inpaint_data.pictures.whole import check_png

PHOTO = PHOTOS / "coffee.jpg"


def decode_mask(data: bytes, decoding: Decoding = DEFAULT) -> np.ndarray:
    return repainted(data, "light", decoding) > 127


def photo(height: int = 37, width: int = 49) -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB").resize((width, height))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    size: tuple[int, int], depth: int, colour_type: int, rows: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG chunk by chunk; `rows` with the filter byte in front of each, size (height, width)."""
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), before, chunk(b"IDAT", zlib.compress(rows)), after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def odd_sampling_jpeg(side: int = 16) -> bytes:
    """Middle grey, sampled 2x1, 2x1, 1x2: TurboJPEG has no name for it. Equal blocks fit any order."""
    data = bytearray(saved(Image.new("RGB", (side, side), (128, 128, 128)), "JPEG", subsampling=2))
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for component, sampling in enumerate((0x21, 0x21, 0x12)):
        data[frame + 11 + 3 * component] = sampling
    data[scan + 8] = 0x00  # the second component takes the first one's code tables
    return bytes(data)


def rgba(image: Image.Image) -> Image.Image:
    ramp = Image.fromarray(np.arange(image.width * image.height, dtype=np.uint8).reshape(image.height, image.width))
    image = image.convert("RGBA")
    image.putalpha(ramp)
    return image


FILES: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: saved(photo(), "JPEG"),
    "progressive": lambda: saved(photo(), "JPEG", progressive=True),
    "4:4:4": lambda: saved(photo(), "JPEG", subsampling=0),
    "grey jpeg": lambda: saved(photo().convert("L"), "JPEG"),
    "cmyk": lambda: saved(photo().convert("CMYK"), "JPEG"),
    "rgb jpeg": lambda: saved(photo(), "JPEG", keep_rgb=True),
    "restarts": lambda: saved(photo(), "JPEG", restart_marker_blocks=1),
    "odd sampling": odd_sampling_jpeg,
    "png": lambda: saved(photo(), "PNG"),
    "L": lambda: saved(photo().convert("L"), "PNG"),
    "LA": lambda: saved(rgba(photo()).convert("LA"), "PNG"),
    "1": lambda: saved(photo().convert("1"), "PNG"),
    "P": lambda: saved(photo().quantize(7), "PNG"),
    "P with transparency": lambda: saved(photo().quantize(7), "PNG", transparency=3),
    "RGBA": lambda: saved(rgba(photo()), "PNG"),
    "webp": lambda: saved(photo(), "WEBP"),
    "webp lossless": lambda: saved(photo(), "WEBP", lossless=True),
    "webp alpha": lambda: saved(rgba(photo()), "WEBP", lossless=True),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_has_the_pixels_that_pillow_shows(name: str) -> None:
    data = FILES[name]()
    pixels = decode_image(data)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert image_size(data) == pixels.shape[:2]


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_byte_is_refused(name: str, lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = FILES[name]()
    pixels_end = data.index(b"IEND") - 4 if data.startswith(b"\x89PNG") else len(data)
    for length in range(len(data)):
        if length >= pixels_end:  # a PNG has its pixels without its closing chunk
            assert np.array_equal(decode_image(data[:length]), decode_image(data))
        with pytest.raises(SampleError) as caught:
            decode_image(data[:length], Decoding(strict=length >= pixels_end))
        assert "\n" not in str(caught.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@pytest.mark.parametrize("name", ["baseline", "progressive", "grey jpeg", "cmyk", "restarts"])
def test_a_jpeg_with_its_middle_cut_out_is_refused_though_pillow_shows_it(name: str) -> None:
    data = FILES[name]()
    holed = data[:-40] + data[-2:]
    with Image.open(io.BytesIO(holed)) as image:
        image.load()
    with pytest.raises(SampleError, match="damaged"):
        decode_image(holed)


def test_bytes_after_the_end_of_a_file_do_not_matter() -> None:
    for name in ("baseline", "png"):
        assert np.array_equal(decode_image(FILES[name]() + b"trailing"), decode_image(FILES[name]()))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["png", "P", "RGBA", "1"]), st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_in_a_png_is_found(name: str, at: int, flip: int) -> None:
    data = bytearray(FILES[name]())
    data[at % len(data)] ^= flip
    with pytest.raises(SampleError):
        decode_image(bytes(data), Decoding(strict=True))
    with contextlib.suppress(SampleError):
        assert np.array_equal(decode_image(bytes(data)), decode_image(FILES[name]()))
        assert np.array_equal(decode_alpha(bytes(data)), decode_alpha(FILES[name]()))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_damage_is_a_sample_error_and_no_other(name: str, draw: st.DataObject) -> None:
    data = bytearray(FILES[name]())
    for _ in range(draw.draw(st.integers(1, 5))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    for read in (decode_image, decode_alpha, decode_mask, image_size):
        with contextlib.suppress(SampleError):
            read(bytes(data))


def test_a_png_whose_pixels_end_early_is_refused_though_every_checksum_holds() -> None:
    with pytest.raises(SampleError, match="end 10 bytes early"):
        decode_image(png((4, 4), 8, 0, b"\0\x10\x10\x10\x10" * 2))


def test_an_interlaced_png_counts_its_passes() -> None:
    for height, width in ((1, 1), (3, 5), (8, 8), (9, 17)):
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
        sizes = []
        for left, top, across, down in (
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ):
            sizes.append((len(range(top, height, down)), len(range(left, width, across))))
        rows = b"".join((b"\0" + b"\x55" * w) * h for h, w in sizes if h and w)
        for cut in (0, 1):
            body = zlib.compress(rows[: len(rows) - cut])
            data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
            if cut:
                with pytest.raises(SampleError, match="early"):
                    decode_image(data)
            else:
                assert np.array_equal(decode_image(data), np.full((height, width, 3), 0x55))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_turns_image_alpha_mask_and_size_alike(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo() if kind == "JPEG" else rgba(photo())
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(image, kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image)
    assert np.array_equal(decode_image(data), np.asarray(expected.convert("RGB")))
    assert np.array_equal(decode_mask(data), np.asarray(expected.convert("RGB").convert("L")) > 127)
    assert image_size(data) == expected.size[::-1]
    alpha = decode_alpha(data)
    if kind == "JPEG":
        assert alpha is None
    else:
        assert np.array_equal(alpha, np.asarray(expected.getchannel("A")))


def test_orientation_after_the_pixels_of_a_png_counts_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png((1, 2), 8, 0, b"\0\x01\x02", after=chunk(b"eXIf", exif.tobytes()[6:]))
    assert image_size(data) == (2, 1)
    assert decode_image(data)[:, 0, 0].tolist() == [1, 2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_unreadable_exif_block_leaves_the_picture_as_it_is() -> None:
    data = saved(photo(), "JPEG", exif=b"Exif\0\0MM\0\x2a\0\0\xff\xff")
    assert decode_image(data).shape == (37, 49, 3)


def test_a_transparent_pixel_keeps_its_colour() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[...] = (10, 20, 30, 0)
    data = saved(Image.fromarray(pixels), "PNG")
    assert (decode_image(data) == (10, 20, 30)).all()
    assert not decode_alpha(data).any()


def test_sixteen_bits_become_eight_by_rounding_and_are_never_clipped() -> None:
    values = np.array([0, 128, 129, 255, 256, 32767, 32768, 65406, 65407, 65535])
    data = png((1, 10), 16, 0, b"\0" + values.astype(">u2").tobytes())
    assert decode_image(data)[0, :, 0].tolist() == np.round(values / 257).astype(int).tolist()
    assert decode_mask(data)[0].tolist() == (values / 65535 > 0.5).tolist()
    colour = png((1, 2), 16, 2, b"\0" + struct.pack(">6H", 32768, 32768, 32768, 32767, 32767, 32767))
    assert decode_mask(colour)[0].tolist() == [True, False]


def test_alpha_of_files_that_have_a_transparent_colour() -> None:
    grey = png((1, 3), 16, 0, b"\0" + struct.pack(">3H", 1, 300, 301), before=chunk(b"tRNS", struct.pack(">H", 300)))
    assert decode_alpha(grey).tolist() == [[255, 0, 255]]
    palette = FILES["P with transparency"]()
    with Image.open(io.BytesIO(palette)) as image:
        assert np.array_equal(decode_alpha(palette), np.where(np.asarray(image) == 3, 0, 255))
    assert decode_alpha(FILES["png"]()) is None
    colour = png((1, 1), 16, 2, b"\0" + bytes(6), before=chunk(b"tRNS", bytes(6)))
    with pytest.raises(SampleError, match="alpha channel"):
        decode_alpha(colour)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_white_is_repaint_in_every_mode_and_the_middle_is_not(mode: str, kind: str) -> None:
    levels = [0, 255] if mode == "1" else [0, 127, 128, 255]
    image = Image.fromarray(np.array([levels], np.uint8)).convert(mode)
    if mode.endswith("A"):
        image.putalpha(0)  # its alpha is not the mask
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert decode_mask(saved(image, kind, **options))[0].tolist() == [level > 127 for level in levels]


def test_a_bomb_is_refused_by_its_header_before_anything_is_unpacked() -> None:
    header = struct.pack(">IIBBBBB", 20000, 5000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    for read in (decode_image, decode_alpha, decode_mask, image_size):
        with pytest.raises(SampleError, match="5000x20000, above max_pixels, 99999999; raise it"):
            read(data, Decoding(max_pixels=10**8 - 1))
    huge = data.replace(header, struct.pack(">IIBBBBB", 2**30, 2**30, 8, 0, 0, 0, 0))
    with pytest.raises(SampleError):
        image_size(huge)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x12nonsense" + bytes(40), "none of AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP, 49 bytes long"),
        (b"GIF89a" + bytes(40), "damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
    ],
)
def test_what_is_no_image_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    for read in (decode_image, decode_alpha, decode_mask, image_size):
        with pytest.raises(SampleError, match=reason):
            read(data)


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7), (1, 1)])
def test_png_round_trips_and_has_the_same_bytes_every_time(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = encode_png(pixels)
    assert data == encode_png(np.asfortranarray(pixels))
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_encode_png_names_the_array_it_cannot_write() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 4\) uint8"):
        encode_png(np.zeros((2, 2, 4), np.uint8))


def test_threads_decode_strictly_together_and_leave_pillows_switch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = FILES["webp"]()
    refused = []

    def decode_often() -> None:
        for _ in range(50):
            decode_image(data)
            try:
                decode_image(data[:-20])
            except SampleError:
                refused.append(1)

    threads = [threading.Thread(target=decode_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 200
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_jpeg_padded_with_zeros_before_its_end_is_whole(photo_bytes: dict[str, bytes]) -> None:
    cat = photo_bytes["cat"]
    assert np.array_equal(decode_image(cat[:-2] + bytes(7) + cat[-2:]), decode_image(cat))
    with pytest.raises(SampleError):
        decode_image(cat[:-2] + b"\x01\x02\x03" + cat[-2:])


def test_a_jpeg_of_a_thousand_scans_is_refused_before_it_takes_minutes() -> None:
    data = FILES["progressive"]()
    table = b"\xff\xc4\0\x14\x10\x01" + bytes(15) + b"\0"  # one code: the block ends here
    header = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0"  # all but the mean, of the first component
    scan = table + header + b"\0\0\0\0\x1f"  # 35 blocks
    assert np.array_equal(decode_image(data[:-2] + scan * 50 + data[-2:]), decode_image(data))
    for between in (b"", b"\xff\x01", b"\xff\xd0\xff\xff"):
        with pytest.raises(SampleError, match="100 scans"):
            decode_image(data[:-2] + (between + scan) * 1000 + data[-2:])


def test_a_thumbnail_in_a_jpeg_does_not_count_as_its_scans() -> None:
    data = FILES["progressive"]()
    thumbnails = b"".join(b"\xff\xe1\xff\xff" + (b"\xff\xda" * 2**15)[:65533] for _ in range(3))
    assert np.array_equal(decode_image(data[:2] + thumbnails + data[2:]), decode_image(data))


def test_checking_a_png_takes_time_in_proportion_to_its_size() -> None:
    def seconds(side: int) -> float:
        packed = zlib.compress(bytes(side * (side + 1)), 0)
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
        times = []
        for _ in range(3):
            started = time.perf_counter()
            check_png(data, False)
            times.append(time.perf_counter() - started)
        return min(times)

    assert seconds(8192) < 10 * seconds(4096)  # four times as many bytes


def webp_damages(data: bytes, seed: int) -> Iterator[bytes]:
    """The file with 4 KiB zeroed, and padded with zeros behind a cut, somewhere within its pixels."""
    rng = np.random.default_rng(seed)
    at = int(rng.integers(40, len(data) - 64))
    yield (data[:at] + bytes(4096))[: len(data)] + data[at + 4096 :]
    yield data[:at] + bytes(len(data) - at)


def test_a_webp_with_a_hole_or_padded_behind_a_cut_is_refused(photo_bytes: dict[str, bytes]) -> None:
    told = {False: 0, True: 0}
    damaged = {False: 0, True: 0}
    for seed in range(5):
        for photograph in photo_bytes.values():
            with Image.open(io.BytesIO(photograph)) as image:
                small = image.convert("RGB").resize((160, 120))
            for lossless in told:
                data = saved(small, "WEBP", lossless=lossless, quality=80, method=2)
                for other in webp_damages(data, seed):
                    damaged[lossless] += 1
                    try:
                        decode_image(other)
                    except SampleError:
                        told[lossless] += 1
    assert told[False] == damaged[False]
    assert told[True] > 0.95 * damaged[True]  # a hole may end in step with the data, in a code without a clock


@pytest.mark.parametrize("alpha", [None, "flat", "ramp"])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"quality": 1, "method": 6}, {"quality": 100}])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (16, 16), (321, 200)])
def test_whole_webps_of_all_kinds_have_the_pixels_that_pillow_shows(
    size: tuple[int, int], options: dict[str, object], alpha: str | None
) -> None:
    image = photo(*size)
    if alpha:
        image = rgba(image)
        if alpha == "flat":
            image.putalpha(77)
    for data in (
        saved(image, "WEBP", **options),
        saved(image, "WEBP", save_all=True, append_images=[image], **options),
    ):
        with Image.open(io.BytesIO(data)) as shown:
            assert np.array_equal(decode_image(data), np.asarray(shown.convert("RGB")))
            if alpha:
                assert np.array_equal(decode_alpha(data), np.asarray(shown.convert("RGBA").getchannel("A")))


def test_the_alpha_of_a_webp_is_checked_too() -> None:
    image = photo(120, 160)
    image.putalpha(photo(120, 160).rotate(180).convert("L"))
    data = saved(image, "WEBP")
    at = data.index(b"ALPH") + 8
    end = at + int.from_bytes(data[at - 4 : at], "little")
    with pytest.raises(SampleError, match="alpha"):
        decode_alpha(data[: end - 2000] + bytes(2000) + data[end:])
