"""How long an offset takes: ours, the convolution it replaces, and OpenCV, side by side in one run.

    python benchmarks/morphology.py

Prints milliseconds for a 512x512 mask and how many times faster ours is (below 1: slower). Each figure is the median
of interleaved repetitions, so that a busy machine slows all of them alike; only the convolution, which takes half a
minute at 128, runs once. All results are compared to the last bit on the way.
"""

import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from inpaint_data import offset_mask

SIDE, BATCH = 512, 16


def by_convolution(mask: torch.Tensor, radius: int) -> torch.Tensor:
    side = 2 * radius + 1
    return F.conv2d(mask.float(), torch.ones(1, 1, side, side), padding=radius) > 0


def medians(contenders: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if repetition:  # the first round warms up
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def by_steps(pixels: np.ndarray, radius: int, window: str) -> np.ndarray:
    """OpenCV's way to the windows that are no squares: 3x3, again and again."""
    square, cross = np.ones((3, 3), np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    if window == "cross":
        return cv2.dilate(pixels, cross, iterations=radius)
    return cv2.dilate(cv2.dilate(pixels, square, iterations=(radius + 1) // 2), cross, iterations=radius // 2)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand((BATCH, 1, SIDE, SIDE), generator=generator) > 0.999
    mask, pixels = masks[:1], masks[0, 0].numpy().astype(np.uint8)
    print(f"one {SIDE}x{SIDE} mask, milliseconds; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'offset':>7} {'ours':>8} {'OpenCV':>8} {'convolution':>12} {'x OpenCV':>9} {'x convolution':>14}")
    for radius in (6, 32, 128):
        window = np.ones((2 * radius + 1,) * 2, np.uint8)
        few = {
            "ours": lambda r=radius: offset_mask(mask, r),
            "OpenCV": lambda w=window: cv2.dilate(pixels, w),
        }
        fast = medians(few, 100)
        started = time.perf_counter()
        convolved = by_convolution(mask, radius)
        slow = 1000 * (time.perf_counter() - started)
        assert torch.equal(offset_mask(mask, radius), convolved)
        print(
            f"{radius:>7} {fast['ours']:>8.2f} {fast['OpenCV']:>8.2f} {slow:>12.1f} "
            f"{fast['OpenCV'] / fast['ours']:>8.2f}x {slow / fast['ours']:>13.0f}x"
        )

    print("other windows, against as many steps of 3x3 in OpenCV:")
    for window in ("octagon", "cross"):
        for radius in (6, 32, 128):
            both = {
                "ours": lambda r=radius, w=window: offset_mask(mask, r, w),
                "OpenCV": lambda r=radius, w=window: by_steps(pixels, r, w),
            }
            assert np.array_equal(both["ours"]()[0, 0], both["OpenCV"]())
            times = medians(both, 50)
            faster = times["OpenCV"] / times["ours"]
            print(f"{window:>7} {radius:>4} {times['ours']:>8.2f} {times['OpenCV']:>8.2f} {faster:>8.2f}x")

    offsets = torch.randint(-128, 129, (BATCH,), generator=generator)
    windows = [np.ones((2 * abs(int(k)) + 1,) * 2, np.uint8) for k in offsets]
    many = [mask[0].numpy().astype(np.uint8) for mask in masks]

    def opencv_loop() -> list[np.ndarray]:
        apply = [cv2.dilate if k > 0 else cv2.erode for k in offsets]
        return [f(m, w) for f, m, w in zip(apply, many, windows, strict=True)]

    batch = medians({"ours": lambda: offset_mask(masks, offsets), "OpenCV": opencv_loop}, 30)
    print(f"batch of {BATCH}, each its own offset in -128...128, milliseconds a mask:")
    print(
        f"        {batch['ours'] / BATCH:>8.2f} {batch['OpenCV'] / BATCH:>8.2f} {'':>12} "
        f"{batch['OpenCV'] / batch['ours']:>8.2f}x"
    )


if __name__ == "__main__":
    main()
