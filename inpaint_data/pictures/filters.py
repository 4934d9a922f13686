"""Filters: samples that are left out on purpose are counted and listed, and are not failures."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import FilteredError, UsageError
from inpaint_data.pictures.geometry import Size


@dataclass(frozen=True)
class Filters:
    """Conditions that a sample must meet to be used; the defaults accept all.

    Args:
        min_side: least short side of the image, in pixels.
        max_aspect: greatest long side to short side of the image; 0 accepts any.
        min_hole, max_hole: least and greatest share of the view that each of its masks covers, before the offset.
        caption: whether it must have a caption.

    Raises:
        UsageError: a number outside its range, or limits the wrong way round.
    """

    min_side: int = 0
    max_aspect: float = 0.0
    min_hole: float = 0.0
    max_hole: float = 1.0
    caption: bool = False

    def __post_init__(self) -> None:
        if type(self.min_side) is not int or self.min_side < 0:
            raise UsageError(f"filters: min_side: {self.min_side!r} is not a number of pixels; give 0 or more")
        for name in ("max_aspect", "min_hole", "max_hole"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
                raise UsageError(f"filters: {name}: {value!r} is not a finite number, 0 or more; give one")
        if type(self.caption) is not bool:
            raise UsageError(f"filters: caption: {self.caption!r} is neither true nor false")
        if 0 < self.max_aspect < 1:
            raise UsageError(f"filters: max_aspect: {self.max_aspect} lets nothing through; give 1 or more")
        if not self.min_hole <= self.max_hole <= 1:
            raise UsageError(
                f"filters: min_hole {self.min_hole} and max_hole {self.max_hole} let nothing through; "
                "give 0 <= min_hole <= max_hole <= 1"
            )

    @property
    def of_images(self) -> bool:
        """Whether any filter tells by the image's size and caption alone, before anything is decoded."""
        return bool(self.min_side or self.max_aspect or self.caption)

    def check_image(self, size: Size, caption: str) -> None:
        """Raises FilteredError, whose message begins with the filter's name, for an image that is left out."""
        short, long = sorted(size)
        if short < self.min_side:
            raise FilteredError(f"min_side: the image's short side has {short} pixels, fewer than {self.min_side}")
        if self.max_aspect and long > self.max_aspect * short:
            raise FilteredError(f"max_aspect: the image is {long / short:.3g} to 1, more than {self.max_aspect:g}")
        if self.caption and not caption:
            raise FilteredError("caption: the sample has none")

    def check_box(self, mask: npt.NDArray[np.bool_]) -> None:
        """Raises FilteredError for an empty mask that a view is to be cut around, where `min_hole` is set."""
        if self.min_hole and not mask.any():
            raise FilteredError(f"min_hole: nothing is masked, less than {self.min_hole:g} of any view")

    def check_masks(self, masks: npt.NDArray[np.bool_]) -> None:
        """Raises FilteredError where one of the masks (K, H, W) of a view covers too little or too much."""
        for ratio in masks.mean((1, 2)).tolist():
            if ratio < self.min_hole:
                raise FilteredError(f"min_hole: a mask covers {ratio:.3g} of the view, less than {self.min_hole:g}")
            if ratio > self.max_hole:
                raise FilteredError(f"max_hole: a mask covers {ratio:.3g} of the view, more than {self.max_hole:g}")
