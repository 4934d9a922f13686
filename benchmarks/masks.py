"""How long a mask takes to draw, beside the JPEG that has to be decoded anyway, in one run.

    python benchmarks/masks.py

Prints milliseconds for a 512x512 mask of each generator and of mixtures of them, and their share of decoding a 512x512
JPEG: below 1, masks are the smaller part. The mean over many keys counts, since some generators draw again until a
limit is met. Each figure is the median of interleaved rounds, so that a busy machine slows all of them alike. Then
comes what it costs to bring that JPEG to sRGB where its profile is another one. Offsets: `benchmarks/offsets.py`.
"""

import io
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image, ImageCms
from table import side_by_side

import inpaint_data
from inpaint_data import MaskMixture
from inpaint_data.masks.edits import EDITS
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.pictures.images import decode_image
from inpaint_data.seeding import generator_for

SIDE, KEYS, ROUNDS = 512, 50, 7
PHOTO = Path(inpaint_data.__file__).parent / "demo" / "photos" / "rocket.jpg"
CONFIGS = Path(__file__).parents[1] / "configs"


def wide_profile() -> bytes:
    """The profile of sRGB with another power in its curve."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(struct.pack(">i", round(2.4 * 2**16)), struct.pack(">i", round(2.2 * 2**16)))


def jpeg(profile: bytes | None = None) -> bytes:
    """A photograph, cut to a square and saved at a usual quality."""
    photo = Image.open(PHOTO)
    short = min(photo.size)
    file = io.BytesIO()
    photo.crop((0, 0, short, short)).resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(
        file, "JPEG", quality=90, icc_profile=profile
    )
    return file.getvalue()


def draw(mixture: MaskMixture) -> None:
    objects = [lambda: disc]
    for key in range(KEYS):
        mixture.draw(SIDE, SIDE, generator_for(0, str(key), 0, "mask"), objects)


def decode(data: bytes) -> None:
    for _ in range(KEYS):
        decode_image(data)


disc = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (SIDE // 2, SIDE // 2), 100, 1, -1).astype(bool)


def main() -> None:
    cv2.setNumThreads(1)
    mixtures = {name: MaskMixture({name: 1.0}) for name in GENERATORS}
    for name in EDITS:
        mixtures[f"object, {name}"] = MaskMixture({"object": 1.0}, **{name: 1.0})
    mixtures["object, precision"] = MaskMixture({"object": 1.0}, precision=[0, 4])
    mixtures["all of them alike"] = MaskMixture(dict.fromkeys(GENERATORS, 1.0))
    mixtures["masks: mixture"] = MaskMixture()
    for path in sorted(CONFIGS.glob("masks_*.yaml")):
        mixtures[path.name] = MaskMixture(**yaml.safe_load(path.read_text()))
    data = jpeg()
    contenders: dict[str, Callable[[], object]] = {name: partial(draw, mixture) for name, mixture in mixtures.items()}
    contenders |= {"JPEG": partial(decode, data), "profile": partial(decode, jpeg(wide_profile()))}
    seconds = side_by_side(contenders, ROUNDS, time.perf_counter)
    times = {name: 1000 * each for name, each in seconds.items()}
    print(f"{SIDE}x{SIDE}, mean of {KEYS} keys, milliseconds; OpenCV {cv2.__version__}, one thread")
    print(f"{'mask':<22} {'draw':>7} {'of the decoding':>16}")
    for name in mixtures:
        print(f"{name:<22} {times[name] / KEYS:>7.2f} {times[name] / times['JPEG']:>16.2f}")
    print(f"{'decoding a JPEG':<22} {times['JPEG'] / KEYS:>7.2f}   ({len(data) / 1024:.0f} KiB)")
    print(
        f"{'… and bringing it to sRGB':<22} {times['profile'] / KEYS:>5.2f} {times['profile'] / times['JPEG']:>16.2f}"
    )


if __name__ == "__main__":
    main()
