"""Colours are those that a colour-managed viewer shows; what is sRGB already stays as it is, to the last bit."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import write_shard
from flat import cache_latents
from PIL import Image, ImageCms
from test_images import chunk, photo, png, saved

from inpaint_data import Autoencoder, LatentCache, PictureSettings
from inpaint_data.pictures.formats import Decoding
from inpaint_data.pictures.images import decode_image
from inpaint_data.pictures.mask_files import repainted

KEEP = Decoding(icc="keep")
SRGB = ImageCms.createProfile("sRGB")
D50 = (0.9642, 1.0, 0.8249)
PRIMARIES = {
    "sRGB": ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)),
    "Display P3": ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),
    "Adobe RGB": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
    "ProPhoto RGB": ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)),
}


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def srgb_table() -> bytes:
    """The curve of sRGB in 1024 steps, as the oldest of its profiles has it."""
    steps = np.arange(1024) / 1023
    linear = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + np.round(linear * 65535).astype(">u2").tobytes()


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", between: bytes = b"XYZ ") -> bytes:
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    entries = {b"desc": text, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz(D50), **tags}
    at = 128 + 4 + 12 * len(entries)
    table, body = struct.pack(">I", len(entries)), b""
    for name, data in entries.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02100000, kind, space, between)
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(fixed, D50))
    return head.ljust(128, b"\0") + table + body


def matrix(name: str, curve: bytes) -> bytes:
    colours = zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, PRIMARIES[name]), strict=True)
    return profile(b"RGB ", dict(colours) | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def ink_profile() -> bytes:
    """CMYK by a table of 2x2x2x2 colours in Lab: cyan is blue, and black is black."""
    lab = [
        [
            round(255 * (1 - 0.3 * c - 0.4 * m - 0.1 * y) * (1 - k)),
            128 - 60 * c + 70 * m * (1 - k),
            128 - 50 * c + 60 * y,
        ]
        for c in (0, 1)
        for m in (0, 1)
        for y in (0, 1)
        for k in (0, 1)
    ]
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + b"".join(map(fixed, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    line = bytes(range(256))
    table += line * 4 + np.clip(lab, 0, 255).astype(np.uint8).tobytes() + line * 3
    return profile(b"CMYK", {b"A2B0": table}, kind=b"prtr", between=b"Lab ")


def by_littlecms(image: Image.Image, icc: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    return np.asarray(ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB"))


@pytest.mark.parametrize(
    ("name", "curve", "green"),
    [
        ("Display P3", 2.2, (0, 205, 0)),
        ("Adobe RGB", 2.19921875, (0, 201, 37)),
        ("ProPhoto RGB", 1.8, (0, 228, 0)),
    ],
)
def test_a_wide_gamut_comes_out_as_viewers_show_it(name: str, curve: float, green: tuple[int, ...]) -> None:
    icc = matrix(name, gamma(curve))
    flat = Image.new("RGB", (64, 64), (60, 200, 60))
    assert decode_image(saved(flat, "PNG", icc_profile=icc))[0, 0].tolist() == list(green)
    assert decode_image(saved(flat, "PNG", icc_profile=icc), KEEP)[0, 0].tolist() == [60, 200, 60]
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = saved(photo(), kind, icc_profile=icc, **options)
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(decode_image(data), by_littlecms(image.convert("RGB"), icc))
            assert np.array_equal(decode_image(data, KEEP), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "icc",
    [ImageCms.ImageCmsProfile(SRGB).tobytes(), matrix("sRGB", srgb_table())],
    ids=["parametric curve", "table of 1024"],
)
def test_a_profile_that_is_srgb_by_its_numbers_changes_not_one_bit(icc: bytes) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})):
        data = saved(Image.fromarray(levels), kind, icc_profile=icc, **options)
        assert np.array_equal(decode_image(data), decode_image(data, KEEP))


def test_grey_is_converted_by_a_grey_profile_and_by_one_of_colours() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    grey = profile(b"GRAY", {b"kTRC": gamma(1.0)})
    expected = by_littlecms(ramp, grey)
    assert expected[0, 64].tolist() == [137] * 3
    for mode in ("L", "LA"):
        assert np.array_equal(decode_image(saved(ramp.convert(mode), "PNG", icc_profile=grey)), expected)
    jpeg = saved(ramp, "JPEG", quality=100, icc_profile=grey)
    with Image.open(io.BytesIO(jpeg)) as image:
        assert np.array_equal(decode_image(jpeg), by_littlecms(image, grey))
    wide = matrix("Display P3", gamma(1.0))
    assert np.array_equal(decode_image(saved(ramp, "PNG", icc_profile=wide)), by_littlecms(ramp.convert("RGB"), wide))


def test_ink_is_converted_by_its_profile() -> None:
    ink = photo().convert("CMYK")
    icc = ink_profile()
    for data in (saved(ink, "JPEG", quality=95, icc_profile=icc), saved(ink, "TIFF", icc_profile=icc)):
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(decode_image(data), by_littlecms(image, icc))
            assert np.array_equal(decode_image(data, KEEP), np.asarray(image.convert("RGB")))
        assert not np.array_equal(decode_image(data), decode_image(data, KEEP))


def test_a_broken_profile_or_one_of_another_kind_leaves_the_picture_as_it_is() -> None:
    whole = matrix("Display P3", gamma(2.2))
    broken = [b"no profile", whole[:200], whole[:132] + bytes(len(whole) - 132), whole.replace(b"RGB ", b"HSV ")]
    others = [profile(b"GRAY", {b"kTRC": gamma(1.0)}), ink_profile(), bytes(2**22 + 1)]
    for icc in broken + others:
        data = saved(photo(), "JPEG", icc_profile=icc)
        assert np.array_equal(decode_image(data), decode_image(data, KEEP))
    ink = saved(photo().convert("CMYK"), "JPEG", icc_profile=whole)
    assert np.array_equal(decode_image(ink), decode_image(ink, KEEP))


def test_the_colours_of_a_mask_are_numbers() -> None:
    levels = Image.fromarray(np.array([[127, 128]], np.uint8))
    data = saved(levels, "PNG", icc_profile=profile(b"GRAY", {b"kTRC": gamma(1.0)}))
    assert decode_image(data)[0, :, 0].tolist() == [187, 188]
    assert (repainted(data, "light") > 127)[0].tolist() == [False, True]


def test_a_gamma_without_a_profile_is_left_alone() -> None:
    linear = chunk(b"gAMA", struct.pack(">I", 100000))
    assert decode_image(png((1, 2), 8, 0, b"\0\x40\x80", before=linear))[0, :, 0].tolist() == [64, 128]


def test_a_cache_has_converted_colours_and_its_settings_say_so(tmp_path: Path, vae: Autoencoder) -> None:
    data = saved(Image.new("RGB", (64, 64), (60, 200, 60)), "PNG", icc_profile=matrix("Display P3", gamma(2.2)))
    write_shard(tmp_path / "in" / "0.tar", {"cat": {"png": data}})
    options = {"resolution": 64, "masks": "center", "vae": vae, "carry_image": "crop"}
    cache_latents(str(tmp_path / "in"), str(tmp_path / "out"), **options)
    cache = LatentCache(tmp_path / "out")
    assert decode_image(cache.batch([0])["carried"][0]["crop.png"])[0, 0].tolist() == [0, 205, 0]
    assert cache.settings.pictures is not None
    assert cache.settings.pictures.icc == "srgb"
    kept = cache.settings.pictures.but(icc="keep")
    assert isinstance(kept, PictureSettings)
    assert kept != cache.settings.pictures
