"""Views: the cuts that are made of an image, their sizes and their keys.

A view is an example of its own, with its own encode and key. Sizes are (height, width).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from inpaint_data.errors import SampleError, UsageError
from inpaint_data.pictures.geometry import Size
from inpaint_data.shown import meant

CROPS = ("center", "random", "mask")
Small = Literal["quarantine", "bucket"]
FLIPPED = "+flip"
LARGEST = 2**14  # pixels of a side: 16384² are three times what is decoded
WIDEST = 16  # aspect of a bucket
LEAST_AREA = 0.9  # of resolution²: with 64 pixels a step this gives SDXL's table of buckets, and no other
_SUFFIX = re.compile(r"_view(\d+)\Z")


@dataclass(frozen=True)
class View:
    """One cut: its number, its size, where it is cut ("center", "random" or "mask"), and whether it is mirrored.

    `unscaled` cuts take the image's pixels as they are.
    """

    number: int
    target: Size
    crop: str
    flip: bool
    unscaled: bool = False


@dataclass(frozen=True)
class Views:
    """The views of every image: each of `crops` at each of `resolutions`, in this order.

    Args:
        resolutions: a bucket has about this number of pixels squared; ascending.
        crops: "center", "random" or "mask", each perhaps with "+flip".
        upscale: enlarge images that are smaller than their bucket.
        max_aspect: of buckets, long side to short side; 1 has the square alone.
        step: of the sides of buckets that are not square, in pixels.
        small: what becomes of an image that is smaller than its bucket at the least resolution, and not enlarged.
    """

    resolutions: tuple[int, ...]
    crops: tuple[str, ...]
    upscale: bool
    max_aspect: float
    step: int
    small: Small = "quarantine"

    @property
    def count(self) -> int:
        return len(self.resolutions) * len(self.crops)

    def key(self, key: str, number: int) -> str:
        """The key of a sample's view: the sample's own key where there is only one view."""
        return key if self.count == 1 else f"{key}_view{number}"

    def resolution_of(self, number: int) -> int:
        """The resolution of a view, by its number."""
        return self.resolutions[number // len(self.crops)]

    def sample_key(self, key: str) -> str:
        """The key of the sample that a view is of."""
        return key if self.count == 1 else _SUFFIX.sub("", key)

    def crop_of(self, key: str) -> str:
        """The crop of the view of that key: "center", "random" or "mask"."""
        match = _SUFFIX.search(key) if self.count > 1 else None
        number = int(match[1]) if match else 0
        return self.crops[number % len(self.crops)].removesuffix(FLIPPED)

    def check_key(self, key: str) -> None:
        """Raises SampleError where a sample's own key could be that of another one's view."""
        if self.count > 1 and (match := _SUFFIX.search(key)):
            raise SampleError(f"its key ends in {match[0]}, as those of views do; rename it")

    def sizes(self) -> list[Size]:
        """All sizes that a view may have, sorted."""
        found = {size for resolution in self.resolutions for size in buckets(resolution, self.max_aspect, self.step)}
        if self.small == "bucket":
            found.update(small_buckets(self.resolutions[0], self.max_aspect, self.step))
        return sorted(found)

    def of(self, size: Size) -> list[View]:
        """The views of an image of `size`: at each resolution it is large enough for, all with `upscale`.

        Raises:
            SampleError: it is too small for any.
        """
        views = []
        for index, resolution in enumerate(self.resolutions):
            target = nearest(size, buckets(resolution, self.max_aspect, self.step))
            is_small = not self.upscale and (size[0] < target[0] or size[1] < target[1])
            if is_small and index:
                continue
            if is_small:
                target = self._small_target(size, target)
            for number, crop in enumerate(self.crops, index * len(self.crops)):
                views.append(View(number, target, crop.removesuffix(FLIPPED), crop.endswith(FLIPPED), is_small))
        return views

    def _small_target(self, size: Size, target: Size) -> Size:
        """The size for an image that is smaller than `target`. Raises SampleError where there is none."""
        least = self.resolutions[0]
        fits = small_bucket(size, least, self.max_aspect, self.step) if self.small == "bucket" else None
        if fits is not None:
            return fits
        bucket = f"its bucket of {target[0]}x{target[1]}" if self.max_aspect > 1 else f"resolution {least}"
        fixes = "lower the resolution, or set upscale: true or small: bucket"
        if self.small == "bucket":
            bucket, fixes = f"bucket_step {self.step}", "lower it, or set upscale: true"
        raise SampleError(f"image is {size[0]} high and {size[1]} wide, smaller than {bucket}; {fixes}")

    def check(self) -> None:
        """Raises UsageError where the settings cannot work."""
        bad = [side for side in self.resolutions if type(side) is not int or not 1 <= side <= LARGEST]
        if bad or not self.resolutions:
            problem = f"{bad[0]!r} is not a number of pixels from 1 to {LARGEST}" if bad else "none is given"
            fix = "try 512"
            if bad and (sides := re.fullmatch(r"([0-9]+) ?[xX*,:] ?([0-9]+)", str(bad[0]))):
                fix = (
                    f"it is the side of a square; write {sides[1]}, with max_aspect 2 for buckets of other aspects and "
                    f"about that area, or [{', '.join(sorted(sides.groups(), key=int))}] for views at both"
                )
            raise UsageError(f"resolution: {problem}; {fix}", ("resolution",))
        if list(self.resolutions) != sorted(set(self.resolutions)):
            raise UsageError(
                f"resolution: give {list(self.resolutions)} in ascending order, each once", ("resolution",)
            )
        for crop in self.crops or ("",):
            if not isinstance(crop, str) or crop.removesuffix(FLIPPED) not in CROPS:
                raise UsageError(
                    f"crop: {crop!r} is unknown; choose from {', '.join(CROPS)}, each perhaps with {FLIPPED}"
                    f"{meant(crop, CROPS)}",
                    ("crop",),
                )
        fixed = [crop for crop in self.crops if not crop.startswith("random")]
        if len(fixed) != len(set(fixed)):
            raise UsageError(
                f"crop: {', '.join(self.crops)} has the same view twice; name each once, but random", ("crop",)
            )
        if type(self.max_aspect) not in (int, float) or not 1 <= self.max_aspect <= WIDEST:
            raise UsageError(
                f"max_aspect: {self.max_aspect!r} is not an aspect of 1 to {WIDEST}; "
                "give 1 for squares, 2 for up to 2:1",
                ("max_aspect",),
            )
        if type(self.step) is not int or self.step < 1:
            raise UsageError(f"bucket_step: {self.step!r} is not a positive number of pixels; try 64", ("bucket_step",))
        if self.small == "bucket" and self.upscale:
            raise UsageError(
                "small: bucket is for images that are not enlarged, but upscale is true; choose one", ("small",)
            )
        if self.max_aspect > 1 and (undivided := [side for side in self.resolutions if side % self.step]):
            raise UsageError(
                f"bucket_step: {self.step} does not divide resolution {undivided[0]}; choose another", ("bucket_step",)
            )


@lru_cache(64)
def buckets(resolution: int, max_aspect: float, step: int) -> tuple[Size, ...]:
    """The sizes of about `resolution` squared pixels, never more and at least nine tenths of it, sorted.

    Sides are multiples of `step`, and the long one is at most `max_aspect` times the short one. 1024, 4 and 64 give the
    buckets of SDXL (appendix I of its report).
    """
    if max_aspect == 1:
        return ((resolution, resolution),)
    area = resolution * resolution
    return tuple(
        (height, width)
        for height in range(step, math.floor(resolution * max_aspect) + 1, step)
        for width in range(max(1, int(LEAST_AREA * area / height) // step) * step, area // height + 1, step)
        if height * width >= LEAST_AREA * area and max(height, width) <= max_aspect * min(height, width)
    )


@lru_cache(64)
def small_buckets(resolution: int, max_aspect: float, step: int) -> tuple[Size, ...]:
    """All sizes that `small_bucket` may give."""
    area = resolution * resolution
    return tuple(
        (height, width)
        for height in range(step, math.floor(resolution * max_aspect) + 1, step)
        for width in range(step, area // height + 1, step)
        if max(height, width) <= max_aspect * min(height, width)
    )


def small_bucket(size: Size, resolution: int, max_aspect: float, step: int) -> Size | None:
    """The size that an image too small for its bucket is cut to, without resizing: its sides, rounded down to `step`.

    What is longer than `max_aspect` allows, or makes more than `resolution` squared pixels, is cut off too. None where
    a side is shorter than `step`. Source: BucketManager.select_bucket with no_upscale in kohya-ss/sd-scripts,
    library/train_util.py (48d368f), equal to it up to `resolution` squared pixels.
    """
    short, long = (side // step * step for side in sorted(size))
    if not short:
        return None
    long = min(long, int(max_aspect * short) // step * step, resolution * resolution // short // step * step)
    return (short, long) if size[0] <= size[1] else (long, short)


def nearest(size: Size, sizes: Sequence[Size]) -> Size:
    """The bucket whose aspect is nearest to that of `size`, as a ratio; of equal ones the largest."""

    def apart(bucket: Size) -> float:
        # As a quotient of products, so that images on their side decide alike.
        products = (bucket[0] * size[1], bucket[1] * size[0])
        return max(products) / min(products)

    return min(sizes, key=lambda bucket: (apart(bucket), -bucket[0] * bucket[1], bucket))
