"""The transform of images and masks to latents, masked latents and the model's masks, on the device.

Latents here are raw: what the autoencoder gives, before `Autoencoder.normalise`.
Shapes: B batch, C latent channels (2C for moments: mean, then log-variance), H W the image, h w latents.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from inpaint_data.batch import PAIRED, POSTERIORS, Batch, PixelsOf, Posterior
from inpaint_data.encoding.fills import fill_hole, hole_noise
from inpaint_data.encoding.noise import normal_noise
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.encoding.vae_loading import load_vae
from inpaint_data.errors import UsageError
from inpaint_data.masks.morphology import Window, offset_mask
from inpaint_data.masks.morphology_device import to_device
from inpaint_data.masks.offsets import Offset, RandomOffset, check_offset, draw_offset, draw_window, windows_of
from inpaint_data.masks.presets import FILLS, Fill, Preset, binarise, grow_comfy, preset_of
from inpaint_data.masks.soft_border import SoftBorder, check_soft, from_levels
from inpaint_data.seeding import generator_for, sample_id


class InpaintTransform(nn.Module):
    """Offsets the masks, fills the holes and encodes, all on the batch's device.

    The autoencoder is held, not owned: it is in no `state_dict` and follows the batch's device by itself.

    Args:
        vae: an `Autoencoder`, a diffusers autoencoder, or a name for `load_vae`; None where nothing is to be encoded.
        mask_offset: an int for all; an inclusive range (low, high) drawn for each sample and variant from
            (seed, sample, variant); or another `RandomOffset`, which may have windows other than square; each within
            -128...128. None is what the preset's tool does: 6 for "was" and "comfy", else 0.
        fill: what the hole holds when it is encoded: "grey" (0.5; ComfyUI, SD, SDXL, Flux Fill), "black" (SD3 and
            Qwen ControlNet, BrushNet), "original" (the image as it is), or another of `FILLS`, see `fill_hole`. None
            is the preset's.
        posterior: "mode" (ComfyUI), "sample" (diffusers; noise from (seed, sample, variant)), or "moments".
        seed: of offsets and noise.
        preset: a name in `PRESETS`, or a `Preset`: how masks grow, and whether 0.5 is masked.
        masked_latents: whether to encode the image with its hole; models that only blend do not need it.
        soft: soften the border of the masks in the batch. The hole is where the soft mask is 0.5 or more, which is what
            recipes feed to models; the soft one is what a model blends with. None is the preset's: a border for
            "a1111" (and for fill "blur" see `fill_hole`), else none, which leaves masks bool.
        hole_latents: whether to encode what the hole hides too, with grey around it.
        pixels: pictures that stay in the batch as they came, "image" or "control".

    Raises:
        UsageError: an unknown fill, posterior or preset, an offset outside the range or that the preset cannot grow, a
            window other than the square with a preset that grows otherwise, or a `soft` that is not a SoftBorder.
        VaeError: the autoencoder cannot be loaded.
    """

    def __init__(
        self,
        vae: Autoencoder | nn.Module | str | None,
        mask_offset: Offset | None = None,
        fill: Fill | None = None,
        posterior: Posterior = "mode",
        seed: int = 0,
        preset: str | Preset = "was",
        masked_latents: bool = True,
        soft: SoftBorder | None = None,
        hole_latents: bool = False,
        pixels: Sequence[PixelsOf] = (),
    ) -> None:
        super().__init__()
        self.preset = preset_of(preset)
        fill = self.preset.fill if fill is None else fill
        for name, value, choices in (("fill", fill, FILLS), ("posterior", posterior, POSTERIORS)):
            if value not in choices:
                raise UsageError(f"{name}: {value!r} is unknown; choose from {', '.join(choices)}")
        if mask_offset is None:
            mask_offset = 0 if self.preset.growth == "none" else self.preset.offset
        low, high = check_offset(mask_offset)
        offsets = f"{low} pixels" if low == high else f"{low} to {high} pixels"
        if self.preset.growth == "none" and (low, high) != (0, 0):
            raise UsageError(f"mask_offset: {offsets} with a preset that grows no masks; leave it out or set 0")
        if self.preset.growth == "comfy" and low < 0:
            raise UsageError(f"mask_offset: {offsets} shrink masks, which ComfyUI's node cannot; give 0 or more")
        if self.preset.growth != "square" and windows_of(mask_offset) != ("square",):
            windows = ", ".join(windows_of(mask_offset))
            raise UsageError(
                f"mask_offset: windows: {windows} with a preset that grows masks its own way; leave them out"
            )
        check_soft(soft)
        soft = self.preset.soft if soft is None else soft
        if isinstance(vae, str):
            vae = load_vae(vae)
        # An Autoencoder is not an nn.Module, so this attribute adds nothing to the state_dict.
        self._vae = vae if isinstance(vae, Autoencoder | None) else Autoencoder(vae)
        self.mask_offset = mask_offset
        self.fill: Fill = fill
        self.posterior: Posterior = posterior
        self.seed = seed
        self.masked_latents, self.hole_latents = masked_latents, hole_latents
        self.pixels = tuple(pixels)
        self.soft = soft
        self.epoch = 0

    @property
    def has_vae(self) -> bool:
        return self._vae is not None

    @property
    def vae(self) -> Autoencoder:
        """Raises UsageError where there is none."""
        if self._vae is None:
            raise UsageError("this transform was made without a VAE and cannot encode; give it one")
        return self._vae

    def set_epoch(self, epoch: int) -> None:
        """Draw other offsets and noise than in other epochs, for batches that do not say their `variant`."""
        self.epoch = epoch

    def extra_repr(self) -> str:
        chosen = f"mask_offset={self.mask_offset}, fill={self.fill!r}, posterior={self.posterior!r}, seed={self.seed}"
        return chosen if self.soft is None else f"{chosen}, soft={self.soft}"

    def forward(self, batch: Mapping[str, Any], unchecked: list[Tensor] | None = None) -> Batch:
        """Encode one batch.

        Args:
            batch: `image` (B, 3, H, W) uint8, or float in [0, 1]; `mask` (B, 1, H, W) bool, float in [0, 1], or
                integers 0 and 1 or 0 to 255, the highest = repaint. What offsets and noise are drawn from: `__key__`
                B strings, `__shard__` B names where keys start again in each, `variant` B ints (by default the epoch of
                `set_epoch`), `epoch` an int or B ints for the posterior's noise alone (by default the `variant`), and
                `seed` in place of the transform's. Paired pictures, such as `target`, are like `image`, `references`
                with a second dimension N; `image` is not needed where `latents` are there and nothing else is to be
                encoded. Latents that are there already, from a cache, stay. `area`, B numbers of masked pixels, spares
                relative offsets a wait for the device. Other entries pass through.
            unchecked: see `Autoencoder.encode`; with it, nothing here waits for the device.

        Returns:
            A `Batch`: the entries that came in, without the images, unless `pixels` names them.

        Raises:
            UsageError: wrong shapes or ranges.
            VaeError: a side that the VAE's downscale factor does not divide.
            EncodeError: NaN or infinity for a sample, in single precision too.
        """
        unmasked = {"image": "latents"} | {name: key for name, key in PAIRED.items() if name in batch}
        needed = [name for name, key in unmasked.items() if key not in batch]
        if (self.masked_latents or self.hole_latents) and "image" not in needed:
            needed.append("image")
        masks = self._masks(batch, needed)
        pixels = {name: _in_range(name, batch[name], batch["mask"]) for name in needed}
        encoded = {
            key: self._encoded(pixels[name], masks, key, unchecked)
            for name, key in unmasked.items()
            if key not in batch
        }
        if self.masked_latents:
            filled = self._filled(pixels["image"], masks)
            encoded["masked_latents"] = self._encoded(filled, masks, "masked_latents", unchecked)
        if self.hole_latents:
            hole = pixels["image"].masked_fill(~masks.hidden, 0.0)
            encoded["hole_latents"] = self._encoded(hole, masks, "hole_latents", unchecked)
        return cast(Batch, self._with_masks(batch, masks) | encoded)

    def masks(self, batch: Mapping[str, Any]) -> Batch:
        """The batch with its masks but without latents: nothing is encoded, and no image is needed."""
        return cast(Batch, self._with_masks(batch, self._masks(batch, [])))

    def _with_masks(self, batch: Mapping[str, Any], masks: "_Masks") -> dict[str, Any]:
        """The entries that stay, and those that say how each mask was made."""
        left_out = {"image", *PAIRED, "seed", "epoch", "area"} - set(self.pixels)
        result = {name: value for name, value in batch.items() if name not in left_out}
        return result | {
            "mask": masks.fed,
            "offset": to_device(masks.offsets, masks.fed.device),
            "window": masks.windows,
            "variant": to_device(torch.tensor(masks.variants), masks.fed.device),
        }

    def _masks(self, batch: Mapping[str, Any], needed: Sequence[str]) -> "_Masks":
        """Check what came in, and grow the masks.

        Raises:
            UsageError: an entry in `needed`, the masks or the keys are missing or of the wrong shape.
        """
        absent = [name for name in (*needed, "mask", "__key__") if name not in batch]
        if absent:
            raise UsageError(f"the batch has no {absent[0]!r}, only {', '.join(sorted(batch))}")
        mask, keys = batch["mask"], list(batch["__key__"])
        if mask.ndim != 4 or mask.shape[1] != 1:
            raise UsageError(
                f"mask must be (B, 1, H, W), not {tuple(mask.shape)}; give every variant of masks a batch of its own"
            )
        variants = [int(variant) for variant in batch.get("variant", [self.epoch] * len(keys))]
        if len(keys) != len(mask) or len(variants) != len(mask):
            raise UsageError(f"{len(mask)} samples need as many keys and variants, not {len(keys)} and {len(variants)}")
        seed = batch.get("seed", self.seed)
        binary = binarise(mask, self.preset.threshold)
        samples = list(map(sample_id, batch.get("__shard__", [""] * len(keys)), keys))
        offsets = self._offsets(binary, samples, variants, seed, batch.get("area"))
        windows = [
            draw_window(self.mask_offset, generator_for(seed, sample, variant, "window"))
            for sample, variant in zip(samples, variants, strict=True)
        ]
        comfy = self.preset.growth == "comfy"
        hidden = fed = grow_comfy(binary, offsets) if comfy else offset_mask(binary, offsets, windows)
        if self.preset.keep_soft and mask.dtype != torch.bool:
            fed = mask.float() if mask.is_floating_point() else from_levels(mask if (mask > 1).any() else mask * 255)
        if self.soft is not None:
            fed = self.soft(fed)
            hidden = fed >= 0.5  # what every recipe feeds
        # ComfyUI's own node fills under the mask as it was drawn.
        hidden = hidden & binary if comfy else hidden
        epoch = batch.get("epoch", variants)
        epochs = list(map(int, epoch)) if isinstance(epoch, Sequence) else [int(epoch)] * len(keys)
        return _Masks(keys, samples, variants, epochs, seed, offsets, windows, fed, hidden)

    def _offsets(
        self,
        masks: Tensor,
        samples: Sequence[str],
        variants: Sequence[int],
        seed: int,
        areas: Sequence[float] | None,
    ) -> Tensor:
        """(B,) int64 on the CPU, so that the window sizes are known without waiting for the device."""
        if not (isinstance(self.mask_offset, RandomOffset) and self.mask_offset.relative):
            areas = [0.0] * len(samples)
        elif areas is None:
            areas = masks.sum((-3, -2, -1)).tolist()
        offsets = [
            draw_offset(self.mask_offset, generator_for(seed, sample, variant, "offset"), area)
            for sample, variant, area in zip(samples, variants, areas, strict=True)
        ]
        return torch.tensor(offsets, dtype=torch.int64)

    def _filled(self, pixels: Tensor, masks: "_Masks") -> Tensor:
        """The images (B, 3, H, W) in [-1, 1] with their holes filled."""
        noise = None
        if self.fill == "noise":
            height, width = pixels.shape[-2:]
            noise = hole_noise(masks.seed, masks.samples, masks.variants, height, width, pixels.device)
        as_known = self.fill == "blur" and self.preset.growth != "comfy"
        return fill_hole(pixels, masks.fed if as_known else masks.hidden, self.fill, -1.0, noise)

    def _encoded(self, pixels: Tensor, masks: "_Masks", purpose: str, unchecked: list[Tensor] | None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents as `posterior` says; `purpose` tells their noise from that of others.

        References (B, N, 3, H, W) are encoded one after another, so that B alone is what a batch is.
        """
        if pixels.ndim == 5:
            raw = torch.stack([self.vae.encode(each, masks.keys, unchecked) for each in pixels.unbind(1)], dim=1)
        else:
            raw = self.vae.encode(pixels, masks.keys, unchecked)
        if self.posterior == "moments":
            return raw
        if self.posterior == "mode" or not self.vae.has_posterior or not masks.keys:
            return self.vae.mode(raw)
        shape = (*raw.shape[1:-3], self.vae.latent_channels, *raw.shape[-2:])
        noise = normal_noise(masks.seed, masks.samples, masks.epochs, purpose, shape, raw.device)
        return self.vae.sample(raw, noise)


class _Masks(NamedTuple):
    """The masks of a batch after their offset, and what they were made from."""

    keys: list[str]
    samples: list[str]  # their `sample_id`s
    variants: list[int]
    epochs: list[int]  # of the posterior's noise
    seed: int
    offsets: Tensor  # (B,) int64, on the CPU
    windows: list[Window]
    fed: Tensor  # (B, 1, H, W) bool or soft, what is to be repainted
    hidden: Tensor  # (B, 1, H, W) bool, where the hole is filled


def _in_range(name: str, image: Tensor, mask: Tensor) -> Tensor:
    """Images (B, 3, H, W) or references (B, N, 3, H, W), uint8 or float in [0, 1] -> float in [-1, 1]."""
    several = name == "references"
    if image.ndim != 4 + several or image.shape[-3] != 3:
        raise UsageError(f"{name} must be ({'B, N' if several else 'B'}, 3, H, W), not {tuple(image.shape)}")
    if mask.shape[0] != image.shape[0] or mask.shape[-2:] != image.shape[-2:]:
        raise UsageError(f"mask must be (B, 1, H, W) for {name} {tuple(image.shape)}, not {tuple(mask.shape)}")
    if image.dtype == torch.uint8:
        return image.float().div_(127.5).sub_(1)
    if not image.is_floating_point():
        raise UsageError(f"{name} must be uint8, or float in [0, 1], not {image.dtype}")
    if image.numel() and (image.amin() < 0 or image.amax() > 1):
        raise UsageError(f"a float {name} must be in [0, 1]; map [-1, 1] back with ({name} + 1) / 2")
    return (image.float() * 2).sub_(1)
