"""What every mask generator needs: its types, whole numbers from a range, and drawing again until limits are met."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import UsageError

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
MaskGenerator = Callable[..., BoolArray]  # (height, width, rng, *, parameters)
Span = tuple[float, float]  # both ends belong to it
Count = tuple[int, int]
THICKEST = 32767  # pixels; OpenCV refuses more
TRIES = 1000  # a limit that one draw in fifty meets is missed once in 600 million times


def hole_ratio(mask: BoolArray) -> float:
    """The share of the image that is to be repainted."""
    return float(np.count_nonzero(mask) / mask.size)


def draw_within(low: float, high: float, draw: Callable[[], BoolArray], name: str) -> BoolArray:
    """The first of at most TRIES draws whose hole ratio is in [low, high].

    Raises:
        UsageError: none was.
    """
    ratios: list[float] = []
    for _ in range(TRIES):
        mask = draw()
        ratios.append(hole_ratio(mask))
        if low <= ratios[-1] <= high:
            return mask
    raise UsageError(
        f"mixture: {TRIES} draws of {name} at {mask.shape[0]}x{mask.shape[1]} had hole ratios of {min(ratios):.3g} to "
        f"{max(ratios):.3g}, none within {low:.3g} to {high:.3g}; widen the limits or choose another generator"
    )


def whole(rng: np.random.Generator, span: Count) -> int:
    """A whole number from the span, both ends included."""
    return int(rng.integers(span[0], span[1] + 1))
