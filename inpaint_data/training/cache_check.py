"""Whether a training gets what it asks for, above all from a cache, found out before the first step."""

from typing import Any

from inpaint_data.batch import PAIRED
from inpaint_data.encoding.encoder import wanted_pixels, wants_hole_latents, wants_masked_latents
from inpaint_data.encoding.recipe_rows import RECIPES
from inpaint_data.encoding.recipes import conditioning
from inpaint_data.encoding.settings import EncodeSettings
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import UsageError
from inpaint_data.latent_cache.format import differences
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.latent_cache.settings import CacheSettings, VaeRecord, plain
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import PictureSettings


def check_cache(
    cache: LatentCache,
    pictures: PictureSettings,
    masks: MaskSettings,
    encode: EncodeSettings,
    autoencoder: Autoencoder | None = None,
    fingerprint: str | None = None,
    fresh: bool = False,
) -> None:
    """Compare a cache with what was given beside it; what was left out is the cache's own.

    Args:
        cache: the cache.
        pictures, masks, encode: what was given.
        autoencoder: what latents must be of; None where none was given.
        fingerprint: what the cache's must begin with.
        fresh: whether masks are drawn anew, and so may be other ones.

    Raises:
        UsageError: it is another one; each difference is named with both values.
    """
    settings = cache.settings
    lines = _of_pictures(settings, pictures)
    lines += [] if fresh else _of_masks(settings, masks)
    lines += _of_encoding(settings.vae, encode)
    if autoencoder is not None:
        record = VaeRecord.of(autoencoder)
        if not lines and encode.dtype == "auto":
            lines += differences(settings.vae.dtype, record.dtype, "dtype")
        # In another precision the same weights are other numbers.
        for name in ("kind", "weights_sha256") if settings.vae.dtype == record.dtype else ("kind",):
            lines += differences(getattr(settings.vae, name), getattr(record, name), f"vae.{name}")
        if settings.vae.config != record.config:
            lines += differences(settings.vae.whole_config, record.whole_config, "vae.config")
    if fingerprint is not None and not cache.fingerprint.startswith(fingerprint):
        lines += differences(cache.fingerprint, fingerprint, "fingerprint")
    if lines:
        raise UsageError(f"{cache.root}: is not the cache that is asked for; {'; '.join(lines)}")
    _check_recipe(cache, encode, fresh)


def _of_encoding(vae: VaeRecord, encode: EncodeSettings) -> list[str]:
    lines = []
    if "dtype" in encode.given and encode.dtype != "auto":
        lines += differences(vae.dtype, encode.dtype, "dtype")
    if encode.channels_last is not None:
        lines += differences(vae.channels_last, encode.channels_last, "channels_last")
    if "compile" in encode.given:
        lines += differences(vae.compiled, encode.compile, "compile")
    return lines


def _of_pictures(settings: CacheSettings, pictures: PictureSettings) -> list[str]:
    has = settings.pictures
    if has is None:
        return []
    lines = []
    for name, wants in pictures.given.items():
        if name in ("resolution", "crop"):  # one is a list of one
            name_of_views = {"resolution": "resolutions", "crop": "crops"}[name]
            pair: tuple[Any, Any] = getattr(has.views, name_of_views), getattr(pictures.views, name_of_views)
            pair = (pair[0][0], pair[1][0]) if len(pair[0]) == len(pair[1]) == 1 else pair
        else:
            pair = getattr(has, name), wants
        lines += differences(plain(pair[0]), plain(pair[1]), name)
    return lines


def _of_masks(settings: CacheSettings, masks: MaskSettings) -> list[str]:
    has = settings.masks
    if has is None:
        return []
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, wants in masks.given.items():
        if name == "preset":
            pairs |= {axis: (getattr(has.preset, axis), getattr(wants, axis)) for axis in ("growth", "threshold")}
            pairs["soft"] = has.soft, masks.chosen_soft
        elif name == "source":
            pairs["masks"] = has.source, wants
        elif name == "offset":
            pairs["mask_offset"] = has.chosen_offset, wants
        else:
            pairs[name] = getattr(has, name), wants
    set_pairs = {name: pair for name, pair in pairs.items() if pair[1] is not None}
    return [line for name, (old, new) in set_pairs.items() for line in differences(plain(old), plain(new), name)]


def encode_of(cache: LatentCache, encode: EncodeSettings) -> EncodeSettings:
    """What batches of fresh masks are to have: as was given, or by the recipe, and else as the cache has it."""
    own = cache.settings.encode
    pixels = (
        tuple(sorted({*wanted_pixels(encode), *own.pixels})) if encode.pixels is None and own.pixels else encode.pixels
    )
    if encode.recipe is not None:
        return encode.but(pixels=pixels)
    left_out = [name for name in ("masked_latents", "hole_latents") if getattr(encode, name) is None]
    return encode.but(pixels=pixels, **{name: getattr(own, name) for name in left_out})


def _check_recipe(cache: LatentCache, encode: EncodeSettings, fresh: bool) -> None:
    settings, recipe = cache.settings, encode.recipe
    masked = wants_masked_latents(encode) and not fresh
    if recipe is not None:
        row = conditioning(recipe, settings.vae.config)
        fill = row.fill if settings.masks is None else settings.masks.chosen_fill
        if row.needs_masked_latents and masked and fill != row.fill:
            raise UsageError(
                f"{cache.root}: its holes are filled with {fill}, but {recipe} wants {row.fill}; "
                f"cache with fill: {row.fill}"
            )
        for part, name, fix in (
            ("control", "control", "control.jpg and cache with control: true"),
            ("reference", "references", "reference.jpg and cache with references: 1"),
        ):
            if part in row.row.parts and f"{PAIRED[name]}.npy" not in settings.expected.members:
                raise UsageError(
                    f"{cache.root}: recipe {recipe} reads {PAIRED[name]}, which this cache was made without; give each "
                    f"sample its {fix}"
                )
    # The image itself is what fresh masks are drawn over.
    if lacking := set(wanted_pixels(encode)) - set(settings.pixels) - ({"image"} if fresh else set()):
        by = f"recipe {recipe} reads" if recipe else "batches are to have"
        raise UsageError(
            f"{cache.root}: {by} the pixels of {', '.join(sorted(lacking))}, which this cache was made without; cache "
            f"with pixels: [{', '.join(sorted(lacking))}] or the recipe"
        )
    if wants_hole_latents(encode) and not fresh and not settings.hole_latents:
        raise UsageError(
            f"{cache.root}: recipe {recipe} reads hole_latents, which this cache was made without; cache with "
            "hole_latents: true or the recipe, or set fresh_masks: true"
        )
    if masked and not cache.has_masked_latents:
        wanted = f"recipe {recipe} wants" if recipe is not None else "the batches are to have"
        blend = ", ".join(name for name in RECIPES if name.endswith("-blend"))
        raise UsageError(
            f"{cache.root}: {wanted} masked_latents, which this cache was made without; cache with "
            f"masked_latents: true, set fresh_masks: true, or choose a recipe that only blends ({blend})"
        )
