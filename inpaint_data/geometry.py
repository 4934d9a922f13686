"""The box of a picture that is cut out and resized, the very same for image and mask."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from inpaint_data.errors import SampleError

Crop = Literal["center", "random"]


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes a square of `target_size`. Sizes and positions are (height, width) or (top, left).

    The whole picture is thought of as resized to `resized_size`, and `target_size` cut out of it at
    `crop_top_left`: SDXL's size conditioning.
    """

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    target_size: tuple[int, int]

    def apply(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Cut and resize (H, W, 3) or (H, W) uint8 of `original_size`: Lanczos with antialiasing, in one step."""
        if pixels.shape[:2] != self.original_size:
            raise ValueError(f"these are {pixels.shape[:2]} pixels, but the box is for {self.original_size}")
        if self.resized_size == self.original_size:
            top, left = self.crop_top_left
            return pixels[top : top + self.target_size[0], left : left + self.target_size[1]]
        down, right = (o / r for o, r in zip(self.original_size, self.resized_size, strict=True))
        box = (
            self.crop_top_left[1] * right,
            self.crop_top_left[0] * down,
            min((self.crop_top_left[1] + self.target_size[1]) * right, self.original_size[1]),
            min((self.crop_top_left[0] + self.target_size[0]) * down, self.original_size[0]),
        )
        size = (self.target_size[1], self.target_size[0])
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, box=box))

    def apply_to_mask(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Cut and resize (H, W) bool like the image: a mask painted into the picture is found there again."""
        return self.apply(mask.astype(np.uint8) * 255) > 127


def plan(size: tuple[int, int], resolution: int, crop: Crop, rng: np.random.Generator, upscale: bool) -> Geometry:
    """Resize the short side to `resolution` and cut a square from the middle, or from a place that `rng` draws.

    Raises:
        SampleError: the picture is smaller than `resolution` and `upscale` is off.
    """
    short = min(size)
    if short < resolution and not upscale:
        raise SampleError(
            f"image is {size[0]} high and {size[1]} wide, smaller than resolution {resolution}; "
            "lower the resolution or set upscale: true"
        )
    resized = (round(size[0] * resolution / short), round(size[1] * resolution / short))
    spare = (resized[0] - resolution, resized[1] - resolution)
    if crop == "center":
        top_left = (spare[0] // 2, spare[1] // 2)
    else:
        top_left = (int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1)))
    return Geometry(size, resized, top_left, (resolution, resolution))
