"""Whether a cache is the one that a training asks for, found out before the first step."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from inpaint_data.encoding.recipes import RECIPES, conditioning
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import UsageError
from inpaint_data.latent_cache.format import differences
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.masks.offsets import offset_settings

OF_CUTS = ("resolution", "crop", "upscale", "target", "max_aspect", "bucket_step", "mask_padding", "filters")
OF_SAMPLES = ("masks", *OF_CUTS)


def check_cache(
    cache: LatentCache,
    asked: Mapping[str, Any],
    vae: Autoencoder | None,
    recipe: str | None,
    masked_latents: bool,
) -> None:
    """Compare a cache with what is asked for.

    Args:
        cache: the cache.
        asked: settings by the names of InpaintDataModule, a preset as a Preset; those that are None are not asked for.
        vae: the autoencoder that latents must be of; None where it is not named.
        recipe: what the batches are to feed.
        masked_latents: whether the training takes them from the cache.

    Raises:
        UsageError: it is another one; each difference is named with both values.
    """
    lines = [
        line
        for name, (has, wants) in _pairs(cache.settings, asked, vae).items()
        for line in differences(has, wants, name)
    ]
    if prefix := asked.get("fingerprint"):
        lines += [] if cache.fingerprint.startswith(prefix) else differences(cache.fingerprint, prefix, "fingerprint")
    if lines:
        raise UsageError(f"{cache.root}: is not the cache that is asked for; {'; '.join(lines)}")
    row = None
    if recipe is not None:
        row = conditioning(recipe, cache.settings["vae"]["config"])
        if row.needs_masked_latents and masked_latents and cache.settings.get("fill", row.fill) != row.fill:
            raise UsageError(
                f"{cache.root}: its holes are filled with {cache.settings['fill']}, but {recipe} wants {row.fill}; "
                f"cache with fill: {row.fill}"
            )
    if masked_latents and not cache.has_masked_latents:
        wanted = f"recipe {recipe} wants" if row is not None else "the batches are to have"
        blend = ", ".join(name for name in RECIPES if name.endswith("-blend"))
        raise UsageError(
            f"{cache.root}: {wanted} masked_latents, which this cache was made without; cache with "
            f"masked_latents: true, set fresh_masks: true, or choose a recipe that only blends ({blend})"
        )


def _pairs(settings: Mapping[str, Any], asked: Mapping[str, Any], vae: Autoencoder | None) -> dict[str, Any]:
    """Name -> what the cache has and what is asked for, of all that is asked for and that the cache knows."""
    offset, preset = asked.get("mask_offset"), asked.get("preset")
    has = {name: settings.get("samples", {}).get(name) for name in OF_SAMPLES}
    has |= {name: settings.get(name) for name in ("mask_offset", "fill", "variants", "growth", "threshold")}
    has["soft"] = settings.get("soft") or "none"
    wants = {name: asked.get(name) for name in (*OF_SAMPLES, "fill", "variants")}
    if wants["filters"] is not None:
        wants["filters"] = asdict(wants["filters"])
    wants["mask_offset"] = None if offset is None else offset_settings(offset)
    if asked.get("soft") is not None and has["soft"] != "unknown":
        wants["soft"] = asdict(asked["soft"])
    if asked.get("mixture") is not None:
        has["mixture"], wants["mixture"] = settings["samples"].get("mixture"), asdict(asked["mixture"])
    if preset is not None:
        wants |= {"growth": preset.growth, "threshold": preset.threshold}
    wants = json.loads(json.dumps(wants))  # lists in place of tuples, as the cache has them
    pairs = {name: (has[name], value) for name, value in wants.items() if value is not None and has[name] is not None}
    if asked.get("dtype") is not None:
        pairs["dtype"] = (settings["vae"].get("dtype"), asked["dtype"])
    if vae is not None:
        own = vae.fingerprint()
        for name in ("class", "config", "weights_sha256"):
            pairs[f"vae.{name}"] = (settings["vae"].get(name), own[name])
    return pairs
