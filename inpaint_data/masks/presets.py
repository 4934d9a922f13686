"""Presets: what each inpainting tool does differently with a mask.

Four independent axes: how it grows, what counts as masked, what the hole holds, and how it comes to latent size.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from inpaint_data.errors import UsageError
from inpaint_data.masks import morphology
from inpaint_data.masks.latent_mask import LatentMask
from inpaint_data.masks.morphology_device import to_device
from inpaint_data.masks.soft_border import SoftBorder, check_soft
from inpaint_data.shown import meant

Growth = Literal["square", "comfy", "none"]
Threshold = Literal["exclusive", "inclusive"]
Fill = Literal["grey", "black", "white", "original", "mean", "blur", "telea", "navier-stokes", "noise"]
FILLS: tuple[Fill, ...] = get_args(Fill)


@dataclass(frozen=True)
class Preset:
    """The way of one tool with a mask, or a way of your own.

    Args:
        growth: "square": `offset_mask`, 2k + 1 wide, before the hole is filled. "comfy": `grow_comfy`, k wide, of the
            noise mask alone: **the hole is filled under the mask as it was before growing**, so the latents of the ring
            between them are known to the model but repainted. "none": the mask stays.
        threshold: whether 0.5 is masked, see `binarise`.
        fill: what the hole holds when it is encoded, see `fill_hole`.
        latent_mask: how the mask that the tool blends with comes to latent size, the `how` of `latent_mask`; None keeps
            the size of pixels.
        offset: how far the tool grows masks where nothing is said.
        soft: the border that the tool gives to masks where nothing is said.
        keep_soft: whether a mask that comes in soft stays so: the hole alone is under what its threshold leaves.

    Raises:
        UsageError: an unknown name, an offset that is not a whole number, a `soft` that is not a border, or soft masks
            that are to grow.
    """

    growth: Growth = "square"
    threshold: Threshold = "exclusive"
    fill: Fill = "grey"
    latent_mask: LatentMask | None = None
    offset: int = 6
    soft: SoftBorder | None = None
    keep_soft: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("growth", get_args(Growth)),
            ("threshold", get_args(Threshold)),
            ("fill", FILLS),
            ("latent_mask", (None, *get_args(LatentMask))),
        ):
            if (value := getattr(self, name)) not in choices:
                known = ", ".join(choice for choice in choices if choice)
                raise UsageError(
                    f"preset: {name}: {value!r} is unknown; choose from {known}{meant(value, known.split(', '))}"
                )
        if type(self.offset) is not int or not -128 <= self.offset <= 128:
            raise UsageError(
                f"preset: offset: {self.offset!r} is not a whole number of pixels of -128 to 128; give one, such as 6"
            )
        check_soft(self.soft)
        if self.keep_soft and self.growth != "none":
            raise UsageError("preset: keep_soft: masks that stay soft cannot grow; add growth: none")


PRESETS: dict[str, Preset] = {
    "was": Preset("square", "exclusive", "grey", None),
    # ComfyUI, nodes.py, VAEEncodeForInpaint; what its samplers blend with. Its inpainting models are fed
    # "bilinear-round" (comfy/model_base.py, concat_cond).
    "comfy": Preset("comfy", "exclusive", "grey", "bilinear"),
    # ComfyUI, nodes.py, InpaintModelConditioning. Flux Fill is fed its mask soft, "unshuffle".
    "comfy-conditioning": Preset("none", "exclusive", "grey", "bilinear", 0, keep_soft=True),
    "diffusers": Preset("none", "inclusive", "grey", "nearest", 0),
    # AUTOMATIC1111, modules/processing.py and masking.py, with "masked content: fill" and its default mask blur. Its
    # inpainting models are fed the mask as "nearest", and grey where it is 0.5 or more: for those take fill="grey",
    # which is "masked content: original" there.
    "a1111": Preset("none", "exclusive", "blur", "bicubic-round", 0, SoftBorder("gaussian", 4), keep_soft=True),
    # modules/core.py, encode_vae_inpaint: what its inpaint head is fed. Its "mask erode or dilate" is the offset.
    "fooocus": Preset("square", "exclusive", "grey", "max", 0),
}


def preset_of(preset: str | Preset) -> Preset:
    """The preset of that name, or the one that it is.

    Raises:
        UsageError: an unknown name, or neither a name nor a Preset.
    """
    if isinstance(preset, Preset):
        return preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UsageError(
            f"preset: {preset!r} is unknown; choose from {', '.join(PRESETS)}, or give a Preset{meant(preset, PRESETS)}"
        )
    return PRESETS[preset]


def binarise(mask: Tensor, threshold: Threshold) -> Tensor:
    """Bool of the same shape: floats above 0.5 ("exclusive": nodes, which round half to even) or from 0.5 on
    ("inclusive": diffusers); integers as in `morphology.binarise`. UsageError for another threshold, or values that no
    mask has."""
    if threshold not in ("exclusive", "inclusive"):
        raise UsageError(f"threshold {threshold!r} is unknown; choose from exclusive, inclusive")
    if threshold == "inclusive" and mask.is_floating_point():
        morphology.check_range(mask)
        return mask >= 0.5
    return morphology.binarise(mask)


def grow_comfy(mask: Tensor, k: int | Tensor) -> Tensor:
    """Grow each mask by a k x k square as ComfyUI's core VAEEncodeForInpaint does (its `grow_mask_by`).

    The node pads by ceil((k - 1) / 2) and crops what is too much, so an even k grows one pixel more down and to the
    right: k = 6 by 2 pixels up and left, 3 down and right.

    Args:
        mask: (B, 1, H, W), as for `offset_mask`.
        k: one int >= 0 for all, or an integer tensor (B,); 0 and 1 leave the mask as it is.

    Returns:
        (B, 1, H, W) bool, a new tensor.

    Raises:
        UsageError: a negative or fractional k, or wrong shapes.
    """
    sides = torch.as_tensor(k)
    if sides.is_floating_point() or sides.dtype == torch.bool or bool((sides < 0).any()):
        raise UsageError(f"k must be whole numbers of pixels >= 0, not {k}")
    grown = morphology.offset_mask(mask, (sides - 1).clamp(min=0) // 2)
    # An even window is the odd one a pixel smaller, joined with itself moved down and right by one pixel.
    even = ((sides % 2 == 0) & (sides > 0)).reshape(-1, 1, 1, 1)
    if even.any() and grown.numel():
        even = to_device(even, grown.device)
        for dimension in (2, 3):
            length = grown.shape[dimension] - 1
            moved = grown.narrow(dimension, 0, length) & even
            grown = grown.clone()
            grown.narrow(dimension, 1, length).logical_or_(moved)
    return grown
