"""Recipes: the input that each inpainting model is fed.

Latents in a batch are raw, as the autoencoder gives them; what leaves here is normalised as the model takes it.
Masks come in as bool at full size, True = repaint, or soft as float in [0, 1]; a model that wants 1 = keep has the part
"keep" in its row. What a model is fed is hard, from 0.5 on, as each pipeline's mask processor makes it; `blend_mask`
keeps soft values, as ComfyUI and DifferentialDiffusion blend with them.
Shapes: B batch, H W the image, h w latents, C latent channels, N references, F pixels per latent along each side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

from inpaint_data.encoding.models import MODELS
from inpaint_data.encoding.recipe_rows import ADDED, LATENTS, RECIPES, Part, RecipeRow
from inpaint_data.encoding.vae import normalise
from inpaint_data.errors import UsageError
from inpaint_data.masks.latent_mask import ROUNDED, LatentMask, latent_mask
from inpaint_data.shown import meant

CHOICES = ("nearest", *ROUNDED, *ROUNDED.values(), "max", "area")  # of one channel


@dataclass(frozen=True)
class Recipe:
    """How one model is fed from a batch; made by `conditioning`.

    A batch is a `Batch` with one mask variant: `latents` and `masked_latents` (B, C, h, w) float, raw; `mask`
    (B, 1, H, W) bool, or float in [0, 1]. Some recipes read one more entry: `image` or `control` (B, 3, H, W), uint8 or
    float in [0, 1], the picture itself or its conditioning picture; `control_latents` (B, C, h, w), raw, of the latter;
    `reference_latents` (B, N, C, h, w), raw; `hole_latents`, raw, of the picture with grey where its mask is not.

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
        parts = [(part, self._part(part, batch, like)) for part in self.row.parts if part != "reference"]
        pieces = [piece if part in ADDED else self._laid_out(piece) for part, piece in parts]
        if not self.row.parts:
            nothing = self.latents(batch)[:, :0]
            pieces = [self._laid_out(nothing if like is None else nothing.to(like))]
        references = self._references(batch, like)
        if self.row.layout != "frame":
            return self._joined([*pieces, *map(self._laid_out, references)])
        whole = self._joined(pieces)
        # Zeros where the image's frame has what is in its hole, and its mask.
        rest = [torch.zeros_like(whole[:, self.row.latent_channels :])] if references else []
        return torch.cat([*(torch.cat([frame[:, :, None], *rest], dim=1) for frame in references), whole], dim=2)

    def model_input(self, noisy: Tensor, batch: Mapping[str, object]) -> Tensor:
        """The input of the model's forward, in dtype and device of `noisy`.

        Args:
            noisy: (B, C, h, w) float, normalised latents with noise; of frames with references (B, C, N + 1, h, w).
            batch: not read for ControlNet and "-blend" recipes, where the model takes the noisy latents alone.

        Returns:
            (B, channels, h, w); packed (B, h/2 * w/2, channels); as a sequence as many tokens again for each picture
            behind them, and of the answer those of `noisy` count; or (B, channels, 1, h, w), of which Z-Image takes
            `list(x.unbind(0))`, with references (B, channels, N + 1, h, w).
        """
        frames = self._has_reference_frames
        if noisy.ndim != 4 + frames or noisy.shape[1] != self.row.latent_channels:
            shape = f"(B, {self.row.latent_channels}, {'N + 1, ' if frames else ''}h, w)"
            raise self._error(f"noisy must be {shape}, not {tuple(noisy.shape)}")
        laid_out = noisy if frames else self._laid_out(noisy)
        if not self.row.parts or self.row.model == "ControlNet":
            return laid_out
        return self._joined([laid_out, self(batch, noisy)])

    def latents(self, batch: Mapping[str, object]) -> Tensor:
        """(B, C, h, w): the normalised latents of the image, which noise is added to; not packed.

        With references as frames before it (B, C, N + 1, h, w), since WanVACE makes those too, and throws them away.
        """
        latents = self._normalised(self._raw(batch, "latents"))
        return torch.stack([*self._references(batch, None), latents], 2) if self._has_reference_frames else latents

    def positions(self, batch: Mapping[str, object], like: Tensor | None = None) -> dict[str, Any]:
        """Where the tokens of `model_input` stand, by the name of the transformer's argument; empty but for sequences.

        `img_ids` (P * h/2 * w/2, 3) in dtype and device of `like`, for FLUX.2 (B, P * h/2 * w/2, 4) int64, where P is
        the number of pictures, the noisy one with them; or for Qwen `img_shapes`.
        """
        pictures = 1 + ("known" in self.row.parts) + len(self._references(batch, None))
        latents = self._raw(batch, "latents")
        rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
        if self.row.positions == "qwen":
            return {"img_shapes": [[(1, rows, columns)] * pictures for _ in latents]}
        if self.row.positions is None:
            return {}
        if self.row.positions == "flux" and pictures != 2:
            raise self._error(f"it takes one reference, not {pictures - 1}; set references: 1")
        apart = 1 if self.row.positions == "flux" else 10
        times, lines = torch.arange(pictures) * apart, torch.arange(rows)
        if self.row.positions == "flux":
            ids = torch.cartesian_prod(times, lines, torch.arange(columns))
            return {"img_ids": ids.float() if like is None else ids.to(like)}
        ids = torch.cartesian_prod(times, lines, torch.arange(columns), torch.arange(1))
        return {"img_ids": ids.expand(len(latents), -1, -1)}

    def blend_mask(self, batch: Mapping[str, object]) -> Tensor:
        """The mask that the pipeline blends by: 1 = repaint, in dtype and device of `latents`; soft if the mask is.

        Only Kandinsky's, which grows at latent size, is always hard; and that of FLUX.2, one value for each token, is
        soft at the border of hard masks too.

        Returns:
            (B, 1, h, w), or packed (B, h/2 * w/2, 4C), for FLUX.2 (B, h/2 * w/2, 1): as pipelines blend,
            `(1 - m) * known + m * denoised`.
        """
        latents = self._raw(batch, "latents")
        if self.row.positions == "flux2":
            size = (latents.shape[-2] // 2, latents.shape[-1] // 2)
            whole = self._mask(batch, latents, None, soft=True).to(latents)
            return functional.interpolate(whole, size=size, mode="bilinear").flatten(2).transpose(1, 2)
        how: LatentMask = "nearest" if self.latent_mask == "unshuffle" else self.latent_mask
        mask = self._mask(batch, latents, how, soft=how != "kandinsky").to(latents)
        packed = self.row.layout in ("packed", "sequence")
        return self._laid_out(mask.expand_as(latents)) if packed else mask

    def loss_mask(self, batch: Mapping[str, object]) -> Tensor:
        """How much of each latent is to be repainted, from 0 to 1, in the layout of the model's prediction.

        The mean of its pixels, as kohya's sd-scripts and SimpleTuner weigh losses; see `masked_loss`.

        Returns:
            (B, 1, h, w), packed (B, h/2 * w/2, 4C), or of frames (B, 1, 1, h, w), in dtype and device of `latents`;
            with references before it (B, 1, N + 1, h, w), where those are 0.
        """
        latents = self._raw(batch, "latents")
        pixels = self._mask(batch, latents, None, soft=True).to(latents)
        height, width = latents.shape[-2:]
        share = functional.adaptive_avg_pool2d(pixels, (height, width))
        if self._has_reference_frames:
            given = [torch.zeros_like(share)] * len(self._references(batch, None))
            return torch.stack([*given, share], dim=2)
        in_tokens = self.row.layout in ("packed", "sequence")
        return self._laid_out(share.expand_as(latents) if in_tokens else share)

    def check_model(self, model_config: Mapping[str, Any]) -> None:
        """Refuse a model (for ControlNet recipes: a ControlNet) whose config expects other channels.

        Raises:
            UsageError: the sum of the recipe's `channel_fields` is not `channels`.
        """
        model, expected = self.row.model, self.row.channels
        fields = " + ".join(self.row.channel_fields)
        channels = sum(model_config.get(field) or 0 for field in self.row.channel_fields)
        if channels == expected or not self.row.channel_fields:
            return
        fitting = [
            name
            for name, row in RECIPES.items()
            if (row.model, row.latent_channels, row.channels) == (model, self.row.latent_channels, channels)
        ]
        choice = f", or choose recipe {' or '.join(fitting)}" if fitting else ""
        raise self._error(f"the {model} has {fields}={channels}; give a {model} with {fields}={expected}{choice}")

    def _part(self, part: Part, batch: Mapping[str, object], like: Tensor | None) -> Tensor:
        """One part in the plain layout: (B, its channels, h, w), or (B, 3, H, W) for pictures."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor if like is None else tensor.to(like)

        if part in LATENTS:
            # Cast before normalising: a pipeline in half precision normalises in half precision.
            return self._normalised(cast(self._raw(batch, LATENTS[part])))
        if part in ADDED:
            return cast(self._image(batch, part))
        latents = cast(self._raw(batch, "masked_latents" if self.needs_masked_latents else "latents"))
        if part == "soft_keep":
            keep = 1 - self._mask(batch, latents, None).float()
            size = (1, *latents.shape[-2:])
            return functional.interpolate(keep[:, :, None], size, mode="trilinear")[:, :, 0].to(latents) * self._scale
        mask = self._mask(batch, latents, self.latent_mask).to(latents)
        if part == "mask":
            return mask
        return 1 - mask if part == "keep" else self._normalised(latents) * (1 - mask)

    def _image(self, batch: Mapping[str, object], part: Part) -> Tensor:
        """(B, 3, H, W) float in [0, 1]; the hole is -1, or 0 if blackened."""
        key = ADDED[part]
        image = self._tensor(batch, key)
        if image.ndim != 4 or image.shape[1] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise self._error(f"{key} must be (B, 3, H, W) uint8 or float, not {tuple(image.shape)} {image.dtype}")
        image = image.float() / 255 if image.dtype == torch.uint8 else image
        if part == "control_image":
            return image
        if part == "centred_control_image":
            return 2 * image - 1
        return torch.where(self._mask(batch, image, "nearest"), -1.0 if part == "image" else 0.0, image)

    @property
    def _has_reference_frames(self) -> bool:
        return self.row.layout == "frame" and "reference" in self.row.parts

    def _references(self, batch: Mapping[str, object], like: Tensor | None) -> list[Tensor]:
        """(B, C, h, w), normalised, of each reference; as frames the last one first, as WanVACE has them."""
        if "reference" not in self.row.parts:
            return []
        latents, channels = self._tensor(batch, "reference_latents"), self.row.latent_channels
        if latents.ndim != 5 or latents.shape[2] != channels or not latents.shape[1]:
            raise self._error(f"reference_latents must be (B, N, {channels}, h, w), not {tuple(latents.shape)}")
        references = [self._normalised(each if like is None else each.to(like)) for each in latents.unbind(1)]
        return references[::-1] if self._has_reference_frames else references

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
        """The batch's mask at the size of `target`, or with None at its own; hard unless `soft`."""
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
        return latent_mask(mask, factor, how if soft or how is None else ROUNDED.get(how, how))

    def _tensor(self, batch: Mapping[str, object], key: str) -> Tensor:
        value = batch.get(key)
        if isinstance(value, Tensor):
            return value
        made_with = f' (encoded with fill="{self.fill}")' if key == "masked_latents" else ""
        raise self._error(f"the batch has no {key!r}{made_with}, only {', '.join(sorted(batch))}; add it")

    def _normalised(self, latents: Tensor) -> Tensor:
        return latents if self.row.raw else normalise(latents, self.vae_config, self.row.rounded_statistics)

    @property
    def _scale(self) -> float:
        scale: float = self.vae_config["scaling_factor"]
        return scale

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
        latent_mask: one of `CHOICES` in place of the recipe's own, where a mask of one channel is concatenated to the
            latents; "bilinear" for whoever infers with ComfyUI: the model is fed "bilinear-round" then, and
            `blend_mask` is not rounded. See `latent_mask`.

    Raises:
        UsageError: an unknown name, the config of a VAE with other latent channels or without statistics, or a
            latent_mask where the recipe concatenates none.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe {name!r} is unknown; choose from {', '.join(RECIPES)}{meant(name, RECIPES)}")
    row = RECIPES[name]
    if not row.raw and all(vae_config.get(key) is None for key in ("scaling_factor", "latents_std", "bn_mean")):
        raise UsageError(
            f"{name}: the VAE's config has neither scaling_factor nor latents_std; pass vae.config itself, or of a VAE "
            "that has its statistics elsewhere (FLUX.2, LTX) Autoencoder(vae).config"
        )
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
