"""Whether the members of one cached sample hold what the settings of their cache say."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import CacheError, SampleError, UsageError
from inpaint_data.latent_cache.format import (
    LATENTS,
    MASK,
    MASKED_LATENTS,
    RECORD,
    SIZES,
    SOFT_MASK,
    TARGET_LATENTS,
    coverage_of,
    json_bytes,
    npy_bytes,
    pbm_bytes,
    read_pbm,
    read_png,
)
from inpaint_data.masks.morphology import Window
from inpaint_data.masks.offsets import check_offset, offset_from, windows_of
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.settings import settings_of

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
FIELDS = {"caption", *SIZES, "flip", "variants"}
FIELDS_OF_VARIANT = {"offset", "window", "generator", "coverage"}


@dataclass(frozen=True)
class Expected:
    """What the settings say of every sample."""

    variants: int
    sizes: frozenset[Size]  # of pictures and masks
    factor: int  # how much smaller latents are
    storage: str
    has_posterior: bool
    offsets: tuple[int, int]
    windows: tuple[Window, ...]
    masked_latents: bool
    target_latents: bool
    soft_masks: bool

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Expected":
        """Raises CacheError when they are not the settings of a cache."""
        try:
            samples = settings["samples"]
            sizes = samples["sizes"] if "sizes" in samples else settings_of(samples).views.sizes()
            mask_offset = offset_from(settings["mask_offset"])
            low, high = check_offset(mask_offset)
            variants, factor = int(settings["variants"]), int(settings["vae"]["factor"])
            if variants < 1 or min(side // factor for size in sizes for side in size) < 1:
                raise ValueError(f"{variants} variants of pictures of {sizes}")
            return cls(
                variants=variants,
                sizes=frozenset((int(height), int(width)) for height, width in sizes),
                factor=factor,
                storage=np.dtype(settings["storage"]).name,
                has_posterior=bool(settings["vae"]["has_posterior"]),
                offsets=(int(low), int(high)),
                windows=windows_of(mask_offset),
                masked_latents=bool(settings["masked_latents"]),
                target_latents=bool(settings["samples"]["target"]),
                soft_masks=bool(settings.get("soft")),
            )
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError, UsageError) as error:
            raise CacheError(f"its settings are not those of a cache ({type(error).__name__}: {error})") from None


class SampleCheck:
    """Checks one sample after another; the first sets how many channels all have, which no setting says."""

    def __init__(self, expected: Expected) -> None:
        self.expected, self.channels = expected, 0
        self.size: Size = (0, 0)  # of the picture of the sample in hand

    def problems(self, members: Mapping[str, bytes]) -> Iterator[str]:
        """What is wrong with a sample, given the bytes of its own members."""
        masks = SOFT_MASK if self.expected.soft_masks else MASK
        checks: dict[str, Callable[[bytes], Any]] = {
            RECORD: self._record,  # first, since it has the size of the others
            LATENTS: self._latents,
            masks: self._soft_masks if self.expected.soft_masks else self._masks,
        }
        if self.expected.masked_latents:
            checks[MASKED_LATENTS] = self._masked_latents
        if self.expected.target_latents:
            checks[TARGET_LATENTS] = self._latents
        yield from (f"{name}: is not there" for name in checks if name not in members)
        extra = {MASK, MASKED_LATENTS, TARGET_LATENTS} & members.keys() - checks.keys()
        yield from (f"{name}: is there, though the settings say that there is none" for name in sorted(extra))
        checks = {name: check for name, check in checks.items() if name in members}
        self.size = min(self.expected.sizes)
        good: dict[str, Any] = {}
        for name, check in checks.items():
            try:
                good[name] = check(members[name])
            except SampleError as error:
                yield f"{name}: {error}"
        if masks in good and RECORD in good:
            for k, (mask, variant) in enumerate(zip(good[masks], good[RECORD]["variants"], strict=True)):
                has = coverage_of(mask)
                if not abs(variant["coverage"] - has) <= 1e-6:
                    yield f"{RECORD}: variant {k} says coverage {variant['coverage']}, its mask has {has:.6f}"

    def _latents(self, data: bytes) -> None:
        self._array(data, ())

    def _masked_latents(self, data: bytes) -> None:
        self._array(data, (self.expected.variants,))

    def _array(self, data: bytes, leading: tuple[int, ...]) -> None:
        try:
            array: npt.NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except Exception as error:  # numpy's parser has many ways to trip over damaged bytes
            raise SampleError(f"not an array ({error})") from None
        storage, (height, width) = self.expected.storage, (side // self.expected.factor for side in self.size)
        if array.dtype != np.dtype(storage):
            raise SampleError(f"is {array.dtype}, the cache stores {storage}")
        channels = array.shape[-3] if array.ndim == len(leading) + 3 else 0
        odd = self.expected.has_posterior and channels % 2
        if not channels or odd or array.shape != (*leading, self.channels or channels, height, width):
            wanted = ", ".join(map(str, (*leading, self.channels or "channels", height, width)))
            raise SampleError(f"has the shape {array.shape}, not ({wanted}) as the settings and the other samples have")
        if not np.isfinite(array).all():
            raise SampleError("has NaN or infinity in it")
        if npy_bytes(array) != data:
            raise SampleError("is not laid out as the cache writes arrays")
        self.channels = channels

    def _masks(self, data: bytes) -> npt.NDArray[np.bool_]:
        count = self.expected.variants
        try:
            masks = read_pbm(data, count)
        except (CacheError, ValueError):
            raise SampleError(f"not a binary PBM (P4) of {count} masks") from None
        if masks.shape != (count, *self.size):
            raise SampleError(f"its masks have the shape {masks.shape}, not {(count, *self.size)}")
        if pbm_bytes(masks) != data:
            raise SampleError("is not laid out as the cache writes masks")
        return masks

    def _soft_masks(self, data: bytes) -> npt.NDArray[np.uint8]:
        shape = (self.expected.variants, *self.size)
        try:
            levels = read_png(data, self.expected.variants)
        except CacheError as error:
            raise SampleError(str(error).removeprefix(f"{SOFT_MASK}: ")) from None
        if levels.shape != shape:
            raise SampleError(f"its masks have the shape {levels.shape}, not {shape}")
        if not data.endswith(PNG_END):
            raise SampleError("is not laid out as the cache writes masks")
        return levels

    def _record(self, data: bytes) -> dict[str, Any]:
        try:
            record = json.loads(data)
            as_written = json_bytes(record)
        except (ValueError, RecursionError) as error:
            raise SampleError(f"not JSON ({error})") from None
        _has_fields(record, FIELDS, "it")
        if not isinstance(record["caption"], str):
            raise SampleError("its caption is no text")
        for name, least in (("original_size", 1), ("resized_size", 1), ("crop_top_left", 0)):
            if not _is_pair(record[name], least):
                raise SampleError(f"its {name} is {record[name]}, not two whole numbers from {least} on")
        size, sizes = record["target_size"], self.expected.sizes
        if not _is_pair(size, 1) or tuple(size) not in sizes:
            named = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
            raise SampleError(f"its target_size is {size}, the cache has {named}")
        self.size = (size[0], size[1])
        if type(record["flip"]) is not bool:
            raise SampleError(f"its flip is {record['flip']}, neither true nor false")
        self._variants(record["variants"])
        if as_written != data:
            raise SampleError("is not laid out as the cache writes JSON")
        return dict(record)

    def _variants(self, variants: Any) -> None:
        if not isinstance(variants, list) or len(variants) != self.expected.variants:
            raise SampleError(f"does not have the cache's {self.expected.variants} variants")
        low, high = self.expected.offsets
        for k, variant in enumerate(variants):
            _has_fields(variant, FIELDS_OF_VARIANT, f"variant {k}")
            offset, generator, coverage = variant["offset"], variant["generator"], variant["coverage"]
            if type(offset) is not int or not low <= offset <= high:
                raise SampleError(f"variant {k} has offset {offset}, outside the cache's {low}...{high}")
            if variant["window"] not in self.expected.windows:
                named = ", ".join(self.expected.windows)
                raise SampleError(
                    f"variant {k} has window {variant['window']!r}, which is not among the cache's {named}"
                )
            if not isinstance(generator, str) or not generator:
                raise SampleError(f"variant {k} does not name its generator")
            if type(coverage) is not float:
                raise SampleError(f"variant {k} has coverage {coverage}, which is no fraction")


def _has_fields(value: Any, fields: set[str], what: str) -> None:
    if not isinstance(value, dict):
        raise SampleError(f"{what} is no JSON object")
    if value.keys() != fields:
        raise SampleError(f"{what} has the fields {', '.join(sorted(value))}, not {', '.join(sorted(fields))}")


def _is_pair(value: Any, least: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(each) is int and each >= least for each in value)
