"""OpenCV, loaded when a mask is first drawn with it: masks are named, checked and grown without it."""

from types import ModuleType
from typing import Any

from inpaint_data.errors import UsageError


def __getattr__(name: str) -> Any:
    return getattr(_loaded(), name)


def _loaded() -> ModuleType:
    """Raises UsageError if it is not installed."""
    try:
        import cv2
    except ImportError:
        raise UsageError("drawing masks needs OpenCV; run `pip install opencv-python-headless`") from None
    return cv2
