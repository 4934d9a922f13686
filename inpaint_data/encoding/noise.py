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

import torch
from torch import Tensor

from inpaint_data.masks.morphology_device import to_device
from inpaint_data.seeding import number_for

CPU = torch.device("cpu")
LARGEST_VALUE = 6.1  # in deviations: twice the last quantile, of half the variance
_QUANTILES = 2**16
_WORDS_AT_ONCE = 2**21  # 16 MiB of counters; what follows from them takes four times as much
_STEP, _FIRST_FACTOR, _SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


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
        _signed(number_for(seed, sample, number, purpose)) for sample, number in zip(samples, numbers, strict=True)
    ]
    count = math.prod(shape)
    words = (count + 1) // 2
    noise = torch.empty((len(starts), words, 2), dtype=torch.float32, device=device)
    counters = torch.arange(1, words + 1, dtype=torch.int64, device=device) * _signed(_STEP)
    begun = to_device(torch.tensor(starts, dtype=torch.int64, device=CPU), device)[:, None]
    rows = max(1, _WORDS_AT_ONCE // max(1, words))
    for first in range(0, len(starts), rows):
        # Each word as four numbers of 16 bits, in the order of their bits.
        part = noise[first : first + rows]
        quarters = _mixed(counters + begun[first : first + rows]).view(torch.int32).view(torch.int16)
        places = quarters.to(torch.int32).bitwise_and_(_QUANTILES - 1).flatten()
        halves = _quantiles(device).index_select(0, places).view(*part.shape, 2)
        torch.add(halves[..., 0], halves[..., 1], out=part)
    return noise.flatten(1)[:, :count].reshape(len(starts), *shape)


def _signed(number: int) -> int:
    """The lowest 64 bits of a number, as torch has them."""
    return (number + 2**63) % 2**64 - 2**63


def _mixed(words: Tensor) -> Tensor:
    """Words of a counter as ones that look random, in place."""
    for shift, factor in ((30, _FIRST_FACTOR), (27, _SECOND_FACTOR), (31, 1)):
        words ^= (words >> shift).bitwise_and_(2 ** (64 - shift) - 1)  # without the sign, which torch shifts in
        words *= _signed(factor)
    return words


@cache
def _quantiles(device: torch.device) -> Tensor:
    """(65536,) float32: quantiles of a normal distribution, of which two that are independent add up to variance 1."""
    quantiles = [NormalDist().inv_cdf((place + 0.5) / _QUANTILES) for place in range(_QUANTILES)]
    scale = math.sqrt(0.5 * _QUANTILES / math.fsum(value * value for value in quantiles))
    return to_device(torch.tensor([value * scale for value in quantiles], dtype=torch.float32, device=CPU), device)
