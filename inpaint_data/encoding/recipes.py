"""Recipes: the input that each inpainting model is fed.

Latents in a batch are raw, as the autoencoder gives them; what leaves here is normalised as the model takes it.
Masks come in as bool at full size, True = repaint, or soft as float in [0, 1]; a model that wants 1 = keep has the part
"keep" in its row. What a model is fed is hard, from 0.5 on, as each pipeline's mask processor makes it; `blend_mask`
keeps soft values, as ComfyUI and DifferentialDiffusion blend with them.
Everything follows the pipelines of diffusers 0.42.1, which also name the layouts.
Shapes: B batch, H W the image, h w latents, C latent channels, F pixels per latent along each side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_data.encoding.models import MODELS
from inpaint_data.encoding.vae import normalise
from inpaint_data.errors import UsageError
from inpaint_data.masks.latent_mask import LatentMask, latent_mask
from inpaint_data.shown import meant

CHOICES = ("nearest", "bilinear", "bicubic", "max", "area")  # of one channel

Part = Literal["mask", "keep", "masked", "kept", "control", "image"]


@dataclass(frozen=True)
class RecipeRow:
    """One row of `RECIPES`.

    Attributes:
        parts: what is concatenated, in this order: "mask" (1 = repaint), "keep" (1 = keep), "masked" (masked_latents),
            "kept" (latents times keep), "control" (control_latents), "image" (RGB in [0, 1], the hole -1). Nothing
            where the pipeline only blends the known latents in.
        channels: how many channels the model named in `model` takes in all.
        latent_channels: C.
        model: what takes the parts. A "ControlNet" takes them alone, any other after the noisy latents.
        fill: what the hole must hold before it is encoded for "masked"; None where nothing masked is encoded.
        posterior: how the pipeline takes latents from the autoencoder.
        layout: "plain" is (B, C, h, w); "packed" (B, h/2 * w/2, 4C) in 2 x 2 patches; "frame" (B, C, 1, h, w).
        latent_mask: how the mask comes to latent size.
        raw: whether the model takes latents as the autoencoder gives them.
        channel_fields: the model's config fields whose sum is `channels`.
    """

    parts: tuple[Part, ...]
    channels: int
    latent_channels: int
    model: Literal["UNet", "transformer", "ControlNet"]
    fill: Literal["grey", "black"] | None = None
    posterior: Literal["sample", "mode"] = "sample"
    layout: Literal["plain", "packed", "frame"] = "plain"
    latent_mask: LatentMask = "nearest"
    raw: bool = False
    channel_fields: tuple[str, ...] = ("in_channels",)


_INPAINT_UNET = RecipeRow(("mask", "masked"), 9, 4, "UNet", "grey")
_BLENDED_UNET = RecipeRow((), 4, 4, "UNet")
_BLENDED_PACKED = RecipeRow((), 64, 16, "transformer", layout="packed")
_SD3_FIELDS = ("in_channels", "extra_conditioning_channels")
_QWEN_FIELDS = ("in_channels", "extra_condition_channels")

RECIPES: dict[str, RecipeRow] = {
    "sd15-inpaint": _INPAINT_UNET,
    "sd2-inpaint": _INPAINT_UNET,
    "sdxl-inpaint": _INPAINT_UNET,
    "sd3-inpaint": RecipeRow(("mask", "masked"), 33, 16, "transformer", "grey"),
    "flux-fill": RecipeRow(("masked", "mask"), 384, 16, "transformer", "grey", "sample", "packed", "unshuffle"),
    "kandinsky-inpaint": RecipeRow(("kept", "keep"), 9, 4, "UNet", None, "mode", "plain", "kandinsky", raw=True),
    "sd3-controlnet-inpaint": RecipeRow(("masked", "keep"), 17, 16, "ControlNet", "black", channel_fields=_SD3_FIELDS),
    "qwen-controlnet-inpaint": RecipeRow(
        ("masked", "keep"), 68, 16, "ControlNet", "black", layout="packed", channel_fields=_QWEN_FIELDS
    ),
    "z-image-controlnet-inpaint": RecipeRow(
        ("control", "keep", "masked"), 33, 16, "ControlNet", "grey", "mode", "frame", channel_fields=("control_in_dim",)
    ),
    "sd15-controlnet-inpaint": RecipeRow(("image",), 3, 4, "ControlNet", channel_fields=("conditioning_channels",)),
    "sd15-blend": _BLENDED_UNET,
    "sd2-blend": _BLENDED_UNET,
    "sdxl-blend": _BLENDED_UNET,
    "sd3-blend": RecipeRow((), 16, 16, "transformer"),
    "flux-blend": _BLENDED_PACKED,
    "chroma-blend": _BLENDED_PACKED,
    "qwen-blend": _BLENDED_PACKED,
    "z-image-blend": RecipeRow((), 16, 16, "transformer", layout="frame"),
}


@dataclass(frozen=True)
class Recipe:
    """How one model is fed from a batch; made by `conditioning`.

    A batch is a `Batch` with one mask variant: `latents` and `masked_latents` (B, C, h, w) float, raw; `mask`
    (B, 1, H, W) bool, or float in [0, 1]. Two recipes read one more entry: sd15-controlnet-inpaint `image`
    (B, 3, H, W), uint8 or float in [0, 1]; z-image-controlnet-inpaint `control_latents` (B, C, h, w), raw, of the
    control image.

    Every method but `check_model` raises UsageError for a missing entry, moments instead of latents, a mask that is not
    (B, 1, H, W) bool or float, other latent channels than the recipe's, and odd sides where latents are packed.
    """

    name: str
    row: RecipeRow
    vae_config: Mapping[str, Any]
    latent_mask: LatentMask

    @property
    def channels(self) -> int:
        """The number of channels that `check_model` expects."""
        return self.row.channels

    @property
    def needs_masked_latents(self) -> bool:
        return "masked" in self.row.parts

    @property
    def fill(self) -> Literal["grey", "black"] | None:
        """The fill that masked_latents must have been made with; None where they are not used."""
        return self.row.fill

    @property
    def posterior(self) -> Literal["sample", "mode"]:
        """How the pipeline takes latents from the autoencoder."""
        return self.row.posterior

    def __call__(self, batch: Mapping[str, object], like: Tensor | None = None) -> Tensor:
        """The model's input besides the noisy latents, in its layout; for a ControlNet its whole condition.

        Nothing (zero channels) for the "-blend" recipes. Dtype and device are those of `like`, else of the batch.
        """
        pieces = [self._part(part, batch, like) for part in self.row.parts]
        if not pieces:
            nothing = self.latents(batch)[:, :0]
            pieces = [nothing if like is None else nothing.to(like)]
        return self._joined([self._laid_out(piece) for piece in pieces])

    def model_input(self, noisy: Tensor, batch: Mapping[str, object]) -> Tensor:
        """The input of the model's forward, in dtype and device of `noisy`.

        Args:
            noisy: (B, C, h, w) float, normalised latents with noise.
            batch: not read for ControlNet and "-blend" recipes, where the model takes the noisy latents alone.

        Returns:
            (B, channels, h, w); packed (B, h/2 * w/2, channels); or for Z-Image (B, C, 1, h, w), which its transformer
            takes as `list(x.unbind(0))`.
        """
        if noisy.ndim != 4 or noisy.shape[1] != self.row.latent_channels:
            raise self._error(f"noisy must be (B, {self.row.latent_channels}, h, w), not {tuple(noisy.shape)}")
        laid_out = self._laid_out(noisy)
        if not self.row.parts or self.row.model == "ControlNet":
            return laid_out
        return self._joined([laid_out, self(batch, noisy)])

    def latents(self, batch: Mapping[str, object]) -> Tensor:
        """(B, C, h, w): the normalised latents of the image, which noise is added to; not packed."""
        return self._normalised(self._raw(batch, "latents"))

    def blend_mask(self, batch: Mapping[str, object]) -> Tensor:
        """The mask that the pipeline blends by: 1 = repaint, in dtype and device of `latents`; soft if the mask is.

        Only Kandinsky's, which grows at latent size, is always hard.

        Returns:
            (B, 1, h, w), or packed (B, h/2 * w/2, 4C): as pipelines blend, `(1 - m) * known + m * denoised`.
        """
        latents = self._raw(batch, "latents")
        how: LatentMask = "nearest" if self.latent_mask == "unshuffle" else self.latent_mask
        mask = self._mask(batch, latents, how, soft=how != "kandinsky").to(latents)
        packed = self.row.layout == "packed"
        return self._laid_out(mask.expand_as(latents)) if packed else mask

    def loss_mask(self, batch: Mapping[str, object]) -> Tensor:
        """How much of each latent is to be repainted, from 0 to 1, in the layout of the model's prediction.

        The mean of its pixels, as kohya's sd-scripts and SimpleTuner weigh losses; see `masked_loss`.

        Returns:
            (B, 1, h, w), packed (B, h/2 * w/2, 4C), or for Z-Image (B, 1, 1, h, w), in dtype and device of `latents`.
        """
        latents = self._raw(batch, "latents")
        pixels = self._mask(batch, latents, None, soft=True).to(latents)
        height, width = latents.shape[-2:]
        share = F.adaptive_avg_pool2d(pixels, (height, width))
        return self._laid_out(share.expand_as(latents) if self.row.layout == "packed" else share)

    def check_model(self, model_config: Mapping[str, Any]) -> None:
        """Refuse a model (for ControlNet recipes: a ControlNet) whose config expects other channels.

        Raises:
            UsageError: the sum of the recipe's `channel_fields` is not `channels`.
        """
        model, expected = self.row.model, self.row.channels
        fields = " + ".join(self.row.channel_fields)
        channels = sum(model_config.get(field) or 0 for field in self.row.channel_fields)
        if channels == expected:
            return
        fitting = [
            name
            for name, row in RECIPES.items()
            if (row.model, row.latent_channels, row.channels) == (model, self.row.latent_channels, channels)
        ]
        choice = f", or choose recipe {' or '.join(fitting)}" if fitting else ""
        raise self._error(f"the {model} has {fields}={channels}; give a {model} with {fields}={expected}{choice}")

    def _part(self, part: Part, batch: Mapping[str, object], like: Tensor | None) -> Tensor:
        """One part in the plain layout: (B, its channels, h, w), or (B, 3, H, W) for "image"."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor if like is None else tensor.to(like)

        if part == "image":
            return cast(self._image(batch))
        if part in ("masked", "control"):
            # Cast before normalising: a pipeline in half precision normalises in half precision.
            return self._normalised(cast(self._raw(batch, "masked_latents" if part == "masked" else "control_latents")))
        latents = cast(self._raw(batch, "masked_latents" if self.needs_masked_latents else "latents"))
        mask = self._mask(batch, latents, self.latent_mask).to(latents)
        if part == "mask":
            return mask
        return 1 - mask if part == "keep" else self._normalised(latents) * (1 - mask)

    def _image(self, batch: Mapping[str, object]) -> Tensor:
        """(B, 3, H, W) float in [0, 1], the hole -1."""
        image = self._tensor(batch, "image")
        if image.ndim != 4 or image.shape[1] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise self._error(f"image must be (B, 3, H, W) uint8 or float, not {tuple(image.shape)} {image.dtype}")
        image = image.float() / 255 if image.dtype == torch.uint8 else image
        return torch.where(self._mask(batch, image, "nearest"), -1.0, image)

    def _raw(self, batch: Mapping[str, object], key: str) -> Tensor:
        """(B, C, h, w) raw latents."""
        latents, channels = self._tensor(batch, key), self.row.latent_channels
        if latents.ndim == 5:
            raise self._error(f"{key} holds {latents.shape[1]} variants; choose one with batch[{key!r}][:, k]")
        if latents.ndim == 4 and latents.shape[1] == 2 * channels:
            raise self._error(f"{key} holds moments ({2 * channels} channels); give it to Autoencoder.mode or sample")
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise self._error(f"{key} must be (B, {channels}, h, w), not {tuple(latents.shape)}; use this model's VAE")
        return latents

    def _mask(self, batch: Mapping[str, object], target: Tensor, how: LatentMask | None, soft: bool = False) -> Tensor:
        """The batch's mask at the size of `target`, or as it is where `how` is None; hard unless `soft`."""
        mask = self._tensor(batch, "mask")
        if mask.ndim != 4 or mask.shape[1] != 1 or not (mask.dtype == torch.bool or mask.is_floating_point()):
            raise self._error(
                f"mask must be (B, 1, H, W) bool or float, not {tuple(mask.shape)} {mask.dtype}; give one variant"
            )
        mask = mask if soft or mask.dtype == torch.bool else mask >= 0.5  # diffusers' do_binarize
        (height, width), (rows, columns) = mask.shape[-2:], target.shape[-2:]
        factor = height // rows if rows else 0
        if len(mask) != len(target) or (height, width) != (rows * factor, columns * factor) or not factor:
            raise self._error(f"mask {tuple(mask.shape)} is not one whole multiple of {tuple(target.shape)} in size")
        return latent_mask(mask, factor, how)

    def _tensor(self, batch: Mapping[str, object], key: str) -> Tensor:
        value = batch.get(key)
        if isinstance(value, Tensor):
            return value
        made_with = f' (encoded with fill="{self.fill}")' if key == "masked_latents" else ""
        raise self._error(f"the batch has no {key!r}{made_with}, only {', '.join(sorted(batch))}; add it")

    def _normalised(self, latents: Tensor) -> Tensor:
        return latents if self.row.raw else normalise(latents, self.vae_config)

    def _laid_out(self, latents: Tensor) -> Tensor:
        if self.row.layout == "frame":
            return latents[:, :, None]
        if self.row.layout == "plain":
            return latents
        if latents.shape[-2] % 2 or latents.shape[-1] % 2:
            raise self._error(f"latents of {tuple(latents.shape[-2:])} cannot be packed; both sides must be even")
        return pack_latents(latents)

    def _joined(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat(pieces, dim=-1 if self.row.layout == "packed" else 1)

    def _error(self, message: str) -> UsageError:
        return UsageError(f"{self.name}: {message}")


def conditioning(name: str, vae_config: Mapping[str, Any], latent_mask: LatentMask | None = None) -> Recipe:
    """The recipe of that name.

    Args:
        name: a key of `RECIPES`.
        vae_config: the config of the diffusers VAE that made the latents; a cache keeps it in
            `settings.vae.config`.
        latent_mask: "nearest", "bilinear", "bicubic", "max" or "area" in place of the recipe's own, where a mask of one
            channel is concatenated to the latents; "bilinear" for whoever infers with ComfyUI. See `latent_mask`.

    Raises:
        UsageError: an unknown name, the config of a VAE with other latent channels or without statistics, or a
            latent_mask where the recipe concatenates none.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe {name!r} is unknown; choose from {', '.join(RECIPES)}{meant(name, RECIPES)}")
    row = RECIPES[name]
    if not row.raw and vae_config.get("scaling_factor") is None and vae_config.get("latents_std") is None:
        raise UsageError(f"{name}: the VAE's config has neither scaling_factor nor latents_std; pass vae.config itself")
    channels = vae_config.get("latent_channels", vae_config.get("z_dim", row.latent_channels))
    if channels != row.latent_channels:
        raise UsageError(
            f"{name}: the VAE has {channels} latent channels instead of {row.latent_channels}; give its own, such as "
            f"that of {MODELS[name].name}"
        )
    if latent_mask is not None:
        if "mask" not in row.parts or row.latent_mask != "nearest":
            raise UsageError(f"{name}: latent_mask={latent_mask!r} cannot be chosen here; leave it out")
        if latent_mask not in CHOICES:
            raise UsageError(f"{name}: latent_mask={latent_mask!r} is not one of {', '.join(CHOICES)}")
    return Recipe(name, row, vae_config, latent_mask or row.latent_mask)


def pack_latents(latents: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h/2 * w/2, 4C): one token for each 2 x 2 patch, its channels outermost."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2 * (width // 2), 4 * channels)


def size_conditioning(batch: Mapping[str, object], dtype: torch.dtype = torch.float32) -> Tensor:
    """SDXL's `time_ids`: original height and width, crop top and left, target height and width.

    Args:
        batch: `original_size`, `crop_top_left` and `target_size`, each (B, 2) integers.
        dtype: of the model; half precision rounds sizes above 2048 as the pipeline does.

    Returns:
        (B, 6) of that dtype.

    Raises:
        UsageError: a missing entry.
    """
    keys = ("original_size", "crop_top_left", "target_size")
    sizes = [value for key in keys if isinstance(value := batch.get(key), Tensor)]
    if len(sizes) < len(keys):
        raise UsageError(f"size conditioning needs {', '.join(keys)}, and the batch has {', '.join(sorted(batch))}")
    return torch.cat(sizes, dim=1).to(dtype)
