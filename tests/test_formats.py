"""A picture is what its bytes say, decoded if its format is asked for, and any other file is named with the fix."""

import contextlib
import importlib
import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps, features
from test_images import photo, png, rgba, saved

from inpaint_data import PictureSettings
from inpaint_data.errors import SampleError, UsageError
from inpaint_data.pictures import formats
from inpaint_data.pictures.formats import DECODERS, DEFAULT_FORMATS, Decoding
from inpaint_data.pictures.images import decode_alpha, decode_image, decode_values, image_size
from inpaint_data.shards.reading import Sample, image_member

ALL = Decoding(tuple(DECODERS))


def heic(image: Image.Image) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=90)
    return file.getvalue()


def tiff(image: Image.Image, **options: object) -> bytes:
    return saved(image, "TIFF", **options)


AVIF = features.check("avif")  # Pillow before 11.3 has none
FILES = {
    **({"avif": lambda: saved(photo(), "AVIF", quality=90)} if AVIF else {}),
    **({"avif with alpha": lambda: saved(rgba(photo()), "AVIF")} if AVIF else {}),
    "bmp": lambda: saved(photo(), "BMP"),
    "bmp of a palette": lambda: saved(photo().quantize(16), "BMP"),
    "gif": lambda: saved(photo(), "GIF"),
    "animated gif": lambda: saved(photo(), "GIF", save_all=True, append_images=[photo().rotate(180)]),
    "tiff": lambda: tiff(photo()),
    "tiff, lzw": lambda: tiff(photo(), compression="tiff_lzw"),
    "tiff, jpeg": lambda: tiff(photo(), compression="jpeg"),
    "tiff, cmyk": lambda: tiff(photo().convert("CMYK")),
    "tiff, one bit": lambda: tiff(photo().convert("1"), compression="group4"),
    "tiff of pages": lambda: tiff(photo(), save_all=True, append_images=[photo(5, 6)]),
}


@pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Truncated)")
@pytest.mark.parametrize("name", FILES)
def test_every_format_has_the_first_pixels_that_pillow_shows(name: str) -> None:
    data = FILES[name]()
    pixels = decode_image(data)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
        alpha = np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
    assert np.array_equal(decode_alpha(data), alpha)
    assert image_size(data) == pixels.shape[:2]
    shown = 0
    for length in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 1]:
        with contextlib.suppress(SampleError):
            assert np.array_equal(decode_image(data[:length]), pixels)
            shown += 1
    assert shown < 3 or "animated" in name or "pages" in name  # but for a last byte, or later pictures


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_counts_in_every_format(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for data in (
        *([saved(photo(), "AVIF", exif=exif, quality=90)] if AVIF else []),
        tiff(photo(), tiffinfo={0x0112: orientation}),
        tiff(photo(), tiffinfo={0x0112: orientation}, compression="tiff_deflate"),
    ):
        with Image.open(io.BytesIO(data)) as image:
            expected = ImageOps.exif_transpose(image)
        assert np.array_equal(decode_image(data), np.asarray(expected))
        assert image_size(data) == expected.size[::-1]


def test_heic_needs_its_name_in_formats_and_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(photo(64, 96))
    with pytest.raises(
        SampleError, match=r"HEIC, which formats leaves out: add heic .* `pip install inpaint_data\[heic\]`"
    ):
        decode_image(data)
    pixels = decode_image(data, ALL)
    assert abs(pixels.astype(int) - np.asarray(photo(64, 96))).mean() < 6
    assert image_size(data, ALL) == (64, 96)
    assert "HEIF" not in Image.OPEN  # other people's Image.open is left as it is
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(SampleError, match=r"image is HEIC, which needs pip install inpaint_data\[heic\]"):
        image_size(data, ALL)


@pytest.mark.parametrize("name", [name for name in FILES if name in DECODERS])
def test_formats_decides_which_decoder_ever_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FILES[name]()
    used: list[str] = []
    real = importlib.import_module

    def watched(module: str) -> object:
        used.append(module)
        return real(module)

    monkeypatch.setattr(formats.importlib, "import_module", watched)
    for read in (decode_image, decode_alpha, decode_values, image_size):
        with pytest.raises(SampleError, match=rf"image is {name.upper()}, which formats leaves out: add {name} to it"):
            read(data, Decoding(("jpeg", "png")))
    assert used == []
    decode_image(data, Decoding((name,)))
    assert used == [DECODERS[name][0]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20), "JPEG 2000"),
        (b"8BPS\0\1", "Photoshop"),
        (b"<?xml version='1.0'?>\n<svg xmlns=''>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "XML, as a server sends"),
        (b'{"error": "gone"}', "JSON, as a server sends"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "a video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "QuickTime"),
        (b"\x1a\x45\xdf\xa3" + bytes(9), "Matroska"),
        (b"RIFF\x10\0\0\0AVI LIST", "AVI"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3"),
        (b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (b"IIU\0\x18\0\0\0", "RW2"),
        (b"IIRO\x08\0\0\0", "ORF"),
        (b"FUJIFILMCCD-RAW 0201", "RAF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"P6 4 4 255\n" + bytes(48), "PNM"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\0\x05\x16\x07" + bytes(30), "AppleDouble"),
    ],
)
def test_a_file_of_another_kind_is_named_with_the_fix(data: bytes, reason: str) -> None:
    for read in (decode_image, image_size):
        with pytest.raises(SampleError, match=reason) as caught:
            read(data)
        assert any(fix in str(caught.value) for fix in ("convert it", "download it again", "lfs pull"))
        assert "damaged" not in str(caught.value)


def sixteen_bits(order: str, photometric: int, bits: int = 16, sample_format: int = 1) -> bytes:
    """A TIFF of 1x4 pixels of one channel."""
    values = np.array([0, 128, 129, 65535])
    kinds = {(16, 1): "u2", (16, 2): "i2", (32, 1): "u4", (32, 3): "f4"}
    pixels = values.astype(order + kinds[bits, sample_format]).tobytes()
    tags = [
        (256, 4),
        (257, 1),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, len(pixels)),
    ]
    tags.append((339, sample_format))
    entries = b"".join(struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(pixels))
    return head + pixels + struct.pack(order + "H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_a_tiff_become_eight_as_those_of_a_png(order: str) -> None:
    assert decode_image(sixteen_bits(order, 1))[0, :, 0].tolist() == [0, 0, 1, 255]
    for data in (
        sixteen_bits(order, 0),  # white is zero, and Pillow does not turn it
        sixteen_bits(order, 1, 16, 2),
        sixteen_bits(order, 1, 32, 1),
        sixteen_bits(order, 1, 32, 3),
        tiff(Image.new("F", (4, 4), 0.5)),
    ):
        with pytest.raises(
            SampleError, match=r"nobody knows what is white; save it with 8|of a kind that is not decoded"
        ):
            decode_image(data)


def test_the_thumbnail_of_a_raw_file_is_not_its_picture() -> None:
    for tags in ({50706: b"\1\4\0\0"}, {254: 1}):
        data = tiff(photo(), tiffinfo=tags)
        for read in (decode_image, image_size):
            with pytest.raises(SampleError, match="raw file"):
                read(data)


def test_the_limit_of_pixels_is_a_setting_and_its_error_names_it() -> None:
    data = png((100, 200), 8, 0, bytes(100 * 201))
    assert decode_image(data, Decoding(max_pixels=20000)).shape == (100, 200, 3)
    with pytest.raises(SampleError, match="100x200, above max_pixels, 19999; raise it"):
        decode_image(data, Decoding(max_pixels=19999))
    assert PictureSettings().max_pixels == PictureSettings().decoding.max_pixels == 2**27 > 108 * 10**6


@pytest.mark.filterwarnings("error")
def test_an_image_of_108_megapixels_is_opened_without_a_warning() -> None:
    packed = saved(Image.new("1", (12000, 9000)), "PNG")
    assert image_size(packed) == (9000, 12000)


def test_settings_of_decoding_reach_the_decoder_and_are_checked() -> None:
    chosen = PictureSettings(formats=["tiff", "jpeg", "tiff"], max_pixels=7, icc="keep", strict=True)
    assert chosen.decoding == Decoding(("jpeg", "tiff"), 7, "keep", True)
    assert PictureSettings().formats == DEFAULT_FORMATS
    for bad, reason in (
        ("jpg", "'jpg' is unknown; choose from avif"),
        ([], "not a list of formats"),
        (3, "not a list"),
    ):
        with pytest.raises(UsageError, match=f"formats: .*{reason}"):
            PictureSettings(formats=bad)


@pytest.mark.parametrize("extension", ["avif", "bmp", "gif", "tif", "tiff", "heic", "heif"])
def test_an_image_may_have_the_name_of_its_format(extension: str) -> None:
    assert image_member(Sample("0.tar", "cat", {extension: b"", "txt": b""})) == extension
    assert image_member(Sample("0.tar", "cat", {extension: b"", "jpg": b""})) == "jpg"  # what is carried stays so
    with pytest.raises(SampleError, match="several images"):
        image_member(Sample("0.tar", "cat", {extension: b"", "jp2": b"", "bmp" if extension != "bmp" else "gif": b""}))
