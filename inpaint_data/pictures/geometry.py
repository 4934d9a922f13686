"""The box of an image that is cut out, resized and perhaps mirrored: the same for image, mask and target.

Sizes and positions are (height, width) or (top, left) everywhere in this file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from inpaint_data.errors import SampleError

Size = tuple[int, int]
Resize = Literal["pillow", "torch"]
REDUCTIONS = (1, 2, 4, 8)  # by which a JPEG can be decoded smaller


@dataclass(frozen=True)
class Geometry:
    """The way from an image to its cut of `target_size`.

    The whole image is thought of as resized to `resized_size`, then mirrored where `flip` is set, and `target_size`
    cut out of that at `crop_top_left`: SDXL's size conditioning.
    """

    original_size: Size
    resized_size: Size
    crop_top_left: Size
    target_size: Size
    flip: bool = False

    def apply(self, pixels: npt.NDArray[np.uint8], resize: Resize = "pillow") -> npt.NDArray[np.uint8]:
        """Cut and resize (H, W, 3) or (H, W) uint8: Lanczos with antialiasing, in one step.

        Args:
            pixels: of `original_size`, or of its `reduced_size`; a box lies at the same place of both.
            resize: whose Lanczos; "torch" takes (H, W, 3) alone, and resizes what is not cut out too.
        """
        shape = pixels.shape[:2]
        reduced = next((by for by in REDUCTIONS if reduced_size(self.original_size, by) == shape), None)
        if reduced is None:
            raise ValueError(f"these are {shape} pixels, but the box is for {self.original_size}")
        cut = self._cut(pixels, reduced, resize)
        return cut[:, ::-1] if self.flip else cut

    def _cut(self, pixels: npt.NDArray[np.uint8], reduced: int, resize: Resize) -> npt.NDArray[np.uint8]:
        top, left = self.crop_top_left
        if self.flip:
            left = self.resized_size[1] - self.target_size[1] - left
        if self.original_size == (self.resized_size[0] * reduced, self.resized_size[1] * reduced):
            return pixels[top : top + self.target_size[0], left : left + self.target_size[1]]
        if resize == "torch" and not self._is_nearly_there(pixels, reduced):
            from inpaint_data.pictures.torch_resize import resized_by_torch  # settings are read without torch

            resized = resized_by_torch(pixels, self.original_size, reduced, self.resized_size)
            return resized[top : top + self.target_size[0], left : left + self.target_size[1]]
        height, width = (side / reduced for side in self.original_size)
        down, right = height / self.resized_size[0], width / self.resized_size[1]
        box = (
            left * right,
            top * down,
            min((left + self.target_size[1]) * right, width),
            min((top + self.target_size[0]) * down, height),
        )
        size = (self.target_size[1], self.target_size[0])
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, box=box))

    def _is_nearly_there(self, pixels: npt.NDArray[np.uint8], reduced: int) -> bool:
        """Whether a side has as many pixels as it is to have, but the last of them stands for less than the others.

        torch leaves such a side as it is.
        """
        sides = zip(pixels.shape, self.resized_size, self.original_size, strict=False)
        return any(side == new and side * reduced != old for side, new, old in sides)

    def apply_to_mask(self, levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Cut and resize a mask like the image, then make it hard: one painted into the image is found there again.

        Args:
            levels: (H, W), 128 and more = repaint.
        """
        return self.apply(levels) > 127


def reduced_size(size: Size, by: int) -> Size:
    """The size of a JPEG that is decoded that many times smaller."""
    return -(-size[0] // by), -(-size[1] // by)


def reduction(size: Size, targets: Iterable[Size], gap: float) -> int:
    """How many times smaller an image of `size` is decoded: at least `gap` times what covers any target is left."""
    scales = [old / new for target in targets for old, new in zip(size, target, strict=True)]
    return max(by for by in REDUCTIONS if by == 1 or by * gap <= min(scales, default=1))


def covering(size: Size, target: Size) -> Size:
    """The size that an image of `size` is resized to, until it just covers `target`."""
    axis = 0 if target[0] * size[1] >= target[1] * size[0] else 1  # the one that is used whole
    return round(size[0] * target[axis] / size[axis]), round(size[1] * target[axis] / size[axis])


def fitted(pixels: npt.NDArray[np.uint8], size: Size, flip: bool) -> npt.NDArray[np.uint8]:
    """(H, W, 3) of any size brought whole into `size`, in the middle of white, as diffusers' WanVACEPipeline does."""
    scale = min(new / old for new, old in zip(size, pixels.shape, strict=False))
    height, width = (max(1, int(old * scale)) for old in pixels.shape[:2])
    canvas = np.full((*size, 3), 255, np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    canvas[top : top + height, left : left + width] = np.asarray(resized)
    return canvas[:, ::-1] if flip else canvas


def plan(
    size: Size,
    target: Size,
    crop: Literal["center", "random"],
    flip: bool,
    rng: np.random.Generator,
    unscaled: bool = False,
) -> Geometry:
    """Resize until `target` is just covered, unless `unscaled`; cut it from the middle, or from a place `rng` draws."""
    resized = size if unscaled else covering(size, target)
    spare = (resized[0] - target[0], resized[1] - target[1])
    if crop == "center":
        top_left = (spare[0] // 2, spare[1] // 2)
    else:
        top_left = (int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1)))
    return Geometry(size, resized, top_left, target, flip)


def plan_around(mask: npt.NDArray[np.bool_], target: Size, padding: int, flip: bool, upscale: bool) -> Geometry:
    """Cut the box of what is masked, as A1111's "only masked" and CropAndStitch do at inference.

    The box gets `padding` pixels of the original on each side, grows to the aspect of `target` and, unless `upscale`,
    to its size, and is shifted inside. One that the image has no room for is as large as the image allows, and
    where it cannot hold all that is masked it lies around the middle one of those pixels.

    Args:
        mask: (H, W) bool, of the original size.

    Raises:
        SampleError: nothing is masked.
    """
    if not mask.any():
        raise SampleError("nothing is masked, so there is no box to cut around it; leave the sample out")
    size = (mask.shape[0], mask.shape[1])
    places = [np.sort(axis) for axis in np.nonzero(mask)]  # rows and columns of all masked pixels
    extents = [int(axis[-1] - axis[0]) + 1 for axis in places]
    # How many pixels of the original become one of the target.
    needed_scale = max((extent + 2 * padding) / side for extent, side in zip(extents, target, strict=True))
    largest_scale = min(size[0] / target[0], size[1] / target[1])
    scale = min(needed_scale if upscale else max(needed_scale, 1.0), largest_scale)
    resized = tuple(max(side, round(extent / scale)) for side, extent in zip(target, size, strict=True))
    top_left = []
    for axis, extent, side, new, old in zip(places, extents, target, resized, size, strict=True):
        middle = axis[0] + extent / 2 if extent <= side * scale else axis[len(axis) // 2] + 0.5
        top_left.append(min(max(round(middle * new / old - side / 2), 0), new - side))
    if flip:
        top_left[1] = resized[1] - target[1] - top_left[1]
    return Geometry(size, (resized[0], resized[1]), (top_left[0], top_left[1]), target, flip)
