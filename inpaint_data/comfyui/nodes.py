"""ComfyUI nodes: encode for inpainting, draw masks, offset masks, and load what a cache holds.

ComfyUI's shapes: IMAGE (B, H, W, C) float in [0, 1]; MASK (B, H, W) or (H, W) float, 1 = repaint; LATENT a dict of
`samples` (B, C, h, w), raw as its VAE gives them, and `noise_mask` (B, 1, H, W) float of the image's size.
"""

from dataclasses import fields, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from inpaint_data.encoding.node import NodeLatents, NodeVae, encode_for_inpaint
from inpaint_data.errors import UsageError
from inpaint_data.latent_cache.format import CACHE_FILE
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.masks.mixture import OBJECT, MaskMixture
from inpaint_data.masks.morphology import WINDOWS, Window, binarise, offset_mask
from inpaint_data.masks.offsets import MAX_OFFSET, check_offset
from inpaint_data.masks.presets import grow_comfy
from inpaint_data.seeding import generator_for
from inpaint_data.shards.stores import is_url, local_path
from inpaint_data.shown import meant

Inputs = dict[str, dict[str, tuple[Any, ...]]]
MAX_SIDE = 16384  # ComfyUI's MAX_RESOLUTION
MAX_SEED = 2**64 - 1
MIXTURE = "mixture"
COMFY: Final = "comfy"  # the window of ComfyUI's own VAEEncodeForInpaint
LATENTS = ("latents", "masked_latents")
COMPARED = 10_000  # keys, with one that there is not; a tenth of a second
# How ComfyUI's VAE gives latents (comfy/sd.py) where it is not as diffusers' classes do: with a time axis; in patches
# that it has normalised (FLUX.2); divided by the scaling factor of another autoencoder (TAESD).
WITH_TIME = ("AutoencoderKLQwenImage", "AutoencoderKLWan")
OTHERWISE = ("AutoencoderKLFlux2", "AutoencoderTiny")
OFFSET = {
    "default": 6,
    "min": -MAX_OFFSET,
    "max": MAX_OFFSET,
    "step": 1,
    "tooltip": "Pixels to grow (above 0) or shrink (below 0) the mask by.",
}


class WAS_VAEEncodeForInpaint:
    """Hide what is under the mask, after its offset, and encode: the node of WAS Extras, bit for bit."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    CATEGORY = "latent/inpaint"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"pixels": ("IMAGE",), "vae": ("VAE",), "mask": ("MASK",), "mask_offset": ("INT", OFFSET)},
        }

    def encode(self, pixels: Tensor, vae: NodeVae, mask: Tensor, mask_offset: int = 6) -> tuple[NodeLatents]:
        """Raises UsageError: see `encode_for_inpaint`."""
        return (encode_for_inpaint(vae, pixels, mask, mask_offset),)


class DrawMask:
    """Draw masks as they are drawn for training."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "draw"
    CATEGORY = "mask"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        side = {"default": 512, "min": 1, "max": MAX_SIDE, "step": 8}
        return {
            "required": {
                "masks": ([MIXTURE, *GENERATORS],),
                "width": ("INT", side),
                "height": ("INT", side),
                "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
            },
            "optional": {
                "mixture": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "The YAML of a MaskMixture: weights, limits of the hole, edits. Empty: the default.",
                    },
                )
            },
        }

    def draw(
        self, masks: str, width: int, height: int, seed: int, batch_size: int = 1, mixture: str = ""
    ) -> tuple[Tensor]:
        """(B, H, W) float, 0 or 1. Mask i is a function of (seed, i), whatever the size of the batch.

        Raises:
            UsageError: no such generator, a mixture that cannot be, limits that no draw meets, or OpenCV is missing.
        """
        chosen = _mixture(masks, mixture)
        drawn = [chosen.draw(height, width, generator_for(seed, "", i, "mask"))[0] for i in range(batch_size)]
        return (torch.from_numpy(np.stack(drawn)).float(),)


class OffsetMask:
    """Grow or shrink masks by a number of pixels."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "offset"
    CATEGORY = "mask"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        tooltip = (
            f"square: as WAS_VAEEncodeForInpaint; octagon: nearly a disc; cross: as GrowMask with tapered corners; "
            f"{COMFY}: as ComfyUI's VAEEncodeForInpaint, which only grows."
        )
        return {
            "required": {
                "mask": ("MASK",),
                "mask_offset": ("INT", OFFSET),
                "window": ([*WINDOWS, COMFY], {"tooltip": tooltip}),
            },
        }

    def offset(self, mask: Tensor, mask_offset: int, window: Window | Literal["comfy"] = "square") -> tuple[Tensor]:
        """(B, H, W) float, 0 or 1; masked is what is above 0.5.

        Raises:
            UsageError: an offset outside the range or that the window does not have, or a mask of the wrong shape.
        """
        check_offset(mask_offset)
        if window not in (*WINDOWS, COMFY):
            raise UsageError(f"window: {window!r} is unknown; choose from {', '.join((*WINDOWS, COMFY))}")
        if window == COMFY and mask_offset < 0:
            raise UsageError(f"mask_offset: {mask_offset} shrinks masks, which window {COMFY} cannot; give 0 or more")
        if not mask.numel() or (mask.ndim not in (2, 3) and (mask.ndim != 4 or mask.shape[1] != 1)):
            raise UsageError(f"mask must be (B, H, W) or (H, W) and not empty; it is {tuple(mask.shape)}")
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
        grown = grow_comfy(binarise(mask), mask_offset) if window == COMFY else offset_mask(mask, mask_offset, window)
        return (grown[:, 0].float(),)


class LoadCachedLatent:
    """Load a sample of a cache, as WAS_VAEEncodeForInpaint would give it."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "load"
    CATEGORY = "latent/inpaint"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        count = {"default": 0, "min": 0, "max": 2**31 - 1}
        return {
            "required": {
                "cache": ("STRING", {"default": "", "tooltip": "The folder of a cache, or its URL."}),
                "index": ("INT", count | {"tooltip": "Number of the sample in the cache; of no effect beside a key."}),
                "variant": ("INT", count | {"tooltip": "Which of the sample's masks."}),
                "samples": (
                    [*LATENTS],
                    {"default": LATENTS[1], "tooltip": "Of the whole image, or of the image with its hole."},
                ),
            },
            "optional": {
                "key": ("STRING", {"default": "", "tooltip": "The key of the sample, in place of its index."})
            },
        }

    @classmethod
    def IS_CHANGED(cls, cache: str = "", **_: Any) -> int:
        """When a job last wrote to the cache, so that ComfyUI loads its samples again."""
        file = local_path(cache) / CACHE_FILE
        return file.stat().st_mtime_ns if not is_url(cache) and file.is_file() else 0

    def load(
        self, cache: str, index: int = 0, variant: int = 0, samples: str = LATENTS[1], key: str = ""
    ) -> tuple[NodeLatents]:
        """`samples` (1, C, h, w) float32, the posterior's mean, raw as ComfyUI's VAE gives it; of Qwen-Image and Wan
        (1, C, 1, h, w). `noise_mask` (1, 1, H, W) float32.

        Raises:
            UsageError: no such folder, sample or variant, several samples of that key, no masked latents, or an
                autoencoder whose latents are others in ComfyUI.
            CacheError: there is no cache, or it is damaged.
        """
        if not cache.strip():
            raise UsageError("cache: no folder is given; name the one that `inpaint-data cache` wrote to")
        if samples not in LATENTS:
            raise UsageError(f"samples: {samples!r} is unknown; choose from {', '.join(LATENTS)}")
        opened = LatentCache(cache, variant=variant, carried=())
        if samples == LATENTS[1] and not opened.has_masked_latents:
            raise UsageError(f"{opened.root}: has no masked latents; choose samples: {LATENTS[0]}")
        if opened.vae_class in OTHERWISE:
            raise UsageError(
                f"cache: {opened.root} is of {opened.vae_class}, whose latents ComfyUI's VAE gives in another form; "
                "encode the image with WAS_VAEEncodeForInpaint"
            )
        if key:
            index = _index_of(key, opened)
        elif not 0 <= index < len(opened):
            raise UsageError(f"index: {index} is not in {opened.root}, which has samples 0...{len(opened) - 1}")
        batch: Any = opened.batch([index])
        latents = batch[samples]
        if opened.vae_class in WITH_TIME:
            latents = latents.unsqueeze(2)
        return ({"samples": latents, "noise_mask": batch["mask"].float()},)


def _mixture(masks: str, text: str) -> MaskMixture:
    """The mixture to draw from: a generator's name, or "mixture" and its YAML.

    Raises:
        UsageError: there is none of that name, or its YAML is not that of a mixture.
    """
    if masks != MIXTURE and masks not in GENERATORS:
        raise UsageError(f"masks: {masks!r} is unknown; choose from {', '.join((MIXTURE, *GENERATORS))}")
    content = _read(text) if text.strip() else {}
    if masks != MIXTURE and "weights" in content:
        raise UsageError(f"mixture: it has weights, but masks is {masks}; choose {MIXTURE}, or leave weights out")
    mixture = MaskMixture(**content)
    if mixture.weights.get(OBJECT):
        raise UsageError(f"mixture: weights: {OBJECT} masks come with samples, and there are none here; leave it out")
    return mixture if masks == MIXTURE else replace(mixture, weights={masks: 1.0})


def _read(text: str) -> dict[str, Any]:
    """The settings of a mixture from its YAML."""
    import yaml

    from inpaint_data.commands.yaml_files import load_yaml

    try:
        content = load_yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(f"mixture: is not YAML: {' '.join(str(error).split())}; correct it") from None
    known = [field.name for field in fields(MaskMixture)]
    if not isinstance(content, dict):
        raise UsageError(f"mixture: {content!r} is not a mapping; give some of {', '.join(known)}")
    if unknown := [name for name in content if name not in known]:
        takes = f"it takes {', '.join(known)}{meant(unknown[0], known)}"
        raise UsageError(f"mixture: there is no setting {unknown[0]!r}; {takes}")
    return {name: value for name, value in content.items() if value is not None}


def _index_of(key: str, cache: LatentCache) -> int:
    """Raises UsageError if no sample has that key, or several shards have one."""
    places = cache.places()
    rows = [row for row, (_, name) in enumerate(places) if name == key]
    if not rows:
        near = meant(key, [name for _, name in places[:COMPARED]])
        raise UsageError(f"key: there is no sample {key!r} in {cache.root}{near}")
    if len(rows) > 1:
        shards = ", ".join(f"{row} in {places[row][0]}" for row in rows[:4])
        raise UsageError(f"key: {len(rows)} samples are called {key!r}; leave it empty and give the index: {shards}")
    return rows[0]


NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {
    "WAS_VAEEncodeForInpaint": WAS_VAEEncodeForInpaint,
    "InpaintDataDrawMask": DrawMask,
    "InpaintDataOffsetMask": OffsetMask,
    "InpaintDataLoadCachedLatent": LoadCachedLatent,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "WAS_VAEEncodeForInpaint": "VAE Encode for Inpainting with Offset (inpaint_data)",
    "InpaintDataDrawMask": "Draw Training Masks (inpaint_data)",
    "InpaintDataOffsetMask": "Offset Masks (inpaint_data)",
    "InpaintDataLoadCachedLatent": "Load Cached Latent (inpaint_data)",
}
