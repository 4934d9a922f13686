"""Masks grown or shrunk on the CPU: one after the other, eight rows of pixels in each row of bytes.

A mask is cut into eight stripes of R rows that lie over one another: bit j of the byte at (r, x) is the pixel in row
j * R + r, column x. A pass over the bytes serves all eight. One pixel along a row is one byte; one pixel down is one
row of bytes, but below the last row of a stripe comes the first row of the next stripe, which is the same byte one bit
further. Such rows are put above and below the stripes once, and then moving down is moving bytes too.

Shapes: B batch, H height, W width, R = ceil(H / 8), N bytes one behind the other.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes: TypeAlias = NDArray[np.uint8]
STRIPES = 8
BITS_81: Bytes = 2 ** np.arange(STRIPES, dtype=np.uint8)[:, None]
# NumPy takes up an array without dimensions faster than a number, which counts where a pass takes a microsecond.
NUMBERS: list[Bytes] = [np.array(number, np.uint8) for number in range(STRIPES)]
POWERS: list[Bytes] = [np.array(2**number, np.uint8) for number in range(STRIPES)]


def grow(mask: Tensor, shrinks: Sequence[bool], squares: Sequence[int], diamonds: Sequence[int]) -> Tensor:
    """Each mask, or where it shrinks what it leaves free, grown by a square and then by a diamond of these radii.

    Args:
        mask: (B, 1, H, W) bool, of one pixel at least, in memory as it likes.
        shrinks, squares, diamonds: one for each mask.

    Returns:
        (B, 1, H, W) bool, a new tensor.
    """
    masks = mask.numpy().view(np.uint8)
    result = np.empty(masks.shape, np.bool_)
    for number, how in enumerate(zip(shrinks, squares, diamonds, strict=True)):
        _grow_one(masks[number, 0], result[number, 0].view(np.uint8), *how)
    return torch.from_numpy(result)


def _grow_one(mask_HW: Bytes, result_HW: Bytes, shrinks: bool, square: int, diamond: int) -> None:
    height, width = mask_HW.shape
    # Nothing is further away than the last row or column.
    along, down, steps = min(square, width - 1), min(square, height - 1), min(diamond, height + width - 2)
    if not (along or down or steps):
        result_HW[:] = mask_HW
        return
    stripes_RW = _packed(mask_HW, beyond=shrinks)
    if shrinks:  # grow the complement, whose outside is empty
        stripes_RW = ~stripes_RW
    if along or down:
        row = width + along
        flat_N = _windows(_surrounded(stripes_RW, down, along), 1, 2 * along + 1)
        stripes_RW = _windows(flat_N, row, 2 * down + 1).reshape(-1, row)[:, :width]
    if steps:
        stripes_RW = _grown_by_diamond(stripes_RW, steps)
    _unpack(stripes_RW, result_HW, flipped=shrinks)


def _packed(mask_HW: Bytes, beyond: bool) -> Bytes:
    """(R, W): the stripes of a mask of 0 and 1; `beyond` is what the last stripes hold below the mask."""
    height, width = mask_HW.shape
    if missing := -height % STRIPES:
        mask_HW = np.concatenate([mask_HW, np.full((missing, width), beyond, np.uint8)])
    flat_N = mask_HW.reshape(-1)
    for bits in (4, 2, 1):
        half = flat_N.size // 2
        # NumPy multiplies bytes several times faster than it shifts them to the left.
        lower = flat_N[half:] * POWERS[bits]
        lower |= flat_N[:half]
        flat_N = lower
    return flat_N.reshape(-1, width)


def _unpack(stripes_RW: Bytes, result_HW: Bytes, flipped: bool) -> None:
    """Write the pixels of the stripes, or their complement, as 0 and 1 into a contiguous result."""
    height, width = result_HW.shape
    rows = STRIPES * len(stripes_RW)
    pixels_HW = result_HW if rows == height else np.empty((rows, width), np.uint8)
    pixels_8N = pixels_HW.reshape(STRIPES, -1)
    np.bitwise_and(stripes_RW.reshape(-1), BITS_81, out=pixels_8N)
    compare = np.equal if flipped else np.not_equal
    compare(pixels_8N, NUMBERS[0], out=pixels_8N.view(np.bool_))
    if rows != height:
        result_HW[:] = pixels_HW[:height]


def _surrounded(stripes_RW: Bytes, rows: int, columns: int) -> Bytes:
    """(N,): the stripes with what lies up to `rows` above and below, and `columns` empty bytes before each row.

    A row is W + columns long, and as many columns follow the last: N is (R + 2 * rows) * (W + columns) + 2 * columns,
    of which windows of 2 * columns + 1 leave whole rows.
    """
    height, width = stripes_RW.shape
    tall, row = height + 2 * rows, width + columns
    flat_N = np.zeros(tall * row + 2 * columns, np.uint8)
    canvas = flat_N[columns : columns + tall * row].reshape(tall, row)
    middle = canvas[rows : rows + height]
    middle[:, :width] = stripes_RW
    # A whole stripe away lies the same byte, a bit further; beyond the eighth nothing.
    for turn, there in enumerate(range(0, min(rows, (STRIPES - 1) * height), height), start=1):
        count = min(height, rows - there)
        above, below = rows - there - count, rows + height + there
        np.multiply(middle[height - count :], POWERS[turn], out=canvas[above : above + count])
        np.right_shift(middle[:count], NUMBERS[turn], out=canvas[below : below + count])
    return flat_N


def _grown_by_diamond(stripes_RW: Bytes, radius: int) -> Bytes:
    """(R, W): the OR of all within |dx| + |dy| <= `radius`, which is 1 or more.

    The diamond is the 3x3 cross, then the diamond of radius m = radius - 1 without every other pixel, as a chess board
    has them: up to m steps down and right, then up to m down and left, from the pixel m rows above.
    """
    width = stripes_RW.shape[1]
    row = width + radius
    flat_N = _surrounded(stripes_RW, radius, radius)
    # The cross of each byte from the first that a step leaves. It reaches a pixel outside the frame, from where the
    # steps lead back into it; rows are far enough apart that none leads into another row.
    first, last = row + radius, len(flat_N) - row - radius
    crosses_N = flat_N[first:last].copy()
    for away in (-row, -1, 1, row):
        crosses_N |= flat_N[first + away : last + away]
    down_left_N = _windows(_windows(crosses_N, row + 1, radius), row - 1, radius)
    return down_left_N.reshape(-1, row)[:, :width]


def _windows(flat_N: Bytes, neighbour: int, length: int) -> Bytes:
    """(N - (length - 1) * neighbour,): from each byte on, the OR of `length` bytes that lie `neighbour` apart.

    The OR of twice as many is made from two that adjoin, and at last any number from two that overlap: log2 of the
    length steps instead of its length.
    """
    reached = 1
    while reached < length:
        further = min(reached, length - reached)
        shift = further * neighbour
        flat_N = flat_N[:-shift] | flat_N[shift:]
        reached += further
    return flat_N
