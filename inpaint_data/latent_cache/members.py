"""Members of a cached sample: one table, each with how it is written, read and checked.

A new member is a row of `MEMBERS`. Shapes: K mask variants, C latent channels (2C for moments), H W the image, h w
latents.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inpaint_data.batch import PAIRED, PIXELS, Batch
from inpaint_data.errors import CacheError, SampleError
from inpaint_data.latent_cache.codec import Codec, Expected, Seen, Storing
from inpaint_data.latent_cache.encodings import (
    npy_bytes,
    pbm_bytes,
    picture_bytes,
    png_bytes,
    read_npy,
    read_pbm,
    read_picture,
    read_png,
)
from inpaint_data.latent_cache.record import RECORD, Record
from inpaint_data.latent_cache.storage import STORED, from_storage, scales_of, to_storage
from inpaint_data.masks.soft_border import to_levels

LATENTS = "latents.npy"
MASKED_LATENTS = "masked_latents.npy"
HOLE_LATENTS = "hole_latents.npy"
MASK = "mask.pbm"
SOFT_MASK = "soft_mask.png"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True)
class Latents:
    """An array of `key`, in .npy: (C, h, w), or one for each variant (K, C, h, w) or reference (N, C, h, w)."""

    key: str
    per_variant: bool = False
    per_reference: bool = False

    def leading(self, expected: Expected) -> tuple[int, ...]:
        """The dimensions before C."""
        return (expected.variants,) * self.per_variant + (expected.references,) * self.per_reference

    def takes(self, batch: Batch, storing: Storing) -> bool:  # noqa: ARG002 - of the protocol
        return self.key in batch

    def floats(self, batches: Sequence[Batch], row: int, storing: Storing) -> npt.NDArray[np.float32]:
        """What is to be stored of a sample."""
        rows = [_tensor(batch, self.key)[row] for batch in batches]
        if storing.has_posterior and self.key in storing.means:
            rows = [moments.chunk(2, dim=-3)[0] for moments in rows]
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

    def read(self, data: bytes, variant: int, variants: int) -> npt.NDArray[Any]:  # noqa: ARG002 - of the protocol
        array = read_npy(data)
        return array[variant] if self.per_variant else array

    def check(self, data: bytes, expected: Expected, seen: Seen) -> npt.NDArray[Any]:
        try:
            array = read_npy(data)
        except CacheError as error:
            raise SampleError(str(error)) from None
        leading = self.leading(expected)
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
    """What int8 latents are multiplied by, in .npy: (C, 1, 1) float32, with the dimensions before C that they have."""

    latents: Latents

    def takes(self, batch: Batch, storing: Storing) -> bool:
        return storing.storage == "int8" and self.latents.takes(batch, storing)

    def write(self, batches: Sequence[Batch], row: int, storing: Storing) -> bytes:
        return npy_bytes(scales_of(self.latents.floats(batches, row, storing)))

    def read(self, data: bytes, variant: int, variants: int) -> npt.NDArray[Any]:
        return self.latents.read(data, variant, variants)

    def check(self, data: bytes, expected: Expected, seen: Seen) -> npt.NDArray[Any]:
        try:
            array = read_npy(data)
        except CacheError as error:
            raise SampleError(str(error)) from None
        parts = 2 if expected.has_posterior and self.latents.key in expected.means else 1
        leading = self.latents.leading(expected)
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


@dataclass(frozen=True)
class Pixels:
    """The picture of `key` as it was cut, a lossless PNG."""

    key: str

    def takes(self, batch: Batch, storing: Storing) -> bool:  # noqa: ARG002 - of the protocol
        return self.key in batch

    def write(self, batches: Sequence[Batch], row: int, storing: Storing) -> bytes:  # noqa: ARG002 - of the protocol
        return picture_bytes(_tensor(batches[0], self.key)[row].permute(1, 2, 0).numpy())

    def read(self, data: bytes, variant: int, variants: int) -> npt.NDArray[np.uint8]:  # noqa: ARG002 - of the protocol
        return read_picture(data)

    def check(self, data: bytes, expected: Expected, seen: Seen) -> npt.NDArray[np.uint8]:  # noqa: ARG002 - as above
        try:
            pixels = read_picture(data)
        except CacheError as error:
            raise SampleError(str(error)) from None
        if pixels.shape != (*seen.size, 3):
            raise SampleError(f"has the shape {pixels.shape}, not {(*seen.size, 3)}")
        if not data.endswith(PNG_END):
            raise SampleError("is not laid out as the cache writes pictures")
        return pixels


def pixels_name(picture: str) -> str:
    """The member that has a picture as it was cut."""
    return f"{picture}_pixels.png"


ARRAYS: Mapping[str, Latents] = {
    LATENTS: Latents("latents"),
    MASKED_LATENTS: Latents("masked_latents", per_variant=True),
    HOLE_LATENTS: Latents("hole_latents", per_variant=True),
    **{f"{key}.npy": Latents(key, per_reference=name == "references") for name, key in PAIRED.items()},
}
PICTURES: Mapping[str, Pixels] = {pixels_name(name): Pixels(name) for name in PIXELS}


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
    **PICTURES,
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


def _tensor(batch: Batch, key: str) -> Tensor:
    value: Tensor = batch[key]  # type: ignore[literal-required]
    return value
