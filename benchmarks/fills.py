"""How long each fill takes beside the grey one, in one run.

    python benchmarks/fills.py

Prints milliseconds for a 512x512 picture of which a quarter is hidden, in batches of 4, and how many times as long as
"grey" each takes. "blur", "telea" and "navier-stokes" go through the CPU one by one whatever the device. Each figure is
the median of interleaved rounds, so that a busy machine slows all of them alike. Soft borders follow, beside an offset.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from table import side_by_side

import inpaint_data
from inpaint_data import SoftBorder, offset_mask
from inpaint_data.encoding.fills import fill_hole, hole_noise
from inpaint_data.masks.presets import FILLS

SIDE, BATCH, ROUNDS = 512, 4, 9
PHOTO = Path(inpaint_data.__file__).parent / "demo" / "photos" / "rocket.jpg"
BORDERS = [SoftBorder(kind, radius) for kind in ("gaussian", "ramp") for radius in (4, 16)]


def main() -> None:
    cv2.setNumThreads(1)
    photo = np.array(Image.open(PHOTO).convert("RGB").resize((SIDE, SIDE)))
    pixels = (torch.from_numpy(photo).permute(2, 0, 1) / 127.5 - 1).repeat(BATCH, 1, 1, 1)
    mask = torch.zeros(BATCH, 1, SIDE, SIDE, dtype=torch.bool)
    mask[..., SIDE // 4 : 3 * SIDE // 4, SIDE // 4 : 3 * SIDE // 4] = True
    keys = list("abcd")

    def noise() -> torch.Tensor:
        return fill_hole(pixels, mask, "noise", -1.0, hole_noise(0, keys, [0] * BATCH, SIDE, SIDE))

    fills: dict[str, Callable[[], object]] = {fill: partial(fill_hole, pixels, mask, fill, -1.0) for fill in FILLS}
    times = side_by_side(fills | {"noise": noise}, ROUNDS, time.perf_counter)
    print(f"one {SIDE}x{SIDE} picture, milliseconds; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'fill':<18} {'ms':>8} {'x grey':>8}")
    for fill in FILLS:
        print(f"{fill:<18} {1000 * times[fill] / BATCH:>8.2f} {times[fill] / times['grey']:>8.1f}")

    borders: dict[str, Callable[[], object]] = {f"{each.kind} {each.radius}": partial(each, mask) for each in BORDERS}
    times = side_by_side(borders | {"offset 6": partial(offset_mask, mask, 6)}, ROUNDS, time.perf_counter)
    print(f"\n{'soft border':<18} {'ms':>8} {'x an offset of 6':>18}")
    for name in borders:
        print(f"{name:<18} {1000 * times[name] / BATCH:>8.2f} {times[name] / times['offset 6']:>18.1f}")


if __name__ == "__main__":
    main()
