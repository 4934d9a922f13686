"""What the masks of a cache, or those that shards would be cached with, are like in numbers."""

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from inpaint_data.commands.mask_preview import MaskPreview
from inpaint_data.errors import ShardError, UsageError
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.masks.latent_mask import LatentMask, latent_mask
from inpaint_data.pipeline.image_shards import ImageShards
from inpaint_data.shards.reading import Fault, expand_shards
from inpaint_data.training.datamodule import is_cache

SIDES = ("top", "bottom", "left", "right")
VANISHING: tuple[LatentMask, ...] = ("nearest", "bilinear")
FEW = 0.01  # more masks than this that vanish, or are empty, deserve a warning
AHEAD = 16  # samples that are decoded at a time
PER_SHARD = 32  # samples to take from a shard at least, before another one is opened


@dataclass(frozen=True)
class Bands:
    """Neighbouring ranges of a number, by name: each reaches from the one before up to and including its `ends`."""

    names: tuple[str, ...]
    ends: tuple[float, ...]

    def of(self, value: float) -> str:
        return self.names[bisect_left(self.ends, value)]


# The bands of the irregular-mask benchmark (Liu et al. 2018), which ends at 0.6, and on to 1.
HOLES = Bands(
    ("empty", "to 0.01", "to 0.1", "to 0.2", "to 0.3", "to 0.4", "to 0.5", "to 0.6", "to 0.7", "to 0.8", "to 0.9",
     "to 1"),
    (0, 0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
)  # fmt: skip
OFFSETS = Bands(
    ("-128...-65", "-64...-33", "-32...-17", "-16...-9", "-8...-1", "0", "1...8", "9...16", "17...32", "33...64",
     "65...128"),
    (-65, -33, -17, -9, -1, 0, 8, 16, 32, 64, 128),
)  # fmt: skip
PIECES = Bands(("0", "1", "2", "3-4", "5-8", "9-16", "17 or more"), (0, 1, 2, 4, 8, 16, float("inf")))
ASPECTS = Bands(
    ("1:2 or taller", "1:2 to 2:3", "2:3 to 4:5", "within 5:4", "5:4 to 3:2", "3:2 to 2:1", "over 2:1"),
    (1 / 2, 2 / 3, 4 / 5, 5 / 4, 3 / 2, 2, float("inf")),
)
RESOLUTIONS = Bands(
    ("to 128", "to 256", "to 384", "to 512", "to 768", "to 1024", "to 1536", "to 2048", "over 2048"),
    (128, 256, 384, 512, 768, 1024, 1536, 2048, float("inf")),
)  # of the short side, in pixels


@dataclass
class MaskStatistics:
    """What was counted. A mask is looked at as the model will see it: after its offset, at full resolution.

    Args:
        source: the cache or the shards.
        factor: pixels per latent along each side.
        of: which samples there are, in words.
        samples: looked at; each view of a picture is one.
        variants: masks of a sample.
        bad: (shard, key, reason) of each sample that gives none.
        filtered: how many samples were left out on purpose.
        holes: label -> band of the hole ratio -> masks. A label is the generator's name, with what was done to its
            mask behind it: "object+inverted".
        ratios: label -> sum of the hole ratios.
        offsets: pixels -> masks.
        borders: side, or "any" -> masks that touch it.
        pieces: connected components (of eight neighbours) -> masks.
        vanished: "nearest" (as diffusers' pipelines bring a mask to latents) or "bilinear" (then rounded, as ComfyUI
            does) -> masks of which nothing is left then, though they were not empty.
        originals, targets: (height, width) of the pictures, and of what is cut out of them -> samples.
    """

    source: str
    factor: int
    of: str = ""
    samples: int = 0
    variants: int = 1
    bad: list[tuple[str, str | None, str]] = field(default_factory=list)
    filtered: int = 0
    holes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    ratios: Counter[str] = field(default_factory=Counter)
    offsets: Counter[int] = field(default_factory=Counter)
    borders: Counter[str] = field(default_factory=Counter)
    pieces: Counter[int] = field(default_factory=Counter)
    vanished: Counter[str] = field(default_factory=Counter)
    originals: Counter[tuple[int, int]] = field(default_factory=Counter)
    targets: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add_picture(self, original: Sequence[int], target: Sequence[int]) -> None:
        self.samples += 1
        self.originals[original[0], original[1]] += 1
        self.targets[target[0], target[1]] += 1

    def add_mask(self, mask: Tensor, label: str, offset: int) -> None:
        """Count one mask (H, W), bool, or float of which more than 0.5 is masked."""
        hard = mask > 0.5 if mask.is_floating_point() else mask
        array = hard.numpy()
        ratio = float(np.count_nonzero(array) / array.size)
        self.holes[label][HOLES.of(ratio)] += 1
        self.ratios[label] += ratio  # type: ignore[assignment]
        self.offsets[offset] += 1
        touched = [bool(edge.any()) for edge in (array[0], array[-1], array[:, 0], array[:, -1])]
        self.borders.update(side for side, there in zip(SIDES, touched, strict=True) if there)
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
        """Generator, whatever was done to its masks -> masks by band of the hole ratio, and their mean ratio."""
        names = {label: label.split("+")[0] for label in sorted(self.holes)}
        return {
            name: self._of([label for label in names if names[label] == name]) for name in dict.fromkeys(names.values())
        }

    @property
    def by_label(self) -> dict[str, tuple[Counter[str], float]]:
        """The same for every label."""
        return {label: self._of([label]) for label in sorted(self.holes)}

    @property
    def of_all(self) -> tuple[Counter[str], float]:
        return self._of(list(self.holes))

    def _of(self, labels: Sequence[str]) -> tuple[Counter[str], float]:
        bands = sum((self.holes[label] for label in labels), Counter[str]())
        return bands, sum(self.ratios[label] for label in labels) / max(1, bands.total())

    def share_that_vanishes(self, how: LatentMask) -> float:
        """Of the masks that are not empty at full resolution."""
        return self.vanished[how] / max(1, self.masks - self.empty)

    @property
    def empty_by_accident(self) -> Counter[str]:
        """Label -> masks that are empty, without those of the generator "none", which are meant to be."""
        return Counter({label: bands["empty"] for label, bands in self.holes.items() if label != "none"})

    def warnings(self) -> list[str]:
        """One line where more than 1 % of the masks are empty that should not be, and one for each way of bringing
        masks to latents in which more than 1 % of the others vanish."""
        lines = []
        if (share := self.empty_by_accident.total() / max(1, self.masks)) > FEW:
            label, count = self.empty_by_accident.most_common(1)[0]
            lines.append(
                f"WARNING: {share:.1%} of the masks are empty ({label}: {count} of {self.holes[label].total()}): the "
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
        """All that was counted, as one object; shares are of the masks, and sizes are (height, width)."""

        def holes(groups: dict[str, tuple[Counter[str], float]]) -> dict[str, Any]:
            return {
                name: {"masks": bands.total(), "mean": round(mean, 6), "bands": counted(bands, HOLES)}
                for name, (bands, mean) in groups.items()
            }

        return json.dumps(
            {
                "source": self.source,
                "samples": self.samples,
                "of": self.of,
                "variants": self.variants,
                "masks": self.masks,
                "empty": self.empty,
                "bad": [{"shard": shard, "key": key, "reason": reason} for shard, key, reason in self.bad],
                "filtered": self.filtered,
                "hole_ratio": holes({"all": self.of_all})["all"]
                | {"by_generator": holes(self.by_generator), "by_label": holes(self.by_label)},
                "offset": spread(self.offsets) | {"bands": counted(banded(self.offsets, OFFSETS), OFFSETS)},
                "border": {side: self.borders[side] / max(1, self.masks) for side in (*SIDES, "any")},
                "components": spread(self.pieces) | {"bands": counted(banded(self.pieces, PIECES), PIECES)},
                "vanishing": {"factor": self.factor} | {how: self.share_that_vanishes(how) for how in VANISHING},
                "original": _pictures(self.originals),
                "target": _pictures(self.targets),
            }
        )


def mask_statistics(
    source: str | list[str], samples: int = 1000, factor: int | None = None, **settings: Any
) -> MaskStatistics:
    """Look at the masks of a cache, or at those that shards would be cached with.

    Args:
        source: a cache's folder or URL; or image shards, as `cache_latents` takes them.
        samples: how many to look at, spread evenly over all; of each of them every variant.
        factor: pixels per latent along each side, for shards; 8 if left out. A cache knows its own.
        settings: for shards, those of `cache_latents` that decide a mask; none for a cache.

    Raises:
        UsageError: no such source, settings that cannot work, or settings for a cache.
        CacheError, ShardError: the cache or a shard cannot be read, or nothing in it gives a mask.
    """
    if samples < 1:
        raise UsageError(f"samples: {samples} leaves nothing to look at; give 1 or more")
    if factor is not None and factor < 1:
        raise UsageError(f"factor: {factor} is no number of pixels; 8 is that of most autoencoders")
    if not is_cache(source):
        return _of_shards(source, samples, factor or 8, settings)
    given = [*settings, *(["factor"] if factor else [])]
    if given:
        raise UsageError(f"{given[0]}: {source} is a cache, whose masks are made already; leave the setting out")
    return _of_cache(str(source), samples)


def banded(numbers: Counter[int], bands: Bands) -> Counter[str]:
    """The same counts by band."""
    result: Counter[str] = Counter()
    for number, count in numbers.items():
        result[bands.of(number)] += count
    return result


def counted(counts: Counter[str], bands: Bands) -> dict[str, int]:
    """The count of each band, in the order of the bands."""
    return {name: counts[name] for name in bands.names}


def spread(numbers: Counter[int]) -> dict[str, float]:
    """Least, mean and greatest of what was counted."""
    mean = sum(number * count for number, count in numbers.items()) / max(1, numbers.total())
    return {"min": min(numbers, default=0), "mean": round(mean, 3), "max": max(numbers, default=0)}


def aspects(sizes: Counter[tuple[int, int]]) -> Counter[str]:
    """Pictures by the band of width to height."""
    result: Counter[str] = Counter()
    for (height, width), count in sizes.items():
        result[ASPECTS.of(width / height)] += count
    return result


def short_sides(sizes: Counter[tuple[int, int]]) -> Counter[int]:
    result: Counter[int] = Counter()
    for size, count in sizes.items():
        result[min(size)] += count
    return result


def _pictures(sizes: Counter[tuple[int, int]]) -> dict[str, Any]:
    short = short_sides(sizes)
    common = [{"height": height, "width": width, "samples": n} for (height, width), n in sizes.most_common(20)]
    return {
        "short_side": spread(short) | {"bands": counted(banded(short, RESOLUTIONS), RESOLUTIONS)},
        "aspect": counted(aspects(sizes), ASPECTS),
        "sizes": len(sizes),
        "most_common": common,
    }


def _of_cache(root: str, samples: int) -> MaskStatistics:
    cache = LatentCache(root, masked_latents=False, carried=())
    found = MaskStatistics(root, 0, f"of {len(cache)} in the cache", variants=cache.variants)
    found.bad = [(shard, entry.key, entry.reason) for shard, entry in cache.quarantined]
    found.filtered = len(cache.filtered)
    for index in _progress(_evenly(len(cache), samples)):
        for variant in range(cache.variants):
            cache.variant = variant
            batch = cache[index]
            found.factor = batch["mask"].shape[-1] // batch["latents"].shape[-1]
            found.add_mask(batch["mask"][0, 0], batch["generator"][0][0], int(batch["offset"][0]))
        found.add_picture(batch["original_size"][0].tolist(), batch["target_size"][0].tolist())
    return found


def _of_shards(source: str | list[str], samples: int, factor: int, settings: dict[str, Any]) -> MaskStatistics:
    preview = MaskPreview(**settings)
    try:
        shards = expand_shards(source)
    except UsageError as error:
        if not isinstance(source, str):
            raise
        reason = str(error).removeprefix("shards: ")
        raise UsageError(f"{source}: is no cache, and cannot be read as shards: {reason}") from None
    images, opened = _open(shards, preview, samples)
    name = source if isinstance(source, str) else ", ".join(source)
    found = MaskStatistics(name, factor, f"of {len(images)} in {opened} of {len(shards)} shards")
    found.variants = len(preview.variants)
    found.bad = [(fault.shard, fault.key, fault.reason) for fault in images.faults]
    faults: dict[tuple[str, str | None], Fault] = {}
    chosen = _evenly(len(images), samples)
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        for start in _progress(range(0, len(chosen), AHEAD)):
            made = pool.map(lambda index: images.example(index, preview.variants), chosen[start : start + AHEAD])
            for example in made:
                if isinstance(example, Fault):
                    faults[example.shard, example.key] = example  # once, for all views of a sample
                    continue
                batch = preview(example, preview.variants)
                offsets = batch["offset"].reshape(-1).tolist()
                for mask, label, offset in zip(batch["mask"][0], batch["generator"][0], offsets, strict=True):
                    found.add_mask(mask, label, offset)
                found.add_picture(batch["original_size"][0].tolist(), batch["target_size"][0].tolist())
    found.bad += [(each.shard, each.key, each.reason) for each in faults.values() if not each.filtered]
    filtered = [(each.shard, each.key, f"filters: {each.reason}") for each in faults.values() if each.filtered]
    found.filtered = len(filtered) + images.too_small
    if not found.samples:
        shard, key, reason = (found.bad or filtered)[0]
        raise ShardError(
            f"{name}: no sample gives a mask: {found.filtered} filtered, {len(found.bad)} bad; the first, {shard}, "
            f"sample {key!r}: {reason}{'' if found.bad else '; loosen that filter'}"
        )
    return found


def _open(shards: Sequence[str], preview: MaskPreview, samples: int) -> tuple[ImageShards, int]:
    """As many of the shards, evenly spread, as give enough samples, and how many these are."""
    number = max(1, samples // PER_SHARD)
    while True:
        chosen = [shards[index] for index in _evenly(len(shards), number)]
        images = ImageShards(chosen, preview.settings, preview.variants, threads=1)
        if len(images) >= samples or len(chosen) == len(shards):
            return images, len(chosen)
        number *= 4


def _evenly(count: int, wanted: int) -> Sequence[int]:
    return range(count) if wanted >= count else [number * count // wanted for number in range(wanted)]


def _progress(items: Sequence[int]) -> Iterator[int]:
    """The items, with a bar on a terminal."""
    return iter(tqdm(items, desc="looking at masks", disable=None, leave=False))
