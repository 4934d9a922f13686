"""Latents and masks for training inpainting diffusion models: exact, cached, on the GPU."""

from inpaint_data.audit import verify_cache
from inpaint_data.caching import cache_latents
from inpaint_data.conditioning import RECIPES, Recipe, conditioning, size_conditioning
from inpaint_data.datamodule import InpaintDataModule
from inpaint_data.errors import (
    CacheError,
    EncodeError,
    InpaintDataError,
    SampleError,
    ShardError,
    UsageError,
    VaeError,
)
from inpaint_data.filters import Filters
from inpaint_data.latent_cache.indexing import index_cache
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.latent_cache.repair import repair_cache
from inpaint_data.latent_cache.verify import Problem, Verification
from inpaint_data.latent_mask import latent_mask
from inpaint_data.masks import MaskMixture, RandomOffset
from inpaint_data.morphology import offset_mask
from inpaint_data.pack import pack
from inpaint_data.presets import PRESETS, Preset
from inpaint_data.progress import Summary
from inpaint_data.report import contact_sheet
from inpaint_data.sample_settings import SampleSettings
from inpaint_data.soft_border import SoftBorder
from inpaint_data.text import Text, TextSettings
from inpaint_data.transform import Batch, InpaintTransform, encode_for_inpaint
from inpaint_data.vae import Autoencoder
from inpaint_data.vae_loading import load_vae

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
    "offset_mask",
    "pack",
    "repair_cache",
    "size_conditioning",
    "verify_cache",
]
