"""Bands of numbers that statistics are counted in."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bands:
    """Neighbouring ranges of a number, by name: each reaches from the one before up to and including its `ends`."""

    names: tuple[str, ...]
    ends: tuple[float, ...]

    def of(self, value: float) -> str:
        return self.names[bisect_left(self.ends, value)]


# The bands of the irregular-mask benchmark (Liu et al. 2018), which ends at 0.6, continued to 1.
HOLES = Bands(
    ("empty", "to 0.01", "to 0.1", "to 0.2", "to 0.3", "to 0.4", "to 0.5", "to 0.6", "to 0.7", "to 0.8", "to 0.9",
     "to 1"),
    (0, 0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
)  # fmt: skip
OFFSETS = Bands(
    ("-128...-65", "-64...-33", "-32...-17", "-16...-9", "-8...-1", "0", "1...8", "9...16", "17...32", "33...64",
     "65...128"),
    (-65, -33, -17, -9, -1, 0, 8, 16, 32, 64, 128),
)  # fmt: skip
PIECES = Bands(("0", "1", "2", "3-4", "5-8", "9-16", "17 or more"), (0, 1, 2, 4, 8, 16, float("inf")))
ASPECTS = Bands(
    ("1:2 or taller", "1:2 to 2:3", "2:3 to 4:5", "within 5:4", "5:4 to 3:2", "3:2 to 2:1", "over 2:1"),
    (1 / 2, 2 / 3, 4 / 5, 5 / 4, 3 / 2, 2, float("inf")),
)
RESOLUTIONS = Bands(
    ("to 128", "to 256", "to 384", "to 512", "to 768", "to 1024", "to 1536", "to 2048", "over 2048"),
    (128, 256, 384, 512, 768, 1024, 1536, 2048, float("inf")),
)  # of the short side, in pixels


def by_band(numbers: Counter[int], bands: Bands) -> Counter[str]:
    """The counts of numbers as counts of bands."""
    result: Counter[str] = Counter()
    for number, count in numbers.items():
        result[bands.of(number)] += count
    return result


def in_band_order(counts: Counter[str], bands: Bands) -> dict[str, int]:
    """The count of every band, in the order of the bands."""
    return {name: counts[name] for name in bands.names}


def spread(numbers: Counter[int]) -> dict[str, float]:
    """Least, mean and greatest of the numbers."""
    mean = sum(number * count for number, count in numbers.items()) / max(1, numbers.total())
    return {"min": min(numbers, default=0), "mean": round(mean, 3), "max": max(numbers, default=0)}


def aspects(sizes: Counter[tuple[int, int]]) -> Counter[str]:
    """Images by the band of width to height."""
    result: Counter[str] = Counter()
    for (height, width), count in sizes.items():
        result[ASPECTS.of(width / height)] += count
    return result


def short_sides(sizes: Counter[tuple[int, int]]) -> Counter[int]:
    result: Counter[int] = Counter()
    for size, count in sizes.items():
        result[min(size)] += count
    return result


def image_sizes(sizes: Counter[tuple[int, int]]) -> dict[str, Any]:
    short = short_sides(sizes)
    common = [{"height": height, "width": width, "samples": n} for (height, width), n in sizes.most_common(20)]
    return {
        "short_side": spread(short) | {"bands": in_band_order(by_band(short, RESOLUTIONS), RESOLUTIONS)},
        "aspect": in_band_order(aspects(sizes), ASPECTS),
        "sizes": len(sizes),
        "most_common": common,
    }
