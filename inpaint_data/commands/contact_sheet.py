"""Contact sheet: the images that went into a cache, and what its latents decode to, side by side."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import webdataset as wds
from PIL import Image, ImageOps
from torch import Tensor

from inpaint_data.batch import is_batch
from inpaint_data.commands.drawing import LINE, MARGIN, PAPER, check_suffix, draw_text, save
from inpaint_data.encoding.fills import fill_hole, hole_noise
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.encoding.vae_loading import load_vae, vae_of_cache
from inpaint_data.errors import CacheError, ShardError, UsageError
from inpaint_data.job.caching import inputs_of
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.masks.edits import Origin
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.stages import image_stages
from inpaint_data.shards.naming import shard_stem
from inpaint_data.shards.reading import ShardEnd

COLUMNS = ("image", "mask, as drawn", "mask, offset", "masked image", "decoded latents", "decoded masked_latents")


def contact_sheet(
    cache: str, shards: str | list[str], out: str, vae: str | None = None, count: int = 6, tile: int = 192
) -> str:
    """Draw samples of a cache as a PNG, one row each: spread over its buckets, its variants and its shards.

    Args:
        cache: the cache's folder.
        shards: the image shards it was made from; images and drawn masks are made again from them.
        out: the PNG to write.
        vae: the autoencoder that the cache was made with, for decoding; left out, the demo's, if that made it.
        count: rows.
        tile: side of each tile, in pixels.

    Returns:
        The path of the PNG.

    Raises:
        UsageError: nothing to draw, or `out` cannot be written.
        CacheError: the cache is damaged, or the samples are not in it.
        ShardError: a shard cannot be read.
    """
    check_suffix("out", out, (".png",))
    cached = LatentCache(cache, variant=0)
    settings = cached.settings.examples
    if settings is None or not cached.has_masked_latents:
        raise UsageError(
            f"{cache}: has no masked latents, or does not say what it was made from, so no sheet can be drawn"
        )
    if count < 1:
        raise UsageError(f"count: {count} rows leave nothing to draw")
    decoder, inputs = load_vae(vae_of_cache(vae, cached.settings.vae.config)), inputs_of(shards)
    places, stems = cached.places(), {shard_stem(shard) for shard in inputs}
    given = [index for index, (shard, _) in enumerate(places) if shard_stem(shard) in stems] or range(len(places))
    chosen = [given[number] for number in spread(cached.buckets[given].tolist(), count)]
    wanted = {places[index]: (index, number % cached.variants) for number, index in enumerate(chosen)}
    keys = {settings.pictures.views.sample_key(key) for _, key in wanted}
    rows: dict[int, Image.Image] = {}
    needed_stems = {shard_stem(shard) for shard, _ in wanted}
    needed = [url for url in inputs if shard_stem(url) in needed_stems]
    own = [wds.select(lambda sample: sample["__key__"] in keys)]
    drawn = sorted({variant for _, variant in wanted.values()})
    readers = {variant: LatentCache(cache, variant=variant) for variant in drawn}
    stages = image_stages(needed or inputs, settings, own, count, variants=drawn, threads=2)
    with closing(iter(wds.DataPipeline(*stages))) as events:
        for event in events:
            if isinstance(event, ShardEnd) and event.problem:
                raise ShardError(event.problem)
            for row, key in enumerate(event["__key__"] if is_batch(event) else []):
                place = (event["__shard__"][row], key)
                if place in wanted:
                    index, variant = wanted[place]
                    masks = event["masks"][row, drawn.index(variant)]
                    entry = readers[variant][index]
                    rows[index] = _row_of(event["image"][row], masks, entry, variant, decoder, settings, tile)
            if len(rows) == len(chosen):
                break
    if missing := [index for index in chosen if index not in rows]:
        shard, key = places[missing[0]]
        raise CacheError(
            f"{cached.root}: sample {key!r} of {shard} is not in {shards}; name the shards that the cache was made from"
        )
    return save(_stacked([rows[index] for index in chosen], tile), "out", out)


def spread(buckets: Sequence[int], count: int) -> list[int]:
    """Up to `count` samples by their buckets: of each bucket in turn, evenly over those that it has; in order."""
    members: dict[int, list[int]] = {}
    for index, bucket in enumerate(buckets):
        members.setdefault(bucket, []).append(index)
    shares = dict.fromkeys(members, 0)
    while sum(shares.values()) < min(count, len(buckets)):
        open_ones = [bucket for bucket in members if shares[bucket] < len(members[bucket])]
        shares[min(open_ones, key=lambda bucket: shares[bucket])] += 1
    return sorted(
        members[bucket][number * len(members[bucket]) // share]
        for bucket, share in shares.items()
        for number in range(share)
    )


def _row_of(
    pixels: Tensor,
    drawn: Tensor,
    entry: Mapping[str, Any],
    variant: int,
    decoder: Autoencoder,
    settings: ExampleSettings,
    tile: int,
) -> Image.Image:
    """The row of one sample: `pixels` (3, H, W) uint8, its mask as `drawn` (H, W), and what the cache has of it."""
    key, image = entry["__key__"][0], pixels[None].float() / 127.5 - 1
    noise = hole_noise(settings.seed, [key], [variant], *image.shape[-2:])
    tiles = [
        _pixels(image),
        _pixels(drawn.expand(1, 3, -1, -1) * 2.0 - 1),
        _pixels(entry["mask"].expand(1, 3, -1, -1) * 2.0 - 1),
        _pixels(fill_hole(image, entry["mask"], settings.masks.chosen_fill, -1.0, noise)),
        _pixels(decoder.decode(entry["latents"])),
        _pixels(decoder.decode(entry["masked_latents"])),
    ]
    origin = Origin(entry["generator"][0], tuple(entry["edits"][0]))
    size = f"{image.shape[-1]}x{image.shape[-2]}"
    title = f"{key}: {size}, variant {variant}, {origin}, offset {int(entry['offset'][0]):+d} px"
    return _row(tiles, title, entry["caption"][0], tile)


def _pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    """(1, 3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    scaled = (image[0].clamp(-1, 1) + 1) * 127.5
    pixels: npt.NDArray[np.uint8] = scaled.round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels


def _row(tiles: list[npt.NDArray[np.uint8]], title: str, caption: str, tile: int) -> Image.Image:
    row = Image.new("RGB", (len(tiles) * (tile + MARGIN) + MARGIN, tile + 2 * LINE + MARGIN), PAPER)
    letters = row.width // 8
    draw_text(row, (MARGIN, 2), title)
    draw_text(row, (MARGIN, LINE), caption if len(caption) <= letters else f"{caption[: letters - 3]}...")
    for column, pixels in enumerate(tiles):
        image = ImageOps.contain(Image.fromarray(pixels), (tile, tile), Image.Resampling.LANCZOS)
        row.paste(image, (MARGIN + column * (tile + MARGIN) + (tile - image.width) // 2, 2 * LINE))
    return row


def _stacked(rows: list[Image.Image], tile: int) -> Image.Image:
    sheet = Image.new("RGB", (rows[0].width, LINE + MARGIN + sum(row.height for row in rows)), PAPER)
    for column, name in enumerate(COLUMNS):
        draw_text(sheet, (MARGIN + column * (tile + MARGIN), MARGIN), name, 15)
    top = LINE + MARGIN
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet
