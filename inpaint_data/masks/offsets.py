"""Mask offsets: the distribution that the offset of a mask, and its window, are drawn from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from inpaint_data.errors import UsageError
from inpaint_data.masks.morphology import WINDOWS, Window
from inpaint_data.masks.parameters import is_number
from inpaint_data.shown import meant

MAX_OFFSET = 128  # the node's range
Distribution = Literal["fixed", "uniform", "normal", "two-sided"]
USED = {"fixed": ("value",), "uniform": ("low", "high"), "normal": ("mean", "deviation"), "two-sided": ("low", "high")}


@dataclass(frozen=True)
class RandomOffset:
    """A distribution of offsets in pixels: > 0 grows a mask, < 0 shrinks it. Draws are kept within -128...128.

    Jitter of object masks is described by SmartBrush (its mask precision) and Omnieraser; their public code has none.

    Args:
        distribution: "fixed" (`value`), "uniform" (between `low` and `high`, both included), "normal" (`mean`,
            `deviation`) or "two-sided" (a size between `low` and `high`, grown or shrunk equally often).
        value, low, high, mean, deviation: of the distribution; those that it does not use stay 0. Pixels, or with
            `relative` shares of the radius of the disc that has the mask's area: 0.1 grows a face by a tenth.
        relative: to the size of what is masked.
        zero: probability that the mask stays exact.
        windows: the shapes that masks grow by, "square", "octagon" or "cross" as `offset_mask` describes them. Of
            several, one is drawn for each mask.

    Raises:
        UsageError: an unknown distribution, a number it does not use, `low` above `high`, a negative size or
            deviation, pixels that are not whole where a uniform distribution needs them, anything outside -128...128,
            a `relative` that is not a bool; no window, or an unknown one.
    """

    distribution: Distribution = "uniform"
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 0.0
    relative: bool = False
    zero: float = 0.0
    windows: tuple[Window, ...] = ("square",)

    def __post_init__(self) -> None:
        if self.distribution not in tuple(USED):  # a list cannot be looked up in a dict
            raise UsageError(
                f"mask_offset: {self.distribution!r} is unknown; choose from {', '.join(USED)}"
                f"{meant(self.distribution, USED)}"
            )
        used = USED[self.distribution]
        if not isinstance(self.relative, bool):
            raise UsageError(f"mask_offset: relative: {self.relative!r} is neither true nor false; give one of them")
        for name in ("value", "low", "high", "mean", "deviation", "zero"):
            number = getattr(self, name)
            if not is_number(number):
                raise UsageError(f"mask_offset: {name}: {number!r} is not a number; give one")
            if number and name not in (*used, "zero"):
                raise UsageError(f"mask_offset: {self.distribution} takes {' and '.join(used)}, not {name}")
            if name != "zero" and abs(number) > MAX_OFFSET:
                unit = "radii" if self.relative else "pixels"
                raise UsageError(f"mask_offset: {name} {number} is outside -{MAX_OFFSET}...{MAX_OFFSET} {unit}")
            if not self.relative and name in ("value", "low", "high") and number != int(number):
                raise UsageError(
                    f"mask_offset: {name} {number} is not a whole number of pixels; set relative for shares"
                )
        if not 0 <= self.zero <= 1:
            raise UsageError(f"mask_offset: zero: {self.zero} is not between 0 and 1")
        if self.low > self.high:
            raise UsageError(f"mask_offset: the range [{self.low}, {self.high}] is empty; give the lower number first")
        sizes = ("deviation", "low") if self.distribution == "two-sided" else ("deviation",)
        for name in sizes:
            number = getattr(self, name)
            if number < 0:
                raise UsageError(
                    f"mask_offset: {name}: {number}, but {name} of a {self.distribution} offset is a size; "
                    "give 0 or more"
                )
        windows: Any = self.windows
        if not isinstance(windows, list | tuple) or not windows or not all(window in WINDOWS for window in windows):
            known = ", ".join(WINDOWS)
            raise UsageError(
                f"mask_offset: windows: {windows!r} is not a list of some of {known}; give, say, [octagon]"
            )
        object.__setattr__(self, "windows", tuple(self.windows))  # YAML and JSON have lists

    @property
    def bounds(self) -> tuple[int, int]:
        """The inclusive range that every offset is in."""
        if self.distribution == "normal":
            return -MAX_OFFSET, MAX_OFFSET
        low, high = (self.value, self.value) if self.distribution == "fixed" else (self.low, self.high)
        if self.distribution == "two-sided":
            low = -high
        if self.relative:
            low, high = MAX_OFFSET * np.sign(low), MAX_OFFSET * np.sign(high)
        if self.zero:
            low, high = min(low, 0), max(high, 0)
        # A relative offset may round to 0 from either side.
        return (int(min(low, 0)), int(max(high, 0))) if self.relative else (int(low), int(high))

    def draw(self, rng: np.random.Generator, mask: Any = None) -> int:
        """One offset in pixels.

        Args:
            rng: the generator of this one choice.
            mask: (..., H, W) bool before the offset, an array or a tensor; only needed with `relative`.

        Raises:
            UsageError: `relative`, and no mask was given.
        """
        return self.draw_for_area(rng, float(mask.sum()) if self.relative and mask is not None else None)

    def draw_for_area(self, rng: np.random.Generator, area: float | None) -> int:
        """One offset in pixels for a mask of which `area` pixels are masked, where that is known already."""
        if self.relative and area is None:
            raise UsageError("mask_offset: an offset relative to the mask's size needs the mask")
        unit = math.sqrt((area or 0.0) / math.pi) if self.relative else 1.0
        if self.distribution == "normal":
            offset = rng.normal(self.mean, self.deviation)
        elif self.distribution == "fixed":
            offset = self.value
        elif self.relative:
            offset = rng.uniform(self.low, self.high)
        else:
            offset = float(rng.integers(int(self.low), int(self.high) + 1))
        if self.distribution == "two-sided":
            offset *= 1 if rng.random() < 0.5 else -1
        # Last, so that the share of exact masks does not shift the other offsets.
        exact = rng.random() < self.zero
        return 0 if exact else round(min(max(offset * unit, -MAX_OFFSET), MAX_OFFSET))


Offset = int | tuple[int, int] | RandomOffset


def offset_settings(mask_offset: Offset) -> int | list[int] | dict[str, Any]:
    """The offset for JSON, as a cache's fingerprint has it."""
    if isinstance(mask_offset, RandomOffset):
        return asdict(mask_offset) | {"windows": list(mask_offset.windows)}
    return mask_offset if isinstance(mask_offset, int) else list(mask_offset)


def offset_from(settings: int | Sequence[int] | Mapping[str, Any]) -> Offset:
    """The offset that `offset_settings` was given."""
    if isinstance(settings, Mapping):
        return RandomOffset(**settings)
    return settings if isinstance(settings, int) else (settings[0], settings[1])


def check_offset(mask_offset: Offset) -> tuple[int, int]:
    """The inclusive range (low, high) of the offsets that `mask_offset` stands for.

    Raises:
        UsageError: low above high, or outside -128...128.
    """
    if isinstance(mask_offset, RandomOffset):
        return mask_offset.bounds
    pair: Any = (mask_offset, mask_offset) if isinstance(mask_offset, int) else mask_offset
    if not isinstance(pair, tuple | list) or [type(bound) for bound in pair] != [int, int]:
        raise UsageError(
            f"mask_offset: {mask_offset!r} is neither a whole number of pixels nor a range [low, high]; "
            "write 6 or [-8, 24]"
        )
    low, high = pair
    if low > high:
        raise UsageError(f"mask_offset: the range [{low}, {high}] is empty; give the lower number first")
    if low < -MAX_OFFSET or high > MAX_OFFSET:
        bounds = low if low == high else [low, high]
        raise UsageError(f"mask_offset: {bounds} is outside -{MAX_OFFSET}...{MAX_OFFSET} pixels; stay within")
    return low, high


def draw_offset(mask_offset: Offset, rng: np.random.Generator, area: float | None = None) -> int:
    """One offset in pixels for a mask of `area` pixels: uniform over the inclusive range, or from its distribution."""
    if isinstance(mask_offset, RandomOffset):
        return mask_offset.draw_for_area(rng, area)
    low, high = check_offset(mask_offset)
    return int(rng.integers(low, high + 1))


def windows_of(mask_offset: Offset) -> tuple[Window, ...]:
    """The windows from which each mask's is drawn."""
    return mask_offset.windows if isinstance(mask_offset, RandomOffset) else ("square",)


def draw_window(mask_offset: Offset, rng: np.random.Generator) -> Window:
    """The window of one mask, each equally likely."""
    windows = windows_of(mask_offset)
    return windows[int(rng.integers(len(windows)))]
