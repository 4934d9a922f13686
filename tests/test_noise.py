"""Noise is normal, and a function of seed, sample, number, purpose and place alone, down to the last bit."""

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from inpaint_data.encoding.noise import LARGEST_VALUE, normal_noise, on_cpu, on_device
from inpaint_data.seeding import number_for

SHAPE = (4, 64, 64)
NAMES = [f"shard\0{number}" for number in range(40)]


def split_mix(state: int) -> int:
    """One step of SplitMix64, as its paper writes it."""
    z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def words(start: int, count: int) -> list[int]:
    return [split_mix((start + at * 0x9E3779B97F4A7C15) % 2**64) for at in range(1, count + 1)]


def slow_noise(seed: int, sample: str, number: int, purpose: str, count: int) -> list[np.float32]:
    """The slow and obvious way, value by value."""
    quantiles = [NormalDist().inv_cdf((place + 0.5) / 65536) for place in range(65536)]
    scale = math.sqrt(32768 / math.fsum(value**2 for value in quantiles))
    table = [np.float32(value * scale) for value in quantiles]
    values: list[np.float32] = []
    for word in words(number_for(seed, sample, number, purpose) % 2**64, (count + 1) // 2):
        first, second, third, fourth = (word >> shift & 0xFFFF for shift in (0, 16, 32, 48))
        values += [table[first] + table[second], table[third] + table[fourth]]
    return values[:count]


def test_the_counter_is_the_published_one() -> None:
    # What java.util.SplittableRandom and the C of its authors give for seed 1234567.
    assert words(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("shape", [(7,), (1, 2, 3), (2, 4, 5, 5), (3, 31, 33)])
def test_noise_is_what_the_slow_way_gives(shape: tuple[int, ...]) -> None:
    noise = normal_noise(5, NAMES[:3], [2, 0, 9], "latents", shape)
    assert noise.shape == (3, *shape)
    assert noise.dtype == torch.float32
    for row, name, number in zip(noise, NAMES, [2, 0, 9], strict=False):
        assert row.flatten().tolist() == slow_noise(5, name, number, "latents", math.prod(shape))


@pytest.mark.parametrize(("samples", "count"), [(3, 1), (40, 8192), (3, 8193), (3, 2**20 + 5), (0, 7), (3, 0)])
def test_the_way_of_devices_has_the_bits_of_the_cpus(samples: int, count: int) -> None:
    starts = [number_for(0, name, 0, "latents") % 2**64 for name in NAMES[:samples]]
    ours, other = on_cpu(starts, count), on_device(starts, count, torch.device("cpu"))
    assert ours.shape == other.shape == (samples, 2 * count)
    assert torch.equal(ours, other)


def test_its_bits_stay_as_they_are() -> None:
    noise = normal_noise(0, NAMES, range(len(NAMES)), "latents", SHAPE)
    digest = hashlib.sha256(noise.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "78668b9b62c13178dbbb46318234ce29d605a3a001f97e7acd97ec5363517517"


def test_a_batch_has_the_noise_of_its_samples_however_large() -> None:
    large = (3, 700, 701)  # several of which are more than is made at once
    for shape, names in ((SHAPE, NAMES), (large, NAMES[:5])):
        together = normal_noise(1, names, [4] * len(names), "fill", shape)
        for row, name in zip(together, names, strict=True):
            assert torch.equal(row[None], normal_noise(1, [name], [4], "fill", shape))
    assert normal_noise(1, [], [], "fill", SHAPE).shape == (0, *SHAPE)
    assert normal_noise(1, NAMES, [0] * len(NAMES), "fill", (0, 4)).shape == (len(NAMES), 0, 4)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten().double(), other.flatten().double()]))[0, 1])


def test_seeds_samples_numbers_purposes_and_places_draw_independently() -> None:
    def of(seed: int = 0, name: str = "a", number: int = 0, purpose: str = "latents") -> Tensor:
        return normal_noise(seed, [name], [number], purpose, (1_000_000,))[0]

    noise = of()
    pairs = [(noise, other) for other in (of(seed=1), of(name="b"), of(number=1), of(purpose="masked_latents"))]
    pairs += [(noise[:-lag], noise[lag:]) for lag in (1, 2, 3, 64, 4096)]
    for one, other in pairs:
        assert abs(correlation(one, other)) < 0.005  # five standard errors
        assert abs(correlation(one.square(), other.square())) < 0.005


def test_noise_is_normal() -> None:
    count = 4_000_000
    noise = normal_noise(0, ["a"], [0], "latents", (count,))[0].double()
    assert abs(float(noise.mean())) < 5 / math.sqrt(count)
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / count)
    assert abs(float((noise**3).mean())) < 5 * math.sqrt(15 / count)
    assert abs(float((noise**4).mean()) - 3) < 5 * math.sqrt(96 / count)
    assert float(noise.abs().max()) < LARGEST_VALUE
    places = torch.arange(1, count + 1, dtype=torch.float64) / count
    furthest = (torch.special.ndtr(noise.sort().values) - places).abs().max()
    assert float(furthest) < 1.95 / math.sqrt(count)  # of Kolmogorov and Smirnov, which one of 1,000 passes
    for deviations in (2, 3, 4):
        expected = count * math.erfc(deviations / math.sqrt(2))
        assert abs(int((noise.abs() > deviations).sum()) - expected) < 5 * math.sqrt(expected)
