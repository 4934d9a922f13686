"""What decoding and cutting a picture costs beside other libraries, and how long local pictures take to start.

    python benchmarks/pictures.py [--full]

Also prints, for the options that change pixels, how many: PSNR against whole decoding and Pillow's Lanczos, and the
largest difference, over the demo's photographs as they are.
"""

import io
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import cv2
import numpy as np
import simplejpeg
import torch
import webdataset as wds
from PIL import Image
from table import Row, pin, script, side_by_side
from torch.nn import functional

import inpaint_data
from inpaint_data import MaskSettings, PictureSettings
from inpaint_data.pictures.geometry import plan
from inpaint_data.pictures.images import decode_image, image_size
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline import kept_index
from inpaint_data.pipeline.indexed import IndexedShards

try:
    import torchvision
    from torchvision.transforms.v2 import functional as transforms
except (ImportError, RuntimeError) as reason:  # a build for another torch
    torchvision = None
    print(f"torchvision is left out ({reason}); pip install torchvision --index-url "
          "https://download.pytorch.org/whl/cpu", file=sys.stderr)  # fmt: skip

try:
    from img2dataset.resizer import Resizer
except ImportError as reason:
    Resizer = None
    print(f"img2dataset is left out ({reason}); it wants an older webdataset: pip install --target FOLDER img2dataset, "
          "and name FOLDER in a .pth file", file=sys.stderr)  # fmt: skip

SIDE = 512
PHOTOS = Path(inpaint_data.__file__).parent / "demo" / "photos"
UNUSED = np.random.default_rng(0)  # since nothing is cut at random
NATIVE = 100  # cut from photographs of 300 to 512 pixels: their own detail, reduced by 3 to 5
Pixels = np.ndarray
Decoder = Callable[[bytes], Pixels]


# ---- ours


def ours(data: bytes, side: int = SIDE, pictures: PictureSettings = PictureSettings()) -> Pixels:  # noqa: B008
    """Decoded and cut, as `prepare` does."""
    reduced = pictures.reduction(image_size(data)) if pictures.reducing_gap else 1
    pixels = decode_image(data, replace(pictures.decoding, reduced=reduced))
    size = image_size(data) if reduced > 1 else pixels.shape[:2]
    geometry = plan(size, (side, side), "center", False, UNUSED)
    return geometry.apply(pixels, pictures.resize)


def with_options(side: int = SIDE, **options: object) -> Decoder:
    pictures = PictureSettings(resolution=side, **options)
    return lambda data: ours(data, side, pictures)


# ---- peers


def middle(pixels: Pixels) -> Pixels:
    top, left = (pixels.shape[0] - SIDE) // 2, (pixels.shape[1] - SIDE) // 2
    return pixels[top : top + SIDE, left : left + SIDE]


def covering(height: int, width: int) -> tuple[int, int]:
    scale = SIDE / min(height, width)
    return round(height * scale), round(width * scale)


def pillow(data: bytes) -> Pixels:
    return _resized_by_pillow(Image.open(io.BytesIO(data)).convert("RGB"))


def webdataset_pillow(data: bytes) -> Pixels:
    return _resized_by_pillow(wds.autodecode.ImageHandler("pilrgb")(".jpg", data))


def _resized_by_pillow(image: Image.Image) -> Pixels:
    height, width = covering(image.height, image.width)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return middle(np.asarray(image))


def opencv_area(data: bytes) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = covering(*pixels.shape[:2])
    if (height, width) != pixels.shape[:2]:
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return middle(pixels)


def torchvision_by_hand(data: bytes) -> Pixels:
    """What torchvision's `resize` of bytes calls: torch's antialiased bicubic."""
    pixels = simplejpeg.decode_jpeg(data, "RGB")
    size = covering(*pixels.shape[:2])
    if size != pixels.shape[:2]:
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        planes = functional.interpolate(planes, size, mode="bicubic", antialias=True)
        pixels = planes[0].permute(1, 2, 0).numpy()
    return middle(pixels)


def by_torchvision(data: bytes) -> Pixels:
    planes = torchvision.io.decode_jpeg(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), torchvision.io.ImageReadMode.RGB
    )
    if min(planes.shape[1:]) != SIDE:
        planes = transforms.resize(planes, SIDE, transforms.InterpolationMode.BICUBIC, antialias=True)
    return middle(planes.permute(1, 2, 0).numpy())


def saved_by_img2dataset(kind: str, quality: int) -> Callable[[bytes], bytes]:
    """Decoded, cut and saved again, which is all that it gives; with OpenCV's area."""
    resizer = Resizer(SIDE, "center_crop", False, encode_format=kind, encode_quality=quality)
    return lambda data: resizer(io.BytesIO(data))[0]


FAST: dict[str, Decoder] = {"torch bicubic": torchvision_by_hand, "cv2 area": opencv_area}
if torchvision is not None:
    FAST["torchvision"] = by_torchvision
LANCZOS: dict[str, Decoder] = {"PIL": pillow, "wds + PIL": webdataset_pillow}


# ---- data and figures


def photographs(side: int | None) -> list[bytes]:
    """The demo's photographs with a short side of that many pixels, or as they are."""
    files = []
    for path in sorted(PHOTOS.glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        if side is None:
            files.append(path.read_bytes())
            continue
        scale = side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        file = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def seconds(contenders: dict[str, Decoder], files: list[bytes], rounds: int) -> dict[str, float]:
    """CPU seconds a picture."""

    def all_by(run: Decoder) -> Callable[[], object]:
        return lambda: [run(data) for data in files]

    times = side_by_side({name: all_by(run) for name, run in contenders.items()}, rounds)
    print(", ".join(f"{name} {1000 * value / len(files):.2f}" for name, value in times.items()), "ms", file=sys.stderr)
    return times


def differences(run: Decoder, reference: Decoder, files: list[bytes]) -> tuple[float, int]:
    """PSNR over all pixels in dB, and the largest difference."""
    apart = [run(data).astype(int) - reference(data) for data in files]
    error = np.mean(np.concatenate([each.ravel() for each in apart]) ** 2.0)
    return float(10 * np.log10(255**2 / error)), max(int(abs(each).max()) for each in apart)


def check_quality(run: Decoder, peers: dict[str, Decoder], files: list[bytes]) -> None:
    """Ours is nearer than each of the peers to Pillow's Lanczos of all pixels."""
    psnr = differences(run, pillow, files)[0]
    theirs = {name: differences(peer, pillow, files)[0] for name, peer in peers.items()}
    print(f"PSNR to Lanczos {psnr:.1f} dB, {', '.join(f'{n} {v:.1f}' for n, v in theirs.items())}", file=sys.stderr)
    assert psnr >= max(theirs.values())


def rows(full: bool) -> Iterator[Row]:
    pin()
    cv2.setNumThreads(1)
    rounds = 25 if full else 9
    yield from _of_512(rounds)
    yield from _of_larger(rounds // 2)
    yield from _of_pixels()
    yield from _of_the_start(100 if full else 10)


def _of_512(rounds: int) -> Iterator[Row]:
    files = photographs(SIDE)
    peers = FAST | LANCZOS
    del peers["torch bicubic"]  # which is but libjpeg here
    for name, peer in peers.items():
        assert all(np.array_equal(ours(data), peer(data)) for data in files), name
    alone = {"libjpeg alone": lambda data: simplejpeg.decode_jpeg(data, "RGB")}
    times = seconds({"ours": ours} | peers | alone, files, rounds)
    best = min(times[name] for name in peers)
    work = "decode + cut of a 512 px JPEG, over the best of "
    yield Row(f"{work}{len(peers)} peers", "1.15x", times["ours"] / best, 0.8, known=0.97)
    yield Row(
        "the same, over libjpeg's decoding alone", "1.15x", times["ours"] / times["libjpeg alone"], 1.1, known=1.1
    )
    if Resizer is not None:
        yield _beside_img2dataset(files, rounds)


def _beside_img2dataset(files: list[bytes], rounds: int) -> Row:
    exact = saved_by_img2dataset("png", 0)
    assert all(np.array_equal(ours(data), decode_image(exact(data))) for data in files)
    usual = saved_by_img2dataset("jpg", 95)
    times = seconds({"ours": ours, "img2dataset": usual}, files, rounds)
    work = "the same: time of img2dataset, which saves a JPEG again"
    return Row(work, "1.2x", times["img2dataset"] / times["ours"], None, higher=True, known=1.5)


def _of_larger(rounds: int) -> Iterator[Row]:
    work = "a 1024 px JPEG to 512: "
    files = photographs(1024)
    for name, peer in LANCZOS.items():
        assert max(abs(ours(data).astype(int) - peer(data)).max() for data in files) <= 1, name
    options = {
        "gap 1": with_options(reducing_gap=1.0),
        "torch": with_options(resize="torch"),
    }
    check_quality(options["torch"], FAST, files)
    check_quality(options["gap 1"], {"cv2 area": opencv_area}, files)
    times = seconds({"ours": ours} | options | FAST | LANCZOS, files, rounds)
    slow, fast = (min(times[name] for name in peers) for peers in (LANCZOS, FAST))
    yield Row(f"{work}Lanczos, over PIL's, within 1 level", "1.05x", times["ours"] / slow, 1.0)
    yield Row(f"{work}resize: torch, over PIL's Lanczos", "1.05x", times["torch"] / slow, 0.5)
    yield Row(f"{work}resize: torch, over the best bicubic or area", "2.7x", times["torch"] / fast, 1.0, known=1.3)
    yield Row(f"{work}reducing_gap: 1, over cv2 area", "2.1x", times["gap 1"] / times["cv2 area"], 1.0)
    files = photographs(1500)[:6]
    both = with_options(reducing_gap=1.0, resize="torch")
    check_quality(both, FAST, files)
    times = seconds({"both": both} | FAST, files, rounds)
    best = min(times[name] for name in FAST)
    yield Row("a 1500 px JPEG to 512: both, over the best bicubic or area", "2.7x", times["both"] / best, 1.0)


def _of_pixels() -> Iterator[Row]:
    files, whole = photographs(None), with_options(NATIVE)
    for name, reach, options in (
        ("reducing_gap: 1", 35, {"reducing_gap": 1.0}),
        ("reducing_gap: 2", 45, {"reducing_gap": 2.0}),
        ("resize: torch", 60, {"resize": "torch"}),
    ):
        psnr, largest = differences(with_options(NATIVE, **options), whole, files)
        work = f"photographs to {NATIVE} px, {name}: PSNR to whole (at most {largest}/255)"
        yield Row(work, "-", psnr, reach, " dB", higher=True)


def _of_the_start(count: int) -> Iterator[Row]:
    """The views of all samples, as training has them before its first batch."""
    settings = ExampleSettings(PictureSettings(resolution=64), MaskSettings(source="center"))
    file = io.BytesIO()
    Image.open(PHOTOS / "cat.jpg").resize((64, 64)).save(file, "JPEG")
    with TemporaryDirectory() as folder:
        shards = [_shard(Path(folder) / f"{number:05}.tar", file.getvalue()) for number in range(count)]
        kept_index.WORTH = 0  # small pictures stand for large ones: their bytes are not read

        def start(by_index: bool) -> IndexedShards:
            entries = kept_index.kept_entries(shards, folder, with_sizes=False) if by_index else None
            return IndexedShards(shards, settings, entries=entries)

        started = perf_counter()
        first = start(by_index=True)
        print(f"first start of {count} shards {perf_counter() - started:.2f} s", file=sys.stderr)
        assert np.array_equal(first.sizes, start(by_index=False).sizes)
        times = side_by_side({"headers": lambda: start(False), "index": lambda: start(True)}, 3)
    print(f"headers {times['headers']:.2f} s, index {times['index']:.3f} s", file=sys.stderr)
    work = f"start of {count} local shards x 1,000: the second, over reading headers"
    yield Row(work, "1x", times["index"] / times["headers"], 0.1)


def _shard(path: Path, image: bytes) -> str:
    with tarfile.open(path, "w") as tar:
        for number in range(1000):
            for name, data in ((f"{number:05}.jpg", image), (f"{number:05}.txt", b"a cat")):
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return str(path)


if __name__ == "__main__":
    script(rows, __doc__)
