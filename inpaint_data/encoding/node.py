"""The ComfyUI node WAS_VAEEncodeForInpaint as a function, which needs nothing but torch."""

import sys
from typing import TYPE_CHECKING, Protocol, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_data.encoding.fills import fill_hole
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import UsageError
from inpaint_data.masks.morphology import offset_mask
from inpaint_data.masks.offsets import check_offset

if TYPE_CHECKING:
    from diffusers import ModelMixin


class NodeVae(Protocol):
    """A ComfyUI-style autoencoder: `encode` takes (N, H, W, C) float in [0, 1] and returns latents."""

    def encode(self, pixels: Tensor) -> Tensor: ...


class NodeLatents(TypedDict):
    samples: Tensor
    noise_mask: Tensor


def encode_for_inpaint(
    vae: "Autoencoder | ModelMixin | NodeVae", pixels: Tensor, mask: Tensor, mask_offset: int = 6
) -> NodeLatents:
    """The ComfyUI node WAS_VAEEncodeForInpaint, bit for bit in what the autoencoder is given and in the noise mask.

    Args:
        vae: an `Autoencoder`, a diffusers autoencoder, or anything else with `encode`, which is then called as
            ComfyUI does: (N, H', W', C) in [0, 1].
        pixels: (N, H, W, C) float in [0, 1], C >= 3; channels after the third pass through untouched.
        mask: (M, h, w), (M, 1, h, w) or (h, w) float, 1 = repaint, M = N or 1; resized bilinearly to the pixels' size.
        mask_offset: pixels to grow (> 0) or shrink (< 0) the mask by, -128...128.

    Returns:
        `samples`: the posterior's mode, raw (not multiplied by the scaling factor), or what `encode` returned;
        `noise_mask`: (M, 1, H', W') float, 0 or 1. H' and W' are H and W rounded down to the downscale factor.

    Raises:
        UsageError: an offset outside the range, wrong shapes, or an image smaller than the downscale factor.
    """
    check_offset(mask_offset)
    diffusers = sys.modules.get("diffusers")  # a model of its is only there where it is loaded
    if diffusers is not None and isinstance(vae, diffusers.ModelMixin):
        vae = Autoencoder(vae)
    pixels, mask = _node_inputs(pixels, mask, getattr(vae, "factor", 8))
    grown = offset_mask(mask, mask_offset)
    colours = fill_hole(pixels[..., :3].permute(0, 3, 1, 2), grown, "grey", low=0.0)
    encoded = torch.cat([colours.permute(0, 2, 3, 1), pixels[..., 3:]], -1)
    if isinstance(vae, Autoencoder):
        samples = vae.mode(vae.encode(encoded[..., :3].permute(0, 3, 1, 2) * 2 - 1))
    else:
        samples = vae.encode(encoded)
    return {"samples": samples, "noise_mask": grown.to(mask.dtype)}


def _node_inputs(pixels: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Bring the mask to the pixels' size, as (M, 1, H', W'), and crop both from the middle to the factor."""
    if pixels.ndim != 4 or pixels.shape[-1] < 3 or not pixels.is_floating_point():
        raise UsageError(
            f"pixels must be (N, H, W, 3 or more) float in [0, 1], not {pixels.dtype} {tuple(pixels.shape)}"
        )
    one_channel = mask.ndim in (2, 3) or (mask.ndim == 4 and mask.shape[1] == 1)
    if not one_channel or not mask.is_floating_point() or not mask.numel():
        raise UsageError(f"mask must be (M, h, w) or (h, w) float in [0, 1], not {mask.dtype} {tuple(mask.shape)}")
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    count, height, width = pixels.shape[:3]
    if mask.shape[0] not in (1, count):
        raise UsageError(f"there are {mask.shape[0]} masks but {count} images; give one mask, or one for each image")
    if height < factor or width < factor:
        raise UsageError(f"pixels are {height}x{width}, smaller than the VAE's downscale factor {factor}; enlarge them")
    mask = F.interpolate(mask, size=(height, width), mode="bilinear")
    top, left = height % factor // 2, width % factor // 2
    bottom, right = top + height // factor * factor, left + width // factor * factor
    return pixels[:, top:bottom, left:right], mask[:, :, top:bottom, left:right]
