"""Lanczos by torch, for bytes: three to seven times as fast as Pillow's, and within 2 of 255 levels."""

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from inpaint_data.errors import UsageError
from inpaint_data.pictures.geometry import Size


def resized_by_torch(pixels: npt.NDArray[np.uint8], original: Size, reduced: int, size: Size) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8, reduced from an `original` size, brought to `size` with torch's Lanczos for bytes.

    Its weights have 16 bits where Pillow's have 32, which a vector unit multiplies many of at once.
    """
    planes = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
    if pixels.shape[:2] == original:
        resized = functional.interpolate(planes, size, mode="lanczos", antialias=True)
    else:  # the last row and column may stand for less than the others; a little more, so that no size is rounded down
        factors = tuple(new * reduced / old * (1 + 1e-9) for new, old in zip(size, original, strict=True))
        resized = functional.interpolate(
            planes, scale_factor=factors, mode="lanczos", antialias=True, recompute_scale_factor=False
        )
    return resized[0].permute(1, 2, 0).numpy()


@cache
def check_torch_resizes() -> None:
    """Raises UsageError where this torch has no Lanczos for bytes."""
    try:
        resized_by_torch(np.zeros((4, 4, 3), np.uint8), (4, 4), 1, (2, 2))
    except (NotImplementedError, ValueError, RuntimeError):
        raise UsageError(
            f"resize: torch {torch.__version__} has no Lanczos; install 2.13 or newer, or choose pillow",
            ("pictures", "resize"),
        ) from None
