"""Members of a cached sample: one table, each with how it is written, read and checked.

A new member is a row of `MEMBERS`. Shapes: K mask variants, C latent channels (2C for moments), H W the image, h w
latents.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inpaint_data.batch import PAIRED, SIZES, Batch
from inpaint_data.errors import CacheError, SampleError
from inpaint_data.latent_cache.encodings import (
    Content,
    json_bytes,
    npy_bytes,
    pbm_bytes,
    png_bytes,
    read_npy,
    read_pbm,
    read_png,
)
from inpaint_data.latent_cache.storage import STORED, Storage, from_storage, scales_of, to_storage
from inpaint_data.masks.soft_border import to_levels

LATENTS = "latents.npy"
MASKED_LATENTS = "masked_latents.npy"
HOLE_LATENTS = "hole_latents.npy"
MASK = "mask.pbm"
SOFT_MASK = "soft_mask.png"
RECORD = "inpaint.json"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
FIELDS = {"caption", *SIZES, "flip", "has_posterior", "variants"}
FIELDS_OF_VARIANT = {"offset", "window", "generator", "edits", "coverage"}


@dataclass(frozen=True)
class Storing:
    """Settings of a job for its latents."""

    storage: Storage  # of latents
    has_posterior: bool  # latents are moments
    means: frozenset[str] = frozenset()  # keys of those that are kept as the mean alone, if they are moments


@dataclass(frozen=True)
class Expected:
    """The values that every sample of a cache must have, by its settings."""

    variants: int
    sizes: frozenset[tuple[int, int]]  # of images and masks
    factor: int  # pixels per latent along each side
    storage: Storage
    has_posterior: bool
    means: frozenset[str]
    offsets: tuple[int, int]
    windows: tuple[str, ...]
    members: frozenset[str]  # those of `MEMBERS` that there are


@dataclass
class Seen:
    """Values found in the members checked so far, of one sample and of those before it."""

    channels: int = 0  # of moments; the first sample sets how many all have, which no setting says
    size: tuple[int, int] = (0, 0)  # of the image of the current sample


class Codec(Protocol):
    """One kind of member: how it is written, read and checked."""

    def takes(self, batch: Batch, storing: Storing) -> bool:
        """True if the samples of this batch have the member."""

    def write(self, batches: Sequence[Batch], row: int, storing: Storing) -> bytes:
        """The bytes for one sample, from the batches of its K variants. Raises SampleError if it cannot be stored."""

    def read(self, data: Any, variant: int, variants: int) -> Any:
        """The content for one variant, of the member's bytes; arrays are views into them where possible."""

    def check(self, data: bytes, expected: Expected, seen: Seen) -> Any:
        """The content of all variants. Raises SampleError with the problem, without the member's name."""


@dataclass(frozen=True)
class Latents:
    """An array of `key`, in .npy: (C, h, w), or one for each variant (K, C, h, w)."""

    key: str
    per_variant: bool = False

    def takes(self, batch: Batch, storing: Storing) -> bool:  # noqa: ARG002 - of the protocol
        return self.key in batch

    def floats(self, batches: Sequence[Batch], row: int, storing: Storing) -> npt.NDArray[np.float32]:
        """What is to be stored of a sample."""
        rows = [_tensor(batch, self.key)[row] for batch in batches]
        if storing.has_posterior and self.key in storing.means:
            rows = [moments.chunk(2)[0] for moments in rows]
        array: npt.NDArray[np.float32] = (torch.stack(rows) if self.per_variant else rows[0]).contiguous().numpy()
        return array

    def write(self, batches: Sequence[Batch], row: int, storing: Storing) -> bytes:
        array = self.floats(batches, row, storing)
        stored = to_storage(array, storing.storage)
        if storing.storage != "int8" and not np.isfinite(from_storage(stored)).all():
            raise SampleError(
                f"{self.key}.npy: {np.abs(array).max():.3g} is too large for {storing.storage}; set storage: float32"
            )
        return npy_bytes(stored)

    def read(self, data: Content, variant: int, variants: int) -> npt.NDArray[Any]:  # noqa: ARG002 - of the protocol
        if isinstance(data, np.ndarray):
            return data
        array = read_npy(data)
        return array[variant] if self.per_variant else array

    def check(self, data: bytes, expected: Expected, seen: Seen) -> npt.NDArray[Any]:
        try:
            array = read_npy(data)
        except CacheError as error:
            raise SampleError(str(error)) from None
        leading = (expected.variants,) if self.per_variant else ()
        height, width = (side // expected.factor for side in seen.size)
        if array.dtype != STORED[expected.storage]:
            raise SampleError(f"is {array.dtype}, the cache stores {expected.storage}")
        parts = 2 if expected.has_posterior and self.key in expected.means else 1  # of the moments it has one
        channels = array.shape[-3] * parts if array.ndim == len(leading) + 3 else 0
        odd = expected.has_posterior and channels % 2
        if not channels or odd or array.shape != (*leading, (seen.channels or channels) // parts, height, width):
            shape = ", ".join(map(str, (*leading, seen.channels // parts or "channels", height, width)))
            raise SampleError(f"has the shape {array.shape}, not ({shape}) as the settings and the other samples have")
        if array.dtype != STORED["int8"] and not np.isfinite(from_storage(array)).all():
            raise SampleError("has NaN or infinity in it")
        if npy_bytes(array) != data:
            raise SampleError("is not laid out as the cache writes arrays")
        seen.channels = channels
        return array


@dataclass(frozen=True)
class Scales:
    """What int8 latents are multiplied by, in .npy: (C, 1, 1) float32, or for each variant (K, C, 1, 1)."""

    latents: Latents

    def takes(self, batch: Batch, storing: Storing) -> bool:
        return storing.storage == "int8" and self.latents.takes(batch, storing)

    def write(self, batches: Sequence[Batch], row: int, storing: Storing) -> bytes:
        return npy_bytes(scales_of(self.latents.floats(batches, row, storing)))

    def read(self, data: Any, variant: int, variants: int) -> npt.NDArray[Any]:
        return self.latents.read(data, variant, variants)

    def check(self, data: bytes, expected: Expected, seen: Seen) -> npt.NDArray[Any]:
        try:
            array = read_npy(data)
        except CacheError as error:
            raise SampleError(str(error)) from None
        parts = 2 if expected.has_posterior and self.latents.key in expected.means else 1
        leading = (expected.variants,) if self.latents.per_variant else ()
        if array.dtype != np.float32 or array.shape != (*leading, seen.channels // parts, 1, 1):
            raise SampleError(f"is {array.dtype} of the shape {array.shape}, not a float32 for each channel")
        if not (np.isfinite(array).all() and (array > 0).all()) or npy_bytes(array) != data:
            raise SampleError("has scales that are no positive numbers, or is not laid out as the cache writes arrays")
        return array


class HardMasks:
    """K masks as a binary PBM of 1 bit a pixel, stacked downwards, white = repaint."""

    def takes(self, batch: Batch, storing: Storing) -> bool:  # noqa: ARG002 - of the protocol
        return not batch["mask"].is_floating_point()

    def write(self, batches: Sequence[Batch], row: int, storing: Storing) -> bytes:  # noqa: ARG002 - of the protocol
        return pbm_bytes(np.stack([batch["mask"][row, 0].numpy() for batch in batches]))

    def read(self, data: bytes, variant: int, variants: int) -> npt.NDArray[np.bool_]:
        mask: npt.NDArray[np.bool_] = read_pbm(data, variants, variant)[0]
        return mask

    def check(self, data: bytes, expected: Expected, seen: Seen) -> npt.NDArray[np.bool_]:
        count = expected.variants
        try:
            masks = read_pbm(data, count)
        except CacheError:
            raise SampleError(f"not a binary PBM (P4) of {count} masks") from None
        if masks.shape != (count, *seen.size):
            raise SampleError(f"its masks have the shape {masks.shape}, not {(count, *seen.size)}")
        if pbm_bytes(masks) != data:
            raise SampleError("is not laid out as the cache writes masks")
        return masks


class SoftMasks:
    """K masks as a grey PNG of 8 bits, stacked downwards, 255 = repaint."""

    def takes(self, batch: Batch, storing: Storing) -> bool:  # noqa: ARG002 - of the protocol
        return batch["mask"].is_floating_point()

    def write(self, batches: Sequence[Batch], row: int, storing: Storing) -> bytes:  # noqa: ARG002 - of the protocol
        return png_bytes(np.stack([to_levels(batch["mask"][row, 0]).numpy() for batch in batches]))

    def read(self, data: bytes, variant: int, variants: int) -> npt.NDArray[np.uint8]:
        levels: npt.NDArray[np.uint8] = read_png(data, variants)[variant]
        return levels

    def check(self, data: bytes, expected: Expected, seen: Seen) -> npt.NDArray[np.uint8]:
        shape = (expected.variants, *seen.size)
        try:
            levels = read_png(data, expected.variants)
        except CacheError as error:
            raise SampleError(str(error).removeprefix(f"{SOFT_MASK}: ")) from None
        if levels.shape != shape:
            raise SampleError(f"its masks have the shape {levels.shape}, not {shape}")
        if not data.endswith(PNG_END):
            raise SampleError("is not laid out as the cache writes masks")
        return levels


class Record:
    """What was drawn and how the image was cut, as JSON."""

    def takes(self, batch: Batch, storing: Storing) -> bool:  # noqa: ARG002 - of the protocol
        return True

    def write(self, batches: Sequence[Batch], row: int, storing: Storing) -> bytes:
        first: Any = batches[0]
        means = sorted(storing.means & first.keys()) if storing.has_posterior else []
        return json_bytes(
            ({"means": means} if means else {})
            | {
                "caption": first["caption"][row],
                **{name: first[name][row].tolist() for name in SIZES},
                "flip": bool(first["flip"][row]),
                "has_posterior": storing.has_posterior,
                "variants": [
                    {
                        "offset": int(batch["offset"][row]),
                        "window": batch["window"][row],
                        "generator": batch["generator"][row],
                        "edits": list(batch["edits"][row]),
                        "coverage": coverage_of(_levels(batch["mask"][row, 0])),
                    }
                    | ({} if batch["caption"][row] == first["caption"][row] else {"caption": batch["caption"][row]})
                    for batch in batches
                ],
            }
        )

    def read(self, data: bytes, variant: int, variants: int) -> dict[str, Any]:  # noqa: ARG002 - of the protocol
        record = json.loads(data)
        records = record.pop("variants")
        return {**record, **records[variant], "count": len(records)}

    def check(self, data: bytes, expected: Expected, seen: Seen) -> dict[str, Any]:
        try:
            record = json.loads(data)
            as_written = json_bytes(record)
        except (ValueError, RecursionError) as error:
            raise SampleError(f"not JSON ({error})") from None
        means = expected.means if expected.has_posterior else frozenset[str]()
        _check_fields(record, FIELDS | ({"means"} if means else set()), "it")
        if means and record["means"] != sorted(means):
            raise SampleError(f"its means are {record['means']}, the cache's {sorted(means)}")
        if not isinstance(record["caption"], str):
            raise SampleError("its caption is not a text")
        for name, least in (("original_size", 1), ("resized_size", 1), ("crop_top_left", 0)):
            if not _is_pair(record[name], least):
                raise SampleError(f"its {name} is {record[name]}, not two whole numbers of at least {least}")
        size, sizes = record["target_size"], expected.sizes
        if not _is_pair(size, 1) or tuple(size) not in sizes:
            known = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
            raise SampleError(f"its target_size is {size}, the cache has {known}")
        seen.size = (size[0], size[1])
        for name in ("flip", "has_posterior"):
            if type(record[name]) is not bool:
                raise SampleError(f"its {name} is {record[name]}, neither true nor false")
        if record["has_posterior"] != expected.has_posterior:
            raise SampleError(f"its has_posterior is {record['has_posterior']}, the cache's {expected.has_posterior}")
        self._check_variants(record["variants"], expected)
        if as_written != data:
            raise SampleError("is not laid out as the cache writes JSON")
        return dict(record)

    @staticmethod
    def _check_variants(variants: Any, expected: Expected) -> None:
        if not isinstance(variants, list) or len(variants) != expected.variants:
            raise SampleError(f"does not have the cache's {expected.variants} variants")
        low, high = expected.offsets
        for number, variant in enumerate(variants):
            own = {"caption"} if number and isinstance(variant, dict) and "caption" in variant else set[str]()
            _check_fields(variant, FIELDS_OF_VARIANT | own, f"variant {number}")
            if not isinstance(variant.get("caption", ""), str):
                raise SampleError(f"variant {number} has a caption that is not a text")
            offset, edits = variant["offset"], variant["edits"]
            if type(offset) is not int or not low <= offset <= high:
                raise SampleError(f"variant {number} has offset {offset}, outside the cache's {low}...{high}")
            if variant["window"] not in expected.windows:
                known = ", ".join(expected.windows)
                raise SampleError(
                    f"variant {number} has window {variant['window']!r}, which is not among the cache's {known}"
                )
            if not isinstance(variant["generator"], str) or not variant["generator"]:
                raise SampleError(f"variant {number} does not name its generator")
            if not isinstance(edits, list) or not all(isinstance(word, str) for word in edits):
                raise SampleError(f"variant {number} has edits {edits}, which is not a list of words")
            if type(variant["coverage"]) is not float:
                raise SampleError(f"variant {number} has coverage {variant['coverage']}, which is not a fraction")


ARRAYS: Mapping[str, Latents] = {
    LATENTS: Latents("latents"),
    MASKED_LATENTS: Latents("masked_latents", per_variant=True),
    HOLE_LATENTS: Latents("hole_latents", per_variant=True),
    **{f"{key}.npy": Latents(key) for key in PAIRED.values()},
}


def scales_name(name: str) -> str:
    """The member that has the scales of an array of int8."""
    return f"{name.removesuffix('.npy')}.scale.npy"


# In the order of the checks: the record first, since it holds the size of the others.
MEMBERS: Mapping[str, Codec] = {
    RECORD: Record(),
    LATENTS: ARRAYS[LATENTS],
    MASK: HardMasks(),
    SOFT_MASK: SoftMasks(),
    **{name: codec for name, codec in ARRAYS.items() if name != LATENTS},
    **{scales_name(name): Scales(codec) for name, codec in ARRAYS.items()},
}
REQUIRED = frozenset({LATENTS, RECORD})  # and the masks, see `masks_member`


def masks_member(names: Collection[str]) -> str:
    """The member that holds the masks: hard or soft ones."""
    return SOFT_MASK if SOFT_MASK in names else MASK


def members_of(batches: Sequence[Batch], row: int, storing: Storing) -> dict[str, bytes]:
    """Member name -> bytes of one sample, from the batches of its K variants.

    Args:
        batches: of raw moments on the CPU; they share everything that does not depend on the mask.
        row: of the sample in each batch.
        storing: settings of the job.

    Raises:
        SampleError: a value too large for the storage, or a carried member whose name the cache uses itself.
    """
    first = batches[0]
    carried = dict(first["carried"][row])
    codecs = {name: codec for name, codec in MEMBERS.items() if codec.takes(first, storing)}
    if clashes := sorted(MEMBERS.keys() & carried.keys()):
        raise SampleError(f"it carries a member called {clashes[0]}, which the cache uses itself; rename it")
    return carried | {name: codec.write(batches, row, storing) for name, codec in codecs.items()}


def coverage_of(mask: npt.NDArray[Any]) -> float:
    """The mean of a mask, bool or uint8 levels, with 1 = repaint: for a hard mask the share that is repainted."""
    return round(float(mask.mean()) / (1 if mask.dtype == np.bool_ else 255), 6)


def _tensor(batch: Batch, key: str) -> Tensor:
    value: Tensor = batch[key]  # type: ignore[literal-required]
    return value


def _levels(mask: Tensor) -> npt.NDArray[Any]:
    """(H, W) bool, or uint8 levels if soft."""
    return to_levels(mask).numpy() if mask.is_floating_point() else mask.numpy()


def _check_fields(value: Any, fields: set[str], name: str) -> None:
    if not isinstance(value, dict):
        raise SampleError(f"{name} is not a JSON object")
    if value.keys() != fields:
        raise SampleError(f"{name} has the fields {', '.join(sorted(value))}, not {', '.join(sorted(fields))}")


def _is_pair(value: Any, least: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side >= least for side in value)
