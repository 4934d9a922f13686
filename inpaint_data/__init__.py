"""Latents and masks for training inpainting diffusion models: exact, cached, on the GPU.

Every public name is loaded when it is first used, and with it no more than it needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inpaint_data.batch import Batch, ImageBatch
    from inpaint_data.commands.contact_sheet import contact_sheet
    from inpaint_data.commands.mask_sheet import mask_sheet
    from inpaint_data.commands.mask_statistics import MaskStatistics, mask_statistics
    from inpaint_data.commands.pack_report import Packed
    from inpaint_data.commands.packing import pack
    from inpaint_data.encoding.encoder import Encoder
    from inpaint_data.encoding.node import encode_for_inpaint
    from inpaint_data.encoding.recipe_rows import RECIPES
    from inpaint_data.encoding.recipes import Recipe, conditioning, size_conditioning
    from inpaint_data.encoding.settings import EncodeSettings, TextModelSettings
    from inpaint_data.encoding.text import Text, TextSettings
    from inpaint_data.encoding.transform import InpaintTransform
    from inpaint_data.encoding.vae import Autoencoder
    from inpaint_data.encoding.vae_loading import load_vae
    from inpaint_data.errors import (
        CacheError,
        EncodeError,
        InpaintDataError,
        SampleError,
        ShardError,
        UsageError,
        VaeError,
    )
    from inpaint_data.job.audit import verify_cache
    from inpaint_data.job.caching import cache_latents
    from inpaint_data.job.progress import Summary
    from inpaint_data.job.settings import JobSettings
    from inpaint_data.latent_cache.indexing import index_cache
    from inpaint_data.latent_cache.reader import LatentCache
    from inpaint_data.latent_cache.repair import repair_cache
    from inpaint_data.latent_cache.settings import CacheSettings
    from inpaint_data.latent_cache.verify import Problem, Verification
    from inpaint_data.masks.latent_mask import latent_mask
    from inpaint_data.masks.mixture import MaskMixture
    from inpaint_data.masks.morphology import offset_mask
    from inpaint_data.masks.offsets import RandomOffset
    from inpaint_data.masks.presets import PRESETS, Preset
    from inpaint_data.masks.settings import MaskSettings
    from inpaint_data.masks.soft_border import SoftBorder
    from inpaint_data.pictures.filters import Filters
    from inpaint_data.pictures.settings import PictureSettings
    from inpaint_data.training.datamodule import InpaintDataModule
    from inpaint_data.training.loss import masked_loss, prior_preservation
    from inpaint_data.training.settings import LoadSettings, SourceSettings

__all__ = [
    "PRESETS",
    "RECIPES",
    "Autoencoder",
    "Batch",
    "CacheError",
    "CacheSettings",
    "EncodeError",
    "EncodeSettings",
    "Encoder",
    "Filters",
    "ImageBatch",
    "InpaintDataError",
    "InpaintDataModule",
    "InpaintTransform",
    "JobSettings",
    "LatentCache",
    "LoadSettings",
    "MaskMixture",
    "MaskSettings",
    "MaskStatistics",
    "Packed",
    "PictureSettings",
    "Preset",
    "Problem",
    "RandomOffset",
    "Recipe",
    "SampleError",
    "ShardError",
    "SoftBorder",
    "SourceSettings",
    "Summary",
    "Text",
    "TextModelSettings",
    "TextSettings",
    "UsageError",
    "VaeError",
    "Verification",
    "cache_latents",
    "conditioning",
    "contact_sheet",
    "encode_for_inpaint",
    "index_cache",
    "latent_mask",
    "load_vae",
    "mask_sheet",
    "mask_statistics",
    "masked_loss",
    "offset_mask",
    "pack",
    "prior_preservation",
    "repair_cache",
    "size_conditioning",
    "verify_cache",
]

_HOMES = {
    "batch": ("Batch", "ImageBatch"),
    "commands.contact_sheet": ("contact_sheet",),
    "commands.mask_sheet": ("mask_sheet",),
    "commands.mask_statistics": ("MaskStatistics", "mask_statistics"),
    "commands.pack_report": ("Packed",),
    "commands.packing": ("pack",),
    "encoding.encoder": ("Encoder",),
    "encoding.node": ("encode_for_inpaint",),
    "encoding.recipe_rows": ("RECIPES",),
    "encoding.recipes": ("Recipe", "conditioning", "size_conditioning"),
    "encoding.settings": ("EncodeSettings", "TextModelSettings"),
    "encoding.text": ("Text", "TextSettings"),
    "encoding.transform": ("InpaintTransform",),
    "encoding.vae": ("Autoencoder",),
    "encoding.vae_loading": ("load_vae",),
    "errors": (
        "CacheError",
        "EncodeError",
        "InpaintDataError",
        "SampleError",
        "ShardError",
        "UsageError",
        "VaeError",
    ),
    "job.audit": ("verify_cache",),
    "job.caching": ("cache_latents",),
    "job.progress": ("Summary",),
    "job.settings": ("JobSettings",),
    "latent_cache.indexing": ("index_cache",),
    "latent_cache.reader": ("LatentCache",),
    "latent_cache.repair": ("repair_cache",),
    "latent_cache.settings": ("CacheSettings",),
    "latent_cache.verify": ("Problem", "Verification"),
    "masks.latent_mask": ("latent_mask",),
    "masks.mixture": ("MaskMixture",),
    "masks.morphology": ("offset_mask",),
    "masks.offsets": ("RandomOffset",),
    "masks.presets": ("PRESETS", "Preset"),
    "masks.settings": ("MaskSettings",),
    "masks.soft_border": ("SoftBorder",),
    "pictures.filters": ("Filters",),
    "pictures.settings": ("PictureSettings",),
    "training.datamodule": ("InpaintDataModule",),
    "training.loss": ("masked_loss", "prior_preservation"),
    "training.settings": ("LoadSettings", "SourceSettings"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version(__name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
