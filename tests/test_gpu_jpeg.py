"""JPEGs decoded by nvJPEG: whole or not at all, as by libjpeg, with pixels a few levels apart.

Without a GPU nvImageCodec decodes by its own libjpeg-turbo, which has the pixels of ours.
"""

import io
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PHOTOS, Pooling, small_samples, write_shard
from flat import cache_latents
from PIL import Image

from inpaint_data import Autoencoder, LatentCache, MaskSettings, PictureSettings, SampleError, UsageError
from inpaint_data.commands.main import main
from inpaint_data.pictures import gpu_jpeg
from inpaint_data.pictures.formats import Decoding
from inpaint_data.pictures.images import decode_image, decode_values
from inpaint_data.pictures.settings import ExampleSettings

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not made for this system")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
NVJPEG = Decoding(decoder="nvjpeg")


@pytest.fixture(params=[pytest.param("gpu", marks=needs_gpu), "cpu"])
def levels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How far pixels may be from libjpeg's where nvImageCodec decodes."""
    if request.param == "cpu":
        monkeypatch.setattr(gpu_jpeg, "_own", lambda: gpu_jpeg.CPU)
        return 0
    return 6


def saved(mode: str = "RGB", orientation: int = 1, **options: Any) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.open(PHOTOS / "cat.jpg").convert(mode).save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


FILES = {
    "420": saved(subsampling=2),
    "444": saved(subsampling=0),
    "422": saved(subsampling=1),
    "progressive": saved(progressive=True),
    "grey": saved("L"),
    "turned": saved(orientation=6),
    "ink, by libjpeg": saved("CMYK"),
    "a restart in every row": saved(restart_marker_rows=1),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES.keys())
def test_pixels_are_those_of_libjpeg_or_a_few_levels_apart(data: bytes, levels: int) -> None:
    expected, pixels = decode_image(data), decode_image(data, NVJPEG)
    assert pixels.shape == expected.shape
    assert pixels.dtype == np.uint8
    assert abs(pixels.astype(int) - expected).max() <= levels
    assert np.array_equal(decode_image(data, NVJPEG), pixels)


@pytest.mark.usefixtures("levels")
@pytest.mark.parametrize("data", FILES.values(), ids=FILES.keys())
def test_what_is_cut_short_or_damaged_is_refused_as_by_libjpeg(data: bytes) -> None:
    random = np.random.default_rng(0)
    files = [data[: int(len(data) * part)] for part in (0.3, 0.6, 0.9, 0.99)]
    for _ in range(30):
        damaged = bytearray(data)
        damaged[int(random.integers(len(data)))] = int(random.integers(256))
        files.append(bytes(damaged))
    for file in files:
        told = []
        for decoding in (Decoding(), NVJPEG):
            try:
                told.append(decode_image(file, decoding).shape)
            except SampleError as error:
                told.append(str(error))
        assert told[0] == told[1]


@pytest.mark.usefixtures("levels")
def test_masks_have_the_values_of_libjpeg() -> None:
    for data in (FILES["420"], FILES["grey"]):
        assert np.array_equal(decode_values(data, NVJPEG)[0], decode_values(data)[0])


@without_gpu
def test_where_there_is_no_gpu_it_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PictureSettings(decoder="nvjpeg").decoder == "nvjpeg"  # as of a cache that is read here
    with pytest.raises(UsageError, match="decoder: nvjpeg decodes on a CUDA device, and there is none; leave it out"):
        ExampleSettings(PictureSettings(decoder="nvjpeg"), MaskSettings(source="center"))
    write_shard(tmp_path / "0.tar", small_samples(2))
    flags = ["--vae", "demo", "--masks", "center", "--decoder", "nvjpeg"]
    with pytest.raises(SystemExit):
        main(["cache", "--shards", str(tmp_path / "0.tar"), "--out", str(tmp_path / "cache"), *flags])
    assert capsys.readouterr().err.count("\n") == 1


def test_where_nvimagecodec_is_not_installed_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    monkeypatch.setattr(gpu_jpeg, "_own", lambda: gpu_jpeg.CPU)
    monkeypatch.setattr(gpu_jpeg, "_decoders", threading.local())
    with pytest.raises(UsageError, match=r"nvImageCodec, which cannot .*pip install 'inpaint_data\[nvjpeg\]'"):
        decode_image(FILES["420"], NVJPEG)


@needs_gpu
def test_a_job_that_decodes_on_the_gpu_makes_the_same_bytes_again(tmp_path: Path) -> None:
    write_shard(tmp_path / "shards" / "0.tar", small_samples(12))
    made: dict[str, Any] = {"vae": Autoencoder(Pooling()), "resolution": 32, "masks": "center", "decoder": "nvjpeg"}
    for name, threads in (("one", 1), ("two", 4)):
        summary = cache_latents(str(tmp_path / "shards"), str(tmp_path / name), num_workers=threads, **made)
        assert (summary.cached, len(summary.quarantined)) == (12, 0)
    assert (tmp_path / "one" / "0.tar").read_bytes() == (tmp_path / "two" / "0.tar").read_bytes()
    assert LatentCache(tmp_path / "one").settings.pictures.decoder == "nvjpeg"
    with pytest.raises(UsageError, match="decoder"):
        cache_latents(str(tmp_path / "shards"), str(tmp_path / "one"), **made | {"decoder": "libjpeg"})
