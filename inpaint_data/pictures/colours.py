"""The colours of decoded pixels in sRGB, as the profile in their file says."""

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Uint8Array = npt.NDArray[np.uint8]
MAX_PROFILE = 2**22  # bytes; those of printing presses, the largest, stay below
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of a profile -> Pillow's mode


def in_srgb(pixels: Uint8Array, is_grey: bool, profile: bytes | None) -> Uint8Array:
    """Pixels as (H, W, 3) uint8 sRGB.

    Args:
        pixels: (H, W, 3) of red, green and blue, or (H, W, 4) of ink, 255 = full.
        is_grey: whether the file has but one colour.
        profile: the ICC profile of the file. Where it is broken or of another kind of picture, the pixels stay as they
            are, as viewers leave them; so they do, to the last bit, where it is sRGB by its numbers.
    """
    mode = "CMYK" if pixels.shape[2] == 4 else "RGB"
    transform = _transform(profile) if profile and len(profile) <= MAX_PROFILE else None
    if transform is not None and transform[0] == mode:
        return _applied(transform[1], _image(pixels))
    if transform is not None and transform[0] == "L" and is_grey:
        return _applied(transform[1], Image.fromarray(np.ascontiguousarray(pixels[..., 0])))
    return pixels if mode == "RGB" else np.asarray(_image(pixels).convert("RGB"))


def _image(pixels: Uint8Array) -> Image.Image:
    if pixels.shape[2] == 3:
        return Image.fromarray(pixels)
    return Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Uint8Array:
    return np.asarray(transform.apply(image))


@lru_cache(maxsize=32)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """The mode of pixels that a profile is for, and how they come to sRGB; None where they stay as they are."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES[source.profile.xcolor_space]
        # Pillow's default intent. The profiles of screens and cameras have a matrix and no tables, and give the same
        # with it as with the relative colorimetric one.
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL
        )
        return None if _changes_nothing(mode, transform) else (mode, transform)
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError, TypeError):
        return None


def _changes_nothing(mode: str, transform: ImageCms.ImageCmsTransform) -> bool:
    """True where a transform to sRGB moves no colour by more than the rounding of a profile's own numbers."""
    if mode == "CMYK":
        return False
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    colours = ramp if mode == "L" else np.concatenate([ramp, grid], axis=1)
    image = Image.fromarray(np.ascontiguousarray(colours[..., 0]) if mode == "L" else colours)
    return bool(abs(_applied(transform, image).astype(np.int16) - colours).max() <= 1)
