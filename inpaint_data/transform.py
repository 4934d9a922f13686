"""From pictures and masks on the device to latents, masked latents and the masks as the model will see them.

Latents here are raw: what the autoencoder gives, before `Autoencoder.normalise`.
Shapes: B batch, K mask variants, C latent channels (2C for moments: mean, then log-variance), h w latent size.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict, cast

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor, nn

from inpaint_data.errors import UsageError
from inpaint_data.masks import check_offset, draw_offset
from inpaint_data.morphology import offset_mask
from inpaint_data.seeding import generator_for, noise_for
from inpaint_data.vae import Autoencoder
from inpaint_data.vae_loading import load_vae

Fill = Literal["grey", "black", "original"]
Posterior = Literal["mode", "sample", "moments"]
FILLS = ("grey", "black", "original")
POSTERIORS = ("mode", "sample", "moments")


class NodeVae(Protocol):
    """A ComfyUI-style autoencoder: `encode` takes (N, H, W, C) float in [0, 1] and returns latents."""

    def encode(self, pixels: Tensor) -> Tensor: ...


class NodeLatents(TypedDict):
    samples: Tensor
    noise_mask: Tensor


class Batch(TypedDict, total=False):
    """What a training step gets, live or from a cache, key for key.

    With one variant (K = 1) the K dimension of `masked_latents` and `offset` is left out.

    latents: (B, C, h, w) float32, raw; 2C channels with posterior "moments".
    masked_latents: (B, C, h, w) or (B, K, C, h, w), of the picture with the hole filled.
    mask: (B, K, H, W) bool at full resolution, after the offset, True = repaint.
    offset: (B,) or (B, K) int64, pixels.
    variant: (B,) or (B, K) int64, the number that mask and offset were drawn with.
    caption: B strings. original_size, crop_top_left, target_size: (B, 2) int64.
    """

    latents: Tensor
    masked_latents: Tensor
    mask: Tensor
    offset: Tensor
    variant: Tensor
    caption: list[str]
    generator: list[tuple[str, ...]]
    original_size: Tensor
    crop_top_left: Tensor
    target_size: Tensor
    carried: list[dict[str, bytes]]
    __key__: list[str]
    __shard__: list[str]


def fill_hole(pixels: Tensor, mask: Tensor, fill: Fill, low: float) -> Tensor:
    """Hide what is under the mask.

    Args:
        pixels: (B, 3, H, W) float in [low, 1], low being 0 or -1.
        mask: (B, 1, H, W) or (1, 1, H, W) bool.
        fill: "grey" is the middle of the range, "black" its low end, "original" changes nothing.
    """
    if fill == "original":
        return pixels
    if fill == "black":
        return torch.where(mask, low, pixels)
    # The node's own arithmetic: in [0, 1] it rounds dark pixels by up to 2^-26, and stays exact in [-1, 1].
    middle = (low + 1) / 2
    return (pixels - middle) * (~mask).to(pixels.dtype) + middle


def encode_for_inpaint(
    vae: Autoencoder | ModelMixin | NodeVae, pixels: Tensor, mask: Tensor, mask_offset: int = 6
) -> NodeLatents:
    """The ComfyUI node WAS_VAEEncodeForInpaint, bit for bit in what the autoencoder is given and in the noise mask.

    Args:
        vae: an `Autoencoder`, a diffusers autoencoder, or anything else with `encode`, which is then called as
            ComfyUI does: (N, H', W', C) in [0, 1].
        pixels: (N, H, W, C) float in [0, 1], C >= 3; channels after the third pass through untouched.
        mask: (M, h, w) or (h, w) float, 1 = repaint, M = N or 1; resized bilinearly to the pixels' size.
        mask_offset: pixels to grow (> 0) or shrink (< 0) the mask by, -128...128.

    Returns:
        `samples`: the posterior's mode, raw (not multiplied by the scaling factor), or what `encode` returned;
        `noise_mask`: (M, 1, H', W') float, 0 or 1. H' and W' are H and W rounded down to the downscale factor.

    Raises:
        UsageError: an offset beyond the range, wrong shapes, or a picture smaller than the downscale factor.
    """
    check_offset(mask_offset)
    if isinstance(vae, ModelMixin):
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
    if mask.ndim not in (2, 3) or not mask.is_floating_point():
        raise UsageError(f"mask must be (M, h, w) or (h, w) float in [0, 1], not {mask.dtype} {tuple(mask.shape)}")
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    count, height, width = pixels.shape[:3]
    if mask.shape[0] not in (1, count):
        raise UsageError(f"mask has {mask.shape[0]} pictures but pixels has {count}; give one mask, or one for each")
    if height < factor or width < factor:
        raise UsageError(f"pixels are {height}x{width}, smaller than the VAE's downscale factor {factor}; enlarge them")
    mask = F.interpolate(mask, size=(height, width), mode="bilinear")
    top, left = height % factor // 2, width % factor // 2
    bottom, right = top + height // factor * factor, left + width // factor * factor
    return pixels[:, top:bottom, left:right], mask[:, :, top:bottom, left:right]


class InpaintTransform(nn.Module):
    """Offsets the masks, fills the holes and encodes, all on the batch's device.

    The autoencoder is held, not owned: it is in no `state_dict` and follows the batch's device by itself.

    Args:
        vae: an `Autoencoder`, a diffusers autoencoder, or a name for `load_vae`.
        mask_offset: an int for all, or an inclusive range (low, high) drawn for each sample and variant from
            (seed, key, variant), each within -128...128.
        fill: what the hole holds when it is encoded: "grey" (0.5; ComfyUI, SD, SDXL, Flux Fill), "black" (SD3 and
            Qwen ControlNet, BrushNet) or "original" (the picture as it is).
        posterior: "mode" (ComfyUI), "sample" (diffusers; noise from (seed, key, variant)), or "moments".
        seed: of offsets and noise.

    Raises:
        UsageError: an unknown fill or posterior, or an offset beyond the range.
        VaeError: the autoencoder cannot be loaded.
    """

    def __init__(
        self,
        vae: Autoencoder | nn.Module | str,
        mask_offset: int | tuple[int, int] = 6,
        fill: Fill = "grey",
        posterior: Posterior = "mode",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, choices in (("fill", fill, FILLS), ("posterior", posterior, POSTERIORS)):
            if value not in choices:
                raise UsageError(f"{name}: {value!r} is unknown; choose from {', '.join(choices)}")
        check_offset(mask_offset)
        if isinstance(vae, str):
            vae = load_vae(vae)
        # An Autoencoder is no nn.Module, so this attribute adds nothing to the state_dict.
        self.vae: Autoencoder = vae if isinstance(vae, Autoencoder) else Autoencoder(vae)
        self.mask_offset = mask_offset
        self.fill: Fill = fill
        self.posterior: Posterior = posterior
        self.seed = seed

    def extra_repr(self) -> str:
        return f"mask_offset={self.mask_offset}, fill={self.fill!r}, posterior={self.posterior!r}, seed={self.seed}"

    def forward(self, batch: Mapping[str, Any]) -> Batch:
        """Encode one batch.

        Args:
            batch: `image` (B, 3, H, W) uint8, or float in [0, 1]; `mask` (B, K, H, W) bool, integer or float,
                1 = repaint; `__key__` B strings; `variants` K ints (default 0...K-1). Other entries pass through.

        Returns:
            A `Batch`: the entries that came in, without `image` and with `variant` for `variants`.

        Raises:
            UsageError: wrong shapes or ranges.
            VaeError: H or W is no multiple of the VAE's downscale factor.
            EncodeError: NaN or infinity for a sample, in single precision too.
        """
        image, mask, keys, variants = _checked(batch)
        offsets = self._offsets(keys, variants)
        count, number = mask.shape[:2]
        grown = offset_mask(mask.flatten(0, 1)[:, None], offsets.flatten()).reshape(mask.shape)
        pixels = image.float() / 127.5 - 1 if image.dtype == torch.uint8 else image.float() * 2 - 1

        # Each variant is encoded in a batch of B, so that its values do not depend on how many variants there are.
        latents = self._posterior(self.vae.encode(pixels, keys), keys, variants[0], "latents")
        masked = [
            self._posterior(
                self.vae.encode(fill_hole(pixels, grown[:, k : k + 1], self.fill, low=-1.0), keys),
                keys,
                variants[k],
                "masked_latents",
            )
            for k in range(number)
        ]
        result = {name: value for name, value in batch.items() if name not in ("image", "variants")}
        offsets = offsets.reshape(count, number).to(image.device)
        drawn_with = torch.tensor(variants, device=image.device).expand(count, number)
        result |= {
            "latents": latents,
            "masked_latents": masked[0] if number == 1 else torch.stack(masked, 1),
            "mask": grown,
            "offset": offsets[:, 0] if number == 1 else offsets,
            "variant": drawn_with[:, 0] if number == 1 else drawn_with,
        }
        return cast(Batch, result)

    def _offsets(self, keys: Sequence[str], variants: Sequence[int]) -> Tensor:
        """(B, K) int64 on the CPU, so that the window sizes are known without waiting for the device."""
        drawn = [
            [draw_offset(self.mask_offset, generator_for(self.seed, key, variant, "offset")) for variant in variants]
            for key in keys
        ]
        return torch.tensor(drawn, dtype=torch.int64).reshape(len(keys), len(variants))

    def _posterior(self, raw: Tensor, keys: Sequence[str], variant: int, purpose: str) -> Tensor:
        if self.posterior == "moments" or not self.vae.has_posterior or not keys:
            return raw if self.posterior == "moments" else self.vae.mode(raw)
        if self.posterior == "mode":
            return self.vae.mode(raw)
        shape = (self.vae.latent_channels, *raw.shape[-2:])
        noise = torch.stack([noise_for(self.seed, key, variant, purpose, shape) for key in keys])
        return self.vae.sample(raw, noise.to(raw.device))


def _checked(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, list[str], list[int]]:
    missing = [name for name in ("image", "mask", "__key__") if name not in batch]
    if missing:
        raise UsageError(f"the batch has no {missing[0]!r}, only {', '.join(sorted(batch))}")
    image, mask, keys = batch["image"], batch["mask"], list(batch["__key__"])
    if image.ndim != 4 or image.shape[1] != 3:
        raise UsageError(f"image must be (B, 3, H, W), not {tuple(image.shape)}")
    if mask.ndim != 4 or mask.shape[0] != image.shape[0] or mask.shape[-2:] != image.shape[-2:] or not mask.shape[1]:
        raise UsageError(f"mask must be (B, K, H, W) for image {tuple(image.shape)}, not {tuple(mask.shape)}")
    if image.dtype != torch.uint8:
        if not image.is_floating_point():
            raise UsageError(f"image must be uint8, or float in [0, 1], not {image.dtype}")
        if image.numel() and (image.amin() < 0 or image.amax() > 1):
            raise UsageError("a float image must be in [0, 1]; map [-1, 1] back with (image + 1) / 2")
    variants = list(batch.get("variants", range(mask.shape[1])))
    if len(keys) != image.shape[0] or len(variants) != mask.shape[1]:
        raise UsageError(
            f"{image.shape[0]} images with {mask.shape[1]} masks each need as many keys and variants, "
            f"not {len(keys)} and {len(variants)}"
        )
    return image, mask, keys, variants
