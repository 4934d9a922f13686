"""Which samples are left out on purpose: counted and listed, unlike bad ones no failure."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import FilteredError, UsageError
from inpaint_data.pictures.geometry import Size


@dataclass(frozen=True)
class Filters:
    """What a sample must have to be taken; the defaults take all.

    Args:
        min_side: least short side of the picture, in pixels.
        max_aspect: greatest long side to short side of the picture; 0 takes any.
        min_hole, max_hole: least and greatest share of the view that each of its masks covers, before the offset.
        caption: whether it must have a caption.

    Raises:
        UsageError: a number that cannot be, or limits the wrong way round.
    """

    min_side: int = 0
    max_aspect: float = 0.0
    min_hole: float = 0.0
    max_hole: float = 1.0
    caption: bool = False

    def __post_init__(self) -> None:
        if type(self.min_side) is not int or self.min_side < 0:
            raise UsageError(f"filters: min_side: {self.min_side!r} is no number of pixels; give 0 or more")
        for name in ("max_aspect", "min_hole", "max_hole"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
                raise UsageError(f"filters: {name}: {value!r} cannot be; give a number, 0 or more")
        if type(self.caption) is not bool:
            raise UsageError(f"filters: caption: {self.caption!r} is neither true nor false")
        if 0 < self.max_aspect < 1:
            raise UsageError(f"filters: max_aspect: {self.max_aspect} lets nothing through; give 1 or more")
        if not self.min_hole <= self.max_hole <= 1:
            raise UsageError(
                f"filters: min_hole {self.min_hole} and max_hole {self.max_hole} let nothing through; "
                "give 0 <= min_hole <= max_hole <= 1"
            )

    def check_picture(self, size: Size, caption: str) -> None:
        """Raises FilteredError, whose message begins with the filter's name, for a picture that is left out."""
        short, long = sorted(size)
        if short < self.min_side:
            raise FilteredError(f"min_side: the picture's short side has {short} pixels, fewer than {self.min_side}")
        if self.max_aspect and long > self.max_aspect * short:
            raise FilteredError(f"max_aspect: the picture is {long / short:.3g} to 1, beyond {self.max_aspect:g}")
        if self.caption and not caption:
            raise FilteredError("caption: the sample has none")

    def check_box(self, mask: npt.NDArray[np.bool_]) -> None:
        """The same for a mask that a view is to be cut around, which it cannot be where nothing is masked."""
        if self.min_hole and not mask.any():
            raise FilteredError(f"min_hole: nothing is masked, less than {self.min_hole:g} of any view")

    def check_masks(self, masks: npt.NDArray[np.bool_]) -> None:
        """The same for the masks (K, H, W) of a view."""
        for ratio in masks.mean((1, 2)).tolist():
            if ratio < self.min_hole:
                raise FilteredError(f"min_hole: a mask covers {ratio:.3g} of the view, less than {self.min_hole:g}")
            if ratio > self.max_hole:
                raise FilteredError(f"max_hole: a mask covers {ratio:.3g} of the view, more than {self.max_hole:g}")
