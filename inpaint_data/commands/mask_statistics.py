"""Statistics of masks: those of a cache, or those that shards would be cached with."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from inpaint_data.batch import Batch
from inpaint_data.commands.bands import (
    HOLES,
    OFFSETS,
    PIECES,
    by_band,
    image_sizes,
    in_band_order,
    spread,
)
from inpaint_data.encoding.encoder import Encoder
from inpaint_data.encoding.settings import EncodeSettings
from inpaint_data.errors import ShardError, UsageError
from inpaint_data.job.settings import JobSettings
from inpaint_data.latent_cache.format import is_cache_or_lost
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.masks.edits import Origin
from inpaint_data.masks.latent_mask import LatentMask, latent_mask
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import ExampleSettings, PictureSettings
from inpaint_data.pipeline.indexed import IndexedShards
from inpaint_data.pipeline.stages import BatchEnd
from inpaint_data.settings import group_of, short_name
from inpaint_data.shards.naming import expand_shards
from inpaint_data.shards.reading import Fault
from inpaint_data.shown import shown

SIDES = ("top", "bottom", "left", "right")
VANISHING: tuple[LatentMask, ...] = ("nearest", "bilinear-round")
FEW = 0.01  # a larger share of masks that vanish or are empty gives a warning
NAMED = 3  # samples with empty masks, and with full ones
THREADS = 2  # that decode
PER_SHARD = 32  # samples to take from a shard at least before the next one is opened


@dataclass
class MaskStatistics:
    """Counts of masks, each taken as the model will see it: after its offset, at full resolution.

    Args:
        source: the cache or the shards.
        factor: pixels per latent along each side.
        of: which samples there are, in words.
        samples: looked at; each view of an image is one.
        variants: masks of a sample.
        bad: (shard, key, reason) of each sample that gives no mask.
        filtered: how many samples were left out on purpose.
        holes: origin -> band of the hole ratio -> masks.
        ratios: origin -> sum of the hole ratios.
        offsets: pixels -> masks.
        borders: side, or "any" -> masks that touch it.
        pieces: connected components (of eight neighbours) -> masks.
        full, named: masks that leave nothing of the image; the first samples with those, and with "empty" ones.
        vanished: "nearest" (how diffusers' pipelines bring a mask to latents) or "bilinear-round" (ComfyUI's
            inpainting models) -> masks that are empty at latent size, though they are not at full resolution.
        originals, targets: (height, width) of the images, and of what is cut out of them -> samples.
        stored, in_cache: of a cache, member -> bytes of all its samples, and how many these are.
    """

    source: str
    factor: int
    of: str = ""
    samples: int = 0
    variants: int = 1
    bad: list[tuple[str, str | None, str]] = field(default_factory=list)
    filtered: int = 0
    holes: dict[Origin, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    ratios: Counter[Origin] = field(default_factory=Counter)
    offsets: Counter[int] = field(default_factory=Counter)
    borders: Counter[str] = field(default_factory=Counter)
    pieces: Counter[int] = field(default_factory=Counter)
    full: int = 0
    named: dict[str, list[str]] = field(default_factory=lambda: {"empty": [], "full": []})
    vanished: Counter[str] = field(default_factory=Counter)
    originals: Counter[tuple[int, int]] = field(default_factory=Counter)
    targets: Counter[tuple[int, int]] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)
    in_cache: int = 0

    def add_image(self, original: Sequence[int], target: Sequence[int]) -> None:
        self.samples += 1
        self.originals[original[0], original[1]] += 1
        self.targets[target[0], target[1]] += 1

    def add_mask(self, mask: Tensor, origin: Origin, offset: int, name: str = "") -> None:
        """Count one mask (H, W), bool, or float of which more than 0.5 is masked, of the sample of that name."""
        hard = mask > 0.5 if mask.is_floating_point() else mask
        array = hard.numpy()
        ratio = float(np.count_nonzero(array) / array.size)
        self.holes[origin][HOLES.of(ratio)] += 1
        self.full += ratio == 1
        kind = {0.0: "empty", 1.0: "full"}.get(ratio)
        if kind and len(self.named[kind]) < NAMED and name not in self.named[kind]:
            self.named[kind].append(name)
        self.ratios[origin] += ratio  # type: ignore[assignment]
        self.offsets[offset] += 1
        touched = [bool(edge.any()) for edge in (array[0], array[-1], array[:, 0], array[:, -1])]
        self.borders.update(side for side, touches in zip(SIDES, touched, strict=True) if touches)
        self.borders["any"] += any(touched)
        self.pieces[cv2.connectedComponents(array.view(np.uint8), connectivity=8)[0] - 1] += 1
        for how in VANISHING:
            self.vanished[how] += ratio > 0 and not bool(latent_mask(hard[None, None], self.factor, how).any())

    @property
    def masks(self) -> int:
        return self.offsets.total()

    @property
    def empty(self) -> int:
        return sum(bands["empty"] for bands in self.holes.values())

    @property
    def by_generator(self) -> dict[str, tuple[Counter[str], float]]:
        """Generator, whatever the edits -> masks by band of the hole ratio, and their mean ratio."""
        return {name: self._of(self.origins_of(name)) for name in sorted({origin.generator for origin in self.holes})}

    def origins_of(self, generator: str) -> list[Origin]:
        return sorted(origin for origin in self.holes if origin.generator == generator)

    @property
    def by_label(self) -> dict[str, tuple[Counter[str], float]]:
        """The same for every origin, by its text."""
        return {str(origin): self.of_origin(origin) for origin in sorted(self.holes)}

    def of_origin(self, origin: Origin) -> tuple[Counter[str], float]:
        return self._of([origin])

    @property
    def of_all(self) -> tuple[Counter[str], float]:
        return self._of(list(self.holes))

    def _of(self, origins: Sequence[Origin]) -> tuple[Counter[str], float]:
        bands = sum((self.holes[origin] for origin in origins), Counter[str]())
        return bands, sum(self.ratios[origin] for origin in origins) / max(1, bands.total())

    def share_that_vanishes(self, how: LatentMask) -> float:
        """The share of the masks not empty at full resolution that are empty at latent size."""
        return self.vanished[how] / max(1, self.masks - self.empty)

    @property
    def empty_by_accident(self) -> Counter[Origin]:
        """Origin -> empty masks, without those of the generator "none", which are meant to be empty."""
        return Counter({origin: bands["empty"] for origin, bands in self.holes.items() if origin != Origin("none")})

    def warnings(self) -> list[str]:
        """One line if more than 1 % of the masks are empty by accident, and one for each way of bringing masks to
        latents in which more than 1 % of the others vanish."""
        lines = []
        if (share := self.empty_by_accident.total() / max(1, self.masks)) > FEW:
            origin, count = self.empty_by_accident.most_common(1)[0]
            lines.append(
                f"WARNING: {share:.1%} of the masks are empty ({origin}: {count} of {self.holes[origin].total()}): the "
                "model is then told to repaint nothing; let mask_offset shrink less, leave small masks out with "
                "min_hole (of filters, or of the mixture), or keep precision and invert of the mixture apart"
            )
        return lines + [
            f"WARNING: {share:.1%} of the masks that are not empty vanish at latent resolution ({how}, {self.factor}x "
            "smaller): the model is then told to repaint nothing; raise min_hole, let mask_offset grow them, or train "
            'with conditioning(..., latent_mask="max")'
            for how in VANISHING
            if (share := self.share_that_vanishes(how)) > FEW
        ]

    def to_json(self) -> str:
        """All counts as one object; shares are of the masks, and sizes are (height, width)."""

        def holes(groups: dict[str, tuple[Counter[str], float]]) -> dict[str, Any]:
            return {
                name: {"masks": bands.total(), "mean": round(mean, 6), "bands": in_band_order(bands, HOLES)}
                for name, (bands, mean) in groups.items()
            }

        counts = {
            "source": self.source,
            "samples": self.samples,
            "of": self.of,
            "variants": self.variants,
            "masks": self.masks,
            "empty": self.empty,
            "full": self.full,
            "first": self.named,
            "bad": [{"shard": shard, "key": key, "reason": reason} for shard, key, reason in self.bad],
            "filtered": self.filtered,
            "hole_ratio": holes({"all": self.of_all})["all"]
            | {"by_generator": holes(self.by_generator), "by_label": holes(self.by_label)},
            "offset": spread(self.offsets) | {"bands": in_band_order(by_band(self.offsets, OFFSETS), OFFSETS)},
            "border": {side: self.borders[side] / max(1, self.masks) for side in (*SIDES, "any")},
            "components": spread(self.pieces) | {"bands": in_band_order(by_band(self.pieces, PIECES), PIECES)},
            "vanishing": {"factor": self.factor} | {how: self.share_that_vanishes(how) for how in VANISHING},
            "original": image_sizes(self.originals),
            "target": image_sizes(self.targets),
            "bytes": dict(self.stored),
        }
        return shown(json.dumps(counts))


def mask_statistics(
    source: str | list[str],
    samples: int = 1000,
    factor: int | None = None,
    pictures: PictureSettings | Mapping[str, Any] | None = None,
    masks: MaskSettings | Mapping[str, Any] | None = None,
    job: JobSettings | Mapping[str, Any] | None = None,
) -> MaskStatistics:
    """Count what the masks of a cache are like, or those that shards would be cached with.

    Args:
        source: a cache's folder or URL; or image shards, as `cache_latents` takes them.
        samples: how many to look at, spread evenly over all; of each of them every variant.
        factor: pixels per latent along each side, for shards; 8 if left out. A cache knows its own.
        pictures, masks, job: for shards, as `cache_latents` takes them; leave them out for a cache.

    Raises:
        UsageError: no such source, settings that cannot work, or settings for a cache.
        CacheError, ShardError: the cache or a shard cannot be read, or nothing in it gives a mask.
    """
    if samples < 1:
        raise UsageError(f"samples: {samples} leaves nothing to look at; give 1 or more", ("samples",))
    if factor is not None and factor < 1:
        raise UsageError(f"factor: {factor} is not a number of pixels; most autoencoders have 8", ("factor",))
    pictures, masks = group_of(PictureSettings, pictures), group_of(MaskSettings, masks)
    job = group_of(JobSettings, job)
    if not (isinstance(source, str) and is_cache_or_lost(source)):
        return _of_shards(source, samples, factor or 8, ExampleSettings(pictures, masks, job.seed), job.variants)
    refused = [
        (short_name(type(settings), name), (settings.group, name))
        for settings in (pictures, masks, job)
        for name in settings.given
        if name in ("variants", "seed") or (settings is not job and name not in ("carry_image", "fill"))
    ] + ([("factor", ("factor",))] if factor else [])
    if refused:
        name, place = refused[0]
        raise UsageError(f"{name}: {source} is a cache, whose masks are made already; leave the setting out", place)
    return _of_cache(source, samples)


def _of_cache(root: str, samples: int) -> MaskStatistics:
    cache = LatentCache(root, masked_latents=False, carried=())
    statistics = MaskStatistics(root, 0, f"of {len(cache)} in the cache", variants=cache.variants)
    statistics.bad = [(shard, entry.key, entry.reason) for shard, entry in cache.quarantined]
    statistics.filtered = len(cache.filtered)
    statistics.stored, statistics.in_cache = cache.member_bytes, len(cache)
    for index in _progress(_evenly(len(cache), samples)):
        for variant in range(cache.variants):
            cache.variant = variant
            batch = cache[index]
            statistics.factor = batch["mask"].shape[-1] // batch["latents"].shape[-1]
            _add(statistics, batch)
        statistics.add_image(batch["original_size"][0].tolist(), batch["target_size"][0].tolist())
    return statistics


def _add(statistics: MaskStatistics, batch: Batch) -> None:
    """Count the mask of a batch of one."""
    origin = Origin(batch["generator"][0], tuple(batch["edits"][0]))
    name = f"{batch['__shard__'][0].removesuffix('.tar')}/{batch['__key__'][0]}"
    statistics.add_mask(batch["mask"][0, 0], origin, int(batch["offset"][0]), name)


def _of_shards(
    source: str | list[str], samples: int, factor: int, settings: ExampleSettings, variants: int
) -> MaskStatistics:
    encoder = Encoder(settings.masks, EncodeSettings(), None, settings.seed)
    try:
        shards = expand_shards(source)
    except UsageError as error:
        if not isinstance(source, str):
            raise
        reason = str(error).removeprefix("shards: ")
        raise UsageError(f"{source}: is not a cache, and cannot be read as shards: {reason}") from None
    images, shards_opened = _open(shards, settings, samples)
    name = source if isinstance(source, str) else ", ".join(source)
    samples_text = f"of {len(images)} in {shards_opened} of {len(shards)} shards"
    statistics = MaskStatistics(name, factor, samples_text, variants=variants)
    faults: dict[tuple[str, str | None], Fault] = {}
    plan = [[row] for row in _evenly(len(images), samples)]
    with torch.inference_mode():
        events = images.pipeline(plan, 1, range(variants), THREADS)
        for event in _progress(events, len(plan)):
            if isinstance(event, Fault):
                faults[event.shard, event.key] = event  # once, for all views of a sample
            elif not isinstance(event, BatchEnd):
                for batch in encoder.masks(event):
                    _add(statistics, batch)
                statistics.add_image(event["original_size"][0].tolist(), event["target_size"][0].tolist())
    filtered: list[tuple[str, str | None, str]] = []
    for fault in (*images.faults, *faults.values()):
        if fault.on_purpose:
            filtered.append((fault.shard, fault.key, f"filters: {fault.reason}"))
        else:
            statistics.bad.append((fault.shard, fault.key, fault.reason))
    statistics.filtered = len(filtered) + images.finder.too_small
    if not statistics.samples:
        shard, key, reason = (statistics.bad or filtered)[0]
        advice = "" if statistics.bad else "; loosen that filter"
        raise ShardError(
            f"{name}: no sample gives a mask: {statistics.filtered} filtered, {len(statistics.bad)} bad; the first, "
            f"{shard}, sample {key!r}: {reason}{advice}"
        )
    return statistics


def _open(shards: Sequence[str], settings: ExampleSettings, samples: int) -> tuple[IndexedShards, int]:
    """Enough of the shards, evenly spread, for that many samples; and how many shards these are."""
    number = max(1, samples // PER_SHARD)
    while True:
        chosen = [shards[index] for index in _evenly(len(shards), number)]
        images = IndexedShards(chosen, settings)
        if len(images) >= samples or len(chosen) == len(shards):
            return images, len(chosen)
        number *= 4


def _evenly(count: int, chosen: int) -> Sequence[int]:
    """Indexes of `chosen` items, spread evenly over `count`; of all items where there are fewer."""
    return range(count) if chosen >= count else [number * count // chosen for number in range(chosen)]


def _progress(items: Iterable[Any], total: int | None = None) -> Iterator[Any]:
    """The items, with a bar on a terminal."""
    return iter(tqdm(items, desc="looking at masks", total=total, disable=None, leave=False))
