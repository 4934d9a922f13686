"""The rows of recipes: what each inpainting model is fed, as data.

Everything follows the pipelines of diffusers 0.42.1, which also name the layouts; BrushNet and PowerPaint, which it
does not have, follow their own code (TencentARC/BrushNet at ccac627, open-mmlab/PowerPaint at 084cbdc).
Shapes: B batch, H W the image, h w latents, C latent channels, N references.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from inpaint_data.batch import PixelsOf
from inpaint_data.masks.latent_mask import LatentMask

Part = Literal[
    "mask",
    "keep",
    "soft_keep",
    "masked",
    "hole",
    "known",
    "kept",
    "control",
    "reference",
    "image",
    "blackened_image",
    "control_image",
    "centred_control_image",
]
LATENTS = {"masked": "masked_latents", "hole": "hole_latents", "known": "latents", "control": "control_latents"}
# Parts that are pixels -> their key in a batch.
ADDED: Mapping[str, PixelsOf] = MappingProxyType(
    {"image": "image", "blackened_image": "image", "control_image": "control", "centred_control_image": "control"}
)


@dataclass(frozen=True)
class RecipeRow:
    """One row of `RECIPES`.

    Attributes:
        parts: what is concatenated, in this order: "mask" (1 = repaint), "keep" (1 = keep), "soft_keep" (keep brought
            to latents bilinearly, scaled like them), "masked" (masked_latents), "hole" (hole_latents), "known"
            (latents), "kept" (latents times keep), "control" (control_latents), "image" (RGB in [0, 1], the hole -1),
            "blackened_image" (the same, the hole 0), "control_image" (the conditioning picture as RGB in [0, 1]),
            "centred_control_image" (the same in [-1, 1]). "reference" (reference_latents) is not beside the others:
            in a sequence N times as many tokens behind them, with frames N frames before them.
            Nothing where the pipeline only blends the known latents in.
        channels: how many channels the model named in `model` takes in all.
        latent_channels: C.
        model: what takes the parts. A "ControlNet" takes them alone, any other after the noisy latents.
        fill: what the hole must hold before it is encoded for "masked"; None where nothing masked is encoded.
        posterior: how the pipeline takes latents from the autoencoder.
        layout: of all but pixels, which are (B, 3, H, W). "plain" is (B, C, h, w); "packed" (B, h/2 * w/2, 4C) in 2 x 2
            patches; "frame" (B, C, 1, h, w), or with references (B, C, N + 1, h, w); "sequence" as packed, but the
            parts stand behind the noisy tokens, not beside their channels.
        latent_mask: how the mask comes to latent size.
        raw: whether the model takes latents as the autoencoder gives them.
        rounded_statistics: whether the autoencoder's mean and deviation are rounded to the model's precision.
        channel_fields: the model's config fields whose sum is `channels`; none where its config does not say it.
        positions: of a sequence: whose model is told where each token stands.
    """

    parts: tuple[Part, ...]
    channels: int
    latent_channels: int
    model: Literal["UNet", "transformer", "ControlNet"]
    fill: Literal["grey", "black"] | None = None
    posterior: Literal["sample", "mode"] = "sample"
    layout: Literal["plain", "packed", "frame", "sequence"] = "plain"
    latent_mask: LatentMask = "nearest"
    raw: bool = False
    rounded_statistics: bool = False
    channel_fields: tuple[str, ...] = ("in_channels",)
    positions: Literal["flux", "flux2", "qwen"] | None = None


_INPAINT_UNET = RecipeRow(("mask", "masked"), 9, 4, "UNet", "grey")
_BLENDED_UNET = RecipeRow((), 4, 4, "UNet")
_BLENDED_PACKED = RecipeRow((), 64, 16, "transformer", layout="packed")
_SD3_FIELDS = ("in_channels", "extra_conditioning_channels")
_QWEN_FIELDS = ("in_channels", "extra_condition_channels")
_CONDITIONING = ("conditioning_channels",)
_BRUSHNET = RecipeRow(("masked", "keep"), 5, 4, "ControlNet", "black", channel_fields=_CONDITIONING)
_VACE = RecipeRow(
    ("masked", "hole", "mask"),
    96,
    16,
    "ControlNet",
    "grey",
    "mode",
    "frame",
    "unshuffle",
    channel_fields=("vace_in_channels",),
)
_HOLLOW_IMAGE = RecipeRow(("image",), 3, 4, "ControlNet", channel_fields=_CONDITIONING)

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
    "sd15-controlnet-inpaint": _HOLLOW_IMAGE,
    "sdxl-controlnet-inpaint": RecipeRow(("control_image",), 3, 4, "ControlNet", channel_fields=_CONDITIONING),
    "sdxl-controlnet-union-inpaint": RecipeRow(("blackened_image",), 3, 4, "ControlNet", channel_fields=_CONDITIONING),
    "flux-control-inpaint": RecipeRow(("control",), 128, 16, "transformer", layout="packed"),
    "flux-controlnet-inpaint": RecipeRow(("control",), 64, 16, "ControlNet", layout="packed"),
    "flux-controlnet-rgb-inpaint": RecipeRow(
        ("centred_control_image",), 3, 16, "ControlNet", layout="packed", channel_fields=()
    ),
    "flux-kontext-inpaint": RecipeRow(
        ("known",), 64, 16, "transformer", posterior="mode", layout="sequence", positions="flux"
    ),
    "flux2-klein-inpaint": RecipeRow(
        ("known",), 128, 32, "transformer", posterior="mode", layout="sequence", positions="flux2"
    ),
    "flux-kontext-reference-inpaint": RecipeRow(
        ("reference",), 64, 16, "transformer", posterior="mode", layout="sequence", positions="flux"
    ),
    "flux2-klein-reference-inpaint": RecipeRow(
        ("known", "reference"), 128, 32, "transformer", posterior="mode", layout="sequence", positions="flux2"
    ),
    "qwen-edit-inpaint": RecipeRow(
        ("known",), 64, 16, "transformer", layout="sequence", positions="qwen", rounded_statistics=True
    ),
    "wan-vace": _VACE,
    "wan-vace-reference": replace(_VACE, parts=("masked", "hole", "mask", "reference")),
    "easyanimate-inpaint": RecipeRow(("soft_keep", "masked"), 33, 16, "transformer", "black", "mode", "frame"),
    "brushnet-inpaint": _BRUSHNET,
    "powerpaint-inpaint": _INPAINT_UNET,
    "powerpaint2-inpaint": _BRUSHNET,
    "sd15-pag-inpaint": _INPAINT_UNET,
    "sdxl-pag-inpaint": _INPAINT_UNET,
    "sd15-controlnet-pag-inpaint": _HOLLOW_IMAGE,
    "sd15-blend": _BLENDED_UNET,
    "sd2-blend": _BLENDED_UNET,
    "sdxl-blend": _BLENDED_UNET,
    "sd3-blend": RecipeRow((), 16, 16, "transformer"),
    "flux-blend": _BLENDED_PACKED,
    "chroma-blend": _BLENDED_PACKED,
    "qwen-blend": replace(_BLENDED_PACKED, rounded_statistics=True),
    "z-image-blend": RecipeRow((), 16, 16, "transformer", layout="frame"),
}
