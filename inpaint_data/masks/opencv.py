"""OpenCV, loaded when a mask is first drawn with it: masks are named, checked and grown without it."""

from typing import Any

from inpaint_data.errors import UsageError


class _MissingError(UsageError, AttributeError):
    """OpenCV is not installed. To whoever only looks whether a module has a name, as pickle does, it has none."""


def __getattr__(name: str) -> Any:
    """A function or a constant of OpenCV. Raises UsageError if that is not installed."""
    try:
        import cv2
    except ImportError:
        raise _MissingError("drawing masks needs OpenCV; run `pip install opencv-python-headless`") from None
    value = getattr(cv2, name)
    globals()[name] = value  # Python finds it by itself from now on
    return value
