"""Standard normal noise that is made where it is used, with the same bits on every device.

Every value is a function of (seed, sample, number, purpose) and its place, by a counter: SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", 2014), begun where `seeding` says. Each of its words of 64 bits
gives two values, and each value is the sum of two normal ones of half the variance, out of a table of 65,536 quantiles.
Whole numbers, a table and one addition: nothing that devices or versions round differently.
"""

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inpaint_data.masks.morphology_device import to_device
from inpaint_data.seeding import number_for

CPU = torch.device("cpu")
LARGEST_VALUE = 6.1  # in deviations: twice the last quantile, of half the variance
_QUANTILES = 2**16
_IN_CPU_CACHE = 2**13  # words; they and what is made of them take 256 KiB
_AT_ONCE = 2**21  # words on a device; they and what is made of them take 80 MiB
_STEP = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))  # a shift, and what is multiplied by then


def normal_noise(
    seed: int,
    samples: Sequence[str],
    numbers: Sequence[int],
    purpose: str,
    shape: tuple[int, ...],
    device: torch.device = CPU,
) -> Tensor:
    """The noise of several samples.

    Args:
        seed: of all of it.
        samples: their `sample_id`s.
        numbers: of their variants or epochs, one for each.
        purpose: what it is for; others draw independently.
        shape: of the noise of one.
        device: where it is made; the bits are the same on any.

    Returns:
        (B, *shape) float32, from -LARGEST_VALUE to LARGEST_VALUE.
    """
    starts = [
        number_for(seed, sample, number, purpose) % 2**64 for sample, number in zip(samples, numbers, strict=True)
    ]
    count = math.prod(shape)
    words = (count + 1) // 2
    noise = on_cpu(starts, words) if device.type == "cpu" else on_device(starts, words, device)
    return noise[:, :count].reshape(len(starts), *shape)


def on_cpu(starts: Sequence[int], words: int) -> Tensor:
    """(len(starts), 2 * words) values, from that many words behind each start, a cacheful at a time."""
    values = np.empty((len(starts), 2 * words), np.float32)
    steps = np.arange(1, min(words, _IN_CPU_CACHE) + 1, dtype=np.uint64) * np.uint64(_STEP)
    mixed, shifted = np.empty_like(steps), np.empty_like(steps)
    halves = np.empty(4 * len(steps), np.float32)
    for start, row in zip(starts, values, strict=True):
        for first in range(0, words, _IN_CPU_CACHE):
            count = min(_IN_CPU_CACHE, words - first)
            word, other, half = mixed[:count], shifted[:count], halves[: 4 * count]
            np.add(steps[:count], np.uint64((start + first * _STEP) % 2**64), out=word)
            for shift, factor in _ROUNDS:
                np.right_shift(word, np.uint64(shift), out=other)
                np.bitwise_xor(word, other, out=word)
                if factor is not None:
                    np.multiply(word, np.uint64(factor), out=word)
            # Each word is four numbers of 16 bits, in the order of their bits.
            np.take(_quantiles(), word.astype("<u8", copy=False).view("<u2"), out=half, mode="clip")
            np.add(half[0::2], half[1::2], out=row[2 * first : 2 * (first + count)])
    return torch.from_numpy(values)


def on_device(starts: Sequence[int], words: int, device: torch.device) -> Tensor:
    """As `on_cpu`, on any device, all samples at once; nothing waits for it."""
    values = torch.empty((len(starts), words, 2), dtype=torch.float32, device=device)
    steps = torch.arange(1, words + 1, dtype=torch.int64, device=device) * _signed(_STEP)
    begun = to_device(torch.tensor(list(map(_signed, starts)), dtype=torch.int64, device=CPU), device)[:, None]
    rows = max(1, _AT_ONCE // max(1, words))
    for first in range(0, len(starts), rows):
        part = values[first : first + rows]
        word = steps + begun[first : first + rows]
        for shift, factor in _ROUNDS:
            word ^= (word >> shift).bitwise_and_(2 ** (64 - shift) - 1)  # without the sign, which torch shifts in
            if factor is not None:
                word *= _signed(factor)
        places = word.view(torch.int32).view(torch.int16).to(torch.int32).bitwise_and_(_QUANTILES - 1).flatten()
        halves = _quantiles_on(device).index_select(0, places).view(*part.shape, 2)
        torch.add(halves[..., 0], halves[..., 1], out=part)
    return values.flatten(1)


def _signed(number: int) -> int:
    """A number of 64 bits as torch has them."""
    return number - 2**64 if number >= 2**63 else number


@cache
def _quantiles() -> npt.NDArray[np.float32]:
    """(65536,) quantiles of a normal distribution, of which two that are independent add up to variance 1."""
    quantiles = [NormalDist().inv_cdf((place + 0.5) / _QUANTILES) for place in range(_QUANTILES)]
    scale = math.sqrt(0.5 * _QUANTILES / math.fsum(value * value for value in quantiles))
    return np.array([value * scale for value in quantiles]).astype(np.float32)


@cache
def _quantiles_on(device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(_quantiles()), device)
