"""Contact sheet: the images that went into a cache, and what its latents decode to, side by side."""

from contextlib import closing

import numpy as np
import numpy.typing as npt
import torch
import webdataset as wds
from PIL import Image, ImageOps
from torch import Tensor

from inpaint_data.batch import ImageBatch, is_batch
from inpaint_data.commands.drawing import LINE, MARGIN, PAPER, check_suffix, draw_text, save
from inpaint_data.encoding.fills import fill_hole, hole_noise
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.encoding.vae_loading import load_vae
from inpaint_data.errors import CacheError, ShardError, UsageError
from inpaint_data.job.caching import inputs_of
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.masks.edits import Origin
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.stages import image_stages
from inpaint_data.shards.reading import ShardEnd

COLUMNS = ("image", "mask, as drawn", "mask, offset", "masked image", "decoded latents", "decoded masked_latents")


def contact_sheet(
    cache: str, shards: str | list[str], out: str, vae: str = "demo", count: int = 6, tile: int = 192
) -> str:
    """Draw the first samples of a cache as a PNG, one row each.

    Args:
        cache: the cache's folder.
        shards: the image shards it was made from; images and drawn masks are made again from them.
        out: the PNG to write.
        vae: the VAE that the cache was made with, for decoding.
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
    decoder = load_vae(vae)
    rows: list[Image.Image] = []
    stages = image_stages(inputs_of(shards), settings, (), count, variants=[0], threads=2)
    with closing(iter(wds.DataPipeline(*stages))) as events:
        for event in events:
            if isinstance(event, ShardEnd) and event.problem:
                raise ShardError(event.problem)
            if is_batch(event):
                rows += _rows(event, cached, decoder, settings, tile)
            if len(rows) >= count:
                break
    if not rows:
        raise UsageError(f"count: {count} rows leave nothing to draw")
    return save(_stacked(rows[:count], tile), "out", out)


def _rows(
    batch: ImageBatch, cached: LatentCache, decoder: Autoencoder, settings: ExampleSettings, tile: int
) -> list[Image.Image]:
    places = {place: index for index, place in enumerate(cached.places())}
    rows = []
    for row, key in enumerate(batch["__key__"]):
        shard = batch["__shard__"][row]
        if (shard, key) not in places:
            raise CacheError(
                f"{cached.root}: sample {key!r} of {shard} is not in this cache; name the shards it was made from"
            )
        entry = cached[places[shard, key]]
        image = batch["image"][row : row + 1].float() / 127.5 - 1
        noise = hole_noise(settings.seed, [key], [0], *image.shape[-2:])
        tiles = [
            _pixels(image),
            _pixels(batch["masks"][row, :1].expand(1, 3, -1, -1) * 2.0 - 1),
            _pixels(entry["mask"].expand(1, 3, -1, -1) * 2.0 - 1),
            _pixels(fill_hole(image, entry["mask"] >= 0.5, settings.masks.chosen_fill, -1.0, noise)),
            _pixels(decoder.decode(entry["latents"])),
            _pixels(decoder.decode(entry["masked_latents"])),
        ]
        origin = Origin(entry["generator"][0], tuple(entry["edits"][0]))
        rows.append(_row(tiles, f"{key}: {origin}, offset {int(entry['offset'][0]):+d} px", tile))
    return rows


def _pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    """(1, 3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    scaled = (image[0].clamp(-1, 1) + 1) * 127.5
    pixels: npt.NDArray[np.uint8] = scaled.round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels


def _row(tiles: list[npt.NDArray[np.uint8]], title: str, tile: int) -> Image.Image:
    row = Image.new("RGB", (len(tiles) * (tile + MARGIN) + MARGIN, tile + LINE + MARGIN), PAPER)
    draw_text(row, (MARGIN, 2), title)
    for column, pixels in enumerate(tiles):
        image = ImageOps.contain(Image.fromarray(pixels), (tile, tile), Image.Resampling.LANCZOS)
        row.paste(image, (MARGIN + column * (tile + MARGIN) + (tile - image.width) // 2, LINE))
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
