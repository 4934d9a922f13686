"""Mask sheet: 64 masks over the demo's images, to look at before a job."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from inpaint_data.commands.drawing import MARGIN, PAPER, check_suffix, draw_text, save, text_width
from inpaint_data.demo import OBJECTS, PHOTOS
from inpaint_data.encoding.encoder import Encoder
from inpaint_data.encoding.settings import EncodeSettings
from inpaint_data.errors import UsageError
from inpaint_data.job.caching import inputs_of
from inpaint_data.job.settings import JobSettings
from inpaint_data.masks.edits import Origin
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.examples import Example, collate, prepare
from inpaint_data.pictures.settings import ExampleSettings, PictureSettings
from inpaint_data.settings import group_of
from inpaint_data.shards.reading import Fault, Sample, read_shard

SIDE = 8  # tiles in a row, and rows
TILE, LETTERS, FONT = 112, 14, 11  # pixels: side of a tile, height of a line under it and of its letters
HOLE = (225, 70, 40)
SUFFIXES = (".png", ".jpg", ".jpeg")


def mask_sheet(
    out: str,
    pictures: PictureSettings | Mapping[str, Any] | None = None,
    masks: MaskSettings | Mapping[str, Any] | None = None,
    job: JobSettings | Mapping[str, Any] | None = None,
    shards: str | list[str] | None = None,
) -> str:
    """Draw 64 masks, as a caching job would make them, after their offset: over the demo's images, or your own.

    Below each are its label, its hole ratio and its offset. Images smaller than the resolution are enlarged. Object
    masks are drawn over those images that have objects marked by hand.

    Args:
        out: the .png or .jpg to write.
        pictures, masks, job: as `cache_latents` takes them, except that over the demo's images the source of masks is
            "mixture" if none is set.
        shards: image shards whose first samples are drawn over, with the masks that they bring if these are asked for.

    Returns:
        The path of the sheet.

    Raises:
        UsageError: settings that cannot work, masks that only your own samples have, no such shards, or `out` cannot
            be written.
        ShardError: a shard cannot be read.
    """
    check_suffix("out", out, SUFFIXES)
    pictures, masks = group_of(PictureSettings, pictures), group_of(MaskSettings, masks)
    if shards is None and "source" not in masks.given:
        masks = masks.but(source="mixture")
    if shards is None and masks.source in ("sample", "alpha"):
        raise UsageError(
            f"masks: {masks.source} takes the masks of your own samples, which the demo's images do not have; name "
            "your shards, or a generator or mixture"
        )
    pictures = pictures.but(upscale=True, small="quarantine", target=False, control=False)
    settings = ExampleSettings(pictures, masks, group_of(JobSettings, job).seed)
    encoder = Encoder(masks, EncodeSettings(), None, settings.seed)
    samples = _demo(masks) if shards is None else _of_shards(shards)
    tiles = list(islice(_tiles(samples, settings, encoder), SIDE * SIDE))
    return save(_stacked(tiles), "out", out)


def _tiles(items: Iterable[Sample | Fault], settings: ExampleSettings, encoder: Encoder) -> Iterator[Image.Image]:
    """A tile for each mask: variant 0 of every view of every image, then variant 1, and so on.

    Raises:
        UsageError: no image gives a mask in variant 0.
    """
    samples, reasons = [], []
    for item in items:
        if isinstance(item, Sample):
            samples.append(item)
        else:
            reasons.append(f"{item.key}: {item.reason}")
    drawn = 0
    for variant in range(SIDE * SIDE):
        for sample in samples:
            for example in prepare(sample, settings, [variant]):
                if isinstance(example, Fault):
                    reasons.append(f"{example.key}: {example.reason}")
                    continue
                batch = encoder.masks(collate([example]))[0]
                drawn += 1
                offset, window = int(batch["offset"][0]), batch["window"][0]
                growth = f"{offset:+d} px" if window == "square" or not offset else f"{offset:+d} {window}"
                yield _tile(example, batch["mask"][0, 0], example.origins[0], growth)
        if not drawn:
            first = f"; the first, {reasons[0]}" if reasons else ""
            raise UsageError(f"masks: no image gives a mask{first}")


def _of_shards(shards: str | list[str]) -> list[Sample | Fault]:
    """The first samples of the user's shards."""
    items = (item for shard in inputs_of(shards) for item in read_shard(shard))
    return list(islice((item for item in items if isinstance(item, Sample | Fault)), SIDE * SIDE))


def _demo(masks: MaskSettings) -> Iterator[Sample]:
    """The demo's images; only those with objects where the mixture may draw one."""
    objects: dict[str, Any] = json.loads(OBJECTS.read_bytes())
    for path in sorted(PHOTOS.glob("*.jpg")):
        if path.stem in objects:
            members = {"jpg": path.read_bytes(), "json": json.dumps(objects[path.stem]).encode()}
            yield Sample("demo.tar", path.stem, members)
        elif not masks.draws_objects:
            yield Sample("demo.tar", path.stem, {"jpg": path.read_bytes()})


def _tile(example: Example, mask: Tensor, origin: Origin, growth: str) -> Image.Image:
    """The image in pale grey with its hole in colour, and the label below."""
    image = Image.fromarray(example.image).convert("L").point(lambda grey: 150 + grey * 2 // 5).convert("RGB")
    alpha = Image.fromarray(np.asarray(mask.float().mul(220).round().byte()))
    image.paste(Image.new("RGB", image.size, HOLE), mask=alpha)
    image = ImageOps.contain(image, (TILE, TILE), Image.Resampling.BOX)
    ratio = float((mask > 0.5).float().mean()) if mask.is_floating_point() else float(mask.float().mean())
    lines = [*_wrapped(str(origin), "+"), *_wrapped(f"hole {ratio:.3f}, {growth}", " ")]
    tile = Image.new("RGB", (TILE, TILE + max(3, len(lines)) * LETTERS), PAPER)
    tile.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    for number, line in enumerate(lines):
        draw_text(tile, (0, TILE + number * LETTERS), line, FONT)
    return tile


def _wrapped(text: str, before: str) -> list[str]:
    """The text in as many lines as it needs, broken before a "+" or a space."""
    first, *parts = text.split(before)
    lines = [first]
    for part in parts:
        longer = f"{lines[-1]}{before}{part}"
        if text_width(longer, FONT) <= TILE:
            lines[-1] = longer
        else:
            lines.append(f"{before}{part}".lstrip())
    return lines


def _stacked(tiles: list[Image.Image]) -> Image.Image:
    rows = -(-len(tiles) // SIDE)
    height = max(tile.height for tile in tiles)
    sheet = Image.new("RGB", (SIDE * (TILE + MARGIN) + MARGIN, rows * height + MARGIN), PAPER)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, SIDE)
        sheet.paste(tile, (MARGIN + column * (TILE + MARGIN), MARGIN + row * height))
    return sheet
