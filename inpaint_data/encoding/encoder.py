"""The encoder of decoded images to latents, on the device: used by live steps, the job, previews and audits."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inpaint_data.batch import PAIRED, Batch, ImageBatch, PixelsOf, Posterior
from inpaint_data.encoding.device import computes_in_bfloat16
from inpaint_data.encoding.models import MODELS
from inpaint_data.encoding.recipe_rows import ADDED, RECIPES, RecipeRow
from inpaint_data.encoding.recipes import conditioning
from inpaint_data.encoding.settings import Dtype, EncodeSettings
from inpaint_data.encoding.transform import InpaintTransform
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.encoding.vae_loading import load_vae
from inpaint_data.errors import UsageError, VaeError
from inpaint_data.masks.presets import Fill
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.settings import group_of
from inpaint_data.shown import meant

_log = logging.getLogger(__name__)
SHARED = ("latents", *PAIRED.values())  # these do not depend on the mask


class Encoder:
    """Offsets masks, fills holes and encodes, on the device of the batch.

    Args:
        masks: offset, fill, preset and soft border; or several, of which a batch's `masks_of` says its own.
        encode: posterior, recipe and masked latents.
        autoencoder: the one that encodes; None where there is nothing to encode, and `masks` alone is called.
        seed: of offsets and noise, for batches that do not say their own.
        posterior: in place of that of the settings; a cache holds "moments" whatever its batches are to feed.

    Attributes:
        transform: the nn.Module that does it for one variant.
        transforms: one for each of several `masks`; the first is `transform`.

    Raises:
        UsageError: an unknown recipe, or settings that cannot feed it.
    """

    def __init__(
        self,
        masks: MaskSettings | Mapping[str, Any] | Sequence[MaskSettings],
        encode: EncodeSettings | Mapping[str, Any],
        autoencoder: Autoencoder | None,
        seed: int = 0,
        posterior: Posterior | None = None,
    ) -> None:
        several = masks if isinstance(masks, Sequence) else [group_of(MaskSettings, masks)]
        encode = group_of(EncodeSettings, encode)
        fills = [_fill(each, encode) for each in several]
        if encode.recipe and autoencoder is not None:
            conditioning(encode.recipe, autoencoder.config)
        self.transforms = [
            InpaintTransform(
                autoencoder,
                each.offset,
                fill,
                posterior or chosen_posterior(encode),
                seed,
                each.preset,
                wants_masked_latents(encode),
                each.chosen_soft,
                wants_hole_latents(encode),
                wanted_pixels(encode),
            )
            for each, fill in zip(several, fills, strict=True)
        ]
        self.transform = self.transforms[0]

    @property
    def autoencoder(self) -> Autoencoder:
        """Raises UsageError where there is none."""
        return self.transform.vae

    def encode(self, batch: ImageBatch) -> Batch:
        """The batch of its one variant.

        Raises:
            UsageError: it has several, see `variants`.
            VaeError, EncodeError: see `InpaintTransform`.
        """
        if len(batch["variants"]) != 1:
            raise UsageError(f"the batch has {len(batch['variants'])} variants of masks; encode them with variants()")
        return self.variants(batch)[0]

    def variants(self, batch: ImageBatch, unchecked: list[Tensor] | None = None) -> list[Batch]:
        """A batch for each variant. They share one encode of the images, and one tensor of `latents`.

        Each variant is encoded in a batch of B, so that its values do not depend on how many variants there are. All
        have the noise of the first one's number, which is the epoch, as a cache draws it whatever the variant.
        `unchecked` is as in `Autoencoder.encode`.
        """
        transform = self.transforms[batch.get("masks_of", 0)]
        drawn = batch.get("drawn_with")
        epoch = {"epoch": [row[0] for row in drawn] if drawn else batch["variants"][0]}
        batches: list[Batch] = []
        for number in range(len(batch["variants"])):
            shared = {key: value for key, value in batches[0].items() if key in SHARED} if batches else {}
            batches.append(transform(_variant(batch, number) | epoch | shared, unchecked))
        return batches

    def masks(self, batch: ImageBatch) -> list[Batch]:
        """The batches of `variants` without any latents, for which no autoencoder is needed."""
        transform = self.transforms[batch.get("masks_of", 0)]
        return [transform.masks(_variant(batch, number)) for number in range(len(batch["variants"]))]


def _fill(masks: MaskSettings, encode: EncodeSettings) -> Fill:
    """What holes hold: as was given, or by the recipe, or else by the preset."""
    row = recipe_row(encode)
    fill = masks.fill or (row.fill if row else None) or masks.preset.fill
    if row and wants_masked_latents(encode) and row.fill not in (None, fill):
        raise UsageError(f"fill: {fill}, but recipe {encode.recipe} wants {row.fill}; leave it out")
    return fill


def autoencoder_of(encode: EncodeSettings, device: torch.device) -> Autoencoder:
    """The autoencoder that the settings name, loaded, for that device. Of the demo's, a line says that it is a toy.

    Raises:
        UsageError: they name none.
        VaeError: it cannot be loaded.
    """
    if encode.vae is None:
        raise UsageError(
            "vae: none is given, and images are to be encoded; name one with --vae (encode: {vae: ...}), a Hub name, a "
            "folder or a .safetensors file, or the model with --for; demo is the demo's toy",
            place=("encode", "vae"),
        )
    if encode.vae == "demo":
        real = f", such as {MODELS[encode.recipe].name}" if encode.recipe in MODELS else ""
        _log.warning("vae: demo is the demo's toy autoencoder, whose latents no trained model reads; name one%s", real)
    if isinstance(encode.vae, str):
        dtype: Dtype
        if encode.dtype != "auto":
            dtype = encode.dtype
        else:
            dtype = "bfloat16" if computes_in_bfloat16(device) else "float32"
            _log.warning("dtype: auto is %s on %s; a dry run prints how far that is from float32", dtype, device)
        try:
            return load_vae(encode.vae, dtype, encode.channels_last, encode.compile)
        except VaeError as error:
            error.place = ("encode", "vae")
            raise
    return encode.vae if isinstance(encode.vae, Autoencoder) else Autoencoder(encode.vae)


def recipe_row(encode: EncodeSettings) -> RecipeRow | None:
    """Raises UsageError for an unknown recipe, and for settings that cannot feed it."""
    if encode.recipe is None:
        return None
    if encode.recipe not in RECIPES:
        raise UsageError(
            f"recipe: {encode.recipe!r} is unknown; choose from {', '.join(RECIPES)}{meant(encode.recipe, RECIPES)}",
            place=("encode", "recipe"),
        )
    row = RECIPES[encode.recipe]
    if "masked" in row.parts and encode.masked_latents is False:
        raise UsageError(
            f"masked_latents: false, but recipe {encode.recipe} feeds them to the model; leave it out",
            place=("encode", "masked_latents"),
        )
    if encode.posterior == "moments":
        raise UsageError(
            f"posterior: moments, but recipe {encode.recipe} feeds latents; use mode or sample",
            place=("encode", "posterior"),
        )
    return row


def chosen_posterior(encode: EncodeSettings) -> Posterior:
    """The posterior that was given, or else the recipe's, or else the mode."""
    row = recipe_row(encode)
    return encode.posterior or (row.posterior if row else "mode")


def wants_masked_latents(encode: EncodeSettings) -> bool:
    """True if batches are to have masked latents: as the settings say, or else as the recipe needs it."""
    if encode.masked_latents is not None:
        return encode.masked_latents
    row = recipe_row(encode)
    return row is None or "masked" in row.parts


def wants_hole_latents(encode: EncodeSettings) -> bool:
    """True if batches are to have the latents of what is in the hole, by the settings or else by the recipe."""
    if encode.hole_latents is not None:
        return encode.hole_latents
    row = recipe_row(encode)
    return row is not None and "hole" in row.parts


def wanted_pixels(encode: EncodeSettings) -> tuple[PixelsOf, ...]:
    """Pictures that batches are to have as they are, by the settings or else by the recipe."""
    if encode.pixels is not None:
        return encode.pixels
    row = recipe_row(encode)
    return tuple(sorted({ADDED[part] for part in row.parts if part in ADDED})) if row else ()


def check_paired(pictures: PictureSettings, encode: EncodeSettings) -> None:
    """Raises UsageError if batches are to have what is made of pictures that samples are not said to have."""
    row = recipe_row(encode)
    parts = row.parts if row else ()
    by = f"recipe {encode.recipe}" if row else f"pixels: {', '.join(wanted_pixels(encode))}"
    if not pictures.control and ("control" in parts or "control" in wanted_pixels(encode)):
        raise UsageError(
            f"control: {by} reads a conditioning picture; give each sample its control.jpg and set control: true",
            ("pictures", "control"),
        )
    if not pictures.references and "reference" in parts:
        raise UsageError(
            f"references: {by} reads reference pictures; give each sample its reference.jpg and set references: 1",
            ("pictures", "references"),
        )
    if row and row.positions == "flux" and pictures.references > 1 and "reference" in parts:
        raise UsageError(
            f"references: {pictures.references}, but recipe {encode.recipe} reads one; set references: 1",
            ("pictures", "references"),
        )


def check_resolution(pictures: PictureSettings, autoencoder: Autoencoder) -> None:
    """Raises UsageError unless the autoencoder's downscale factor divides the sides of all views."""
    factor = autoencoder.factor
    sides = [("resolution", side) for side in pictures.views.resolutions]
    if pictures.max_aspect > 1:
        sides = []  # multiples of the step
    if pictures.max_aspect > 1 or pictures.small == "bucket":
        sides.append(("bucket_step", pictures.bucket_step))
    for name, side in sides:
        place = ("pictures", name)
        if side < factor:
            raise UsageError(
                f"{name}: {side} is smaller than the VAE's downscale factor {factor}; use a multiple of {factor}", place
            )
        if side % factor:
            lower = side // factor * factor
            raise UsageError(
                f"{name}: {side} is not a multiple of the VAE's downscale factor {factor}; "
                f"use {lower} or {lower + factor}",
                place,
            )


def _variant(batch: ImageBatch, number: int) -> dict[str, Any]:
    """The batch with one of its K masks, as `InpaintTransform` takes it."""
    left_out = ("masks", "variants", "drawn_with", "masks_of", "captions", "untold", "areas")
    shared = {name: value for name, value in batch.items() if name not in left_out}
    if "captions" in batch:
        shared["caption"] = [captions[number] for captions in batch["captions"]]
    if "areas" in batch:
        shared["area"] = [areas[number] for areas in batch["areas"]]
    masks = batch["masks"][:, number : number + 1]
    return shared | {
        "mask": masks,
        "variant": torch.tensor([row[number] for row in batch["drawn_with"]])
        if "drawn_with" in batch
        else torch.full((len(masks),), batch["variants"][number]),
        "generator": [row[number] for row in batch["generator"]],
        "edits": [row[number] for row in batch["edits"]],
    }
