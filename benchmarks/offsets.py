"""How long `offset_mask` takes on a CPU, beside OpenCV and the convolution that it equals.

    python benchmarks/offsets.py

Prints milliseconds a mask and ratios to OpenCV (below 1: ours is faster): for masks of several sizes, for the windows
that are no squares, and for the convolution. One thread on one core, CPU time, medians, two contenders in turn; all
results are compared to the last bit before. `make bench` prints four of these ratios, by `rows`.
"""

from collections.abc import Callable, Iterator
from functools import partial

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from table import Row, pin, side_by_side
from torch import Tensor

from inpaint_data import offset_mask
from inpaint_data.masks.morphology import Window

BATCH = 16


def by_opencv(masks: Tensor, offsets: list[int]) -> Tensor:
    """The loop that one would write: memory is taken for uint8 as it is, and the results are put into one tensor."""
    grown = []
    for mask, offset in zip(masks, offsets, strict=True):
        apply = cv2.dilate if offset > 0 else cv2.erode
        grown.append(apply(mask[0].numpy().view(np.uint8), np.ones((2 * abs(offset) + 1,) * 2, np.uint8)))
    return torch.from_numpy(np.stack(grown)[:, None].view(np.bool_))


def by_opencv_in_place(masks: Tensor, offsets: list[int]) -> Tensor:
    """The same without a copy: OpenCV writes into the memory of the result."""
    result = torch.empty_like(masks)
    for mask, grown, offset in zip(masks, result, offsets, strict=True):
        apply = cv2.dilate if offset > 0 else cv2.erode
        window = np.ones((2 * abs(offset) + 1,) * 2, np.uint8)
        apply(mask[0].numpy().view(np.uint8), window, grown[0].numpy().view(np.uint8))
    return result


def by_opencv_steps(masks: Tensor, offsets: list[int], window: Window) -> Tensor:
    """OpenCV's way to the windows that are no squares: 3x3, again and again; for one mask that grows."""
    pixels, radius = masks[0, 0].numpy().view(np.uint8), offsets[0]
    square, cross = np.ones((3, 3), np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    if window == "octagon":
        pixels = cv2.dilate(pixels, square, iterations=(radius + 1) // 2)
        radius //= 2
    return torch.from_numpy(cv2.dilate(pixels, cross, iterations=radius).view(np.bool_))[None, None]


def by_convolution(masks: Tensor, offsets: list[int]) -> Tensor:
    side = 2 * offsets[0] + 1
    return F.conv2d(masks.float(), torch.ones(1, 1, side, side), padding=offsets[0]) > 0


def cases(height: int, width: int) -> dict[str, tuple[Tensor, list[int]]]:
    """Masks of which a thousandth is set, and how far each goes."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand((BATCH, 1, height, width), generator=generator) > 0.999
    small = torch.randint(-8, 25, (BATCH,), generator=generator).tolist()
    large = torch.randint(-128, 129, (BATCH,), generator=generator).tolist()
    return {
        f"batch of {BATCH}, -8…24": (masks, small),
        f"batch of {BATCH}, -128…128": (masks, large),
        "one mask, k = 6": (masks[:1], [6]),
        "one mask, k = 128": (masks[:1], [128]),
    }


def milliseconds(
    masks: Tensor,
    offsets: list[int],
    other: Callable[[Tensor, list[int]], Tensor],
    window: Window = "square",
    longer: int = 1,
) -> tuple[float, float]:
    """Of ours and of another way, a mask; about a second, or `longer`."""
    one = offsets[0] if len(offsets) == 1 else torch.tensor(offsets)
    contenders = {"ours": lambda: offset_mask(masks, one, window), "other": lambda: other(masks, offsets)}
    if not torch.equal(contenders["ours"](), contenders["other"]()):
        raise SystemExit(f"offsets {offsets} by {window}: the results differ")
    pilot = side_by_side(contenders, 3)
    rounds = max(3, min(1000, int(longer / sum(pilot.values()))))
    times = side_by_side(contenders, rounds)
    return 1000 * times["ours"] / len(offsets), 1000 * times["other"] / len(offsets)


def rows(full: bool) -> Iterator[Row]:
    """The four rows of the table."""
    pin()
    before = ("7.4x", "1.5x", "7.2x", "0.90x")
    for (case, (masks, offsets)), was in zip(cases(512, 512).items(), before, strict=True):
        ours, other = milliseconds(masks, offsets, by_opencv, longer=10 if full else 2)
        yield Row(f"offset_mask, 512 px, {case}: an OpenCV loop", was, ours / other, 0.9)


def line(case: str, times: tuple[float, float]) -> None:
    ours, other = times
    print(f"{case:<50} {ours:>8.3f} {other:>9.3f} {ours / other:>8.2g}x", flush=True)


def main() -> None:
    pin()
    print(
        f"milliseconds a mask; torch {torch.__version__}, NumPy {np.__version__}, OpenCV {cv2.__version__}, one thread"
    )
    print(f"{'':<50} {'ours':>8} {'other':>9} {'ratio':>9}")
    for height, width in ((512, 512), (1024, 1024), (509, 683)):
        for case, given in cases(height, width).items():
            line(f"{height}x{width}, {case}", milliseconds(*given, by_opencv))
    for case, given in cases(512, 512).items():
        line(f"512x512, {case}, nothing copied", milliseconds(*given, by_opencv_in_place))
    mask = cases(512, 512)["one mask, k = 6"][0]
    for radius in (1, 2, 3, 4):
        line(f"512x512, one mask, k = {radius}", milliseconds(mask, [radius], by_opencv))
    for window in ("octagon", "cross"):
        for radius in (6, 32, 128):
            times = milliseconds(mask, [radius], partial(by_opencv_steps, window=window), window)
            line(f"512x512, {window}, k = {radius}, as many steps of 3x3", times)
    for radius in (6, 32):
        line(f"512x512, k = {radius}, a convolution", milliseconds(mask, [radius], by_convolution))


if __name__ == "__main__":
    main()
