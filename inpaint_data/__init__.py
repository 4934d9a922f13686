"""Latents and masks for training inpainting diffusion models: exact, cached, on the GPU."""

from inpaint_data.commands.masks import mask_sheet
from inpaint_data.commands.pack import pack
from inpaint_data.commands.sheet import contact_sheet
from inpaint_data.commands.statistics import MaskStatistics, mask_statistics
from inpaint_data.encoding.presets import PRESETS, Preset
from inpaint_data.encoding.recipes import RECIPES, Recipe, conditioning, size_conditioning
from inpaint_data.encoding.text import Text, TextSettings
from inpaint_data.encoding.transform import Batch, InpaintTransform, encode_for_inpaint
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
from inpaint_data.latent_cache.indexing import index_cache
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.latent_cache.repair import repair_cache
from inpaint_data.latent_cache.verify import Problem, Verification
from inpaint_data.masks.latent_mask import latent_mask
from inpaint_data.masks.mixture import MaskMixture
from inpaint_data.masks.morphology import offset_mask
from inpaint_data.masks.offsets import RandomOffset
from inpaint_data.masks.soft_border import SoftBorder
from inpaint_data.pictures.filters import Filters
from inpaint_data.pictures.settings import SampleSettings
from inpaint_data.training.datamodule import InpaintDataModule

__all__ = [
    "PRESETS",
    "RECIPES",
    "Autoencoder",
    "Batch",
    "CacheError",
    "EncodeError",
    "Filters",
    "InpaintDataError",
    "InpaintDataModule",
    "InpaintTransform",
    "LatentCache",
    "MaskMixture",
    "MaskStatistics",
    "Preset",
    "Problem",
    "RandomOffset",
    "Recipe",
    "SampleError",
    "SampleSettings",
    "ShardError",
    "SoftBorder",
    "Summary",
    "Text",
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
    "offset_mask",
    "pack",
    "repair_cache",
    "size_conditioning",
    "verify_cache",
]
