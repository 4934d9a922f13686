"""A batch from the members of its samples: each kind of array is read into one buffer, and converted at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inpaint_data.batch import SIZES, Carried, Posterior
from inpaint_data.encoding.noise import normal_noise
from inpaint_data.encoding.vae import sample_posterior
from inpaint_data.errors import CacheError
from inpaint_data.latent_cache.contents import Content
from inpaint_data.latent_cache.encodings import npy_layout, pbm_layout
from inpaint_data.latent_cache.members import ARRAYS, MASK, MEMBERS, PICTURES, SOFT_MASK, masks_member, scales_name
from inpaint_data.latent_cache.record_columns import CUTS
from inpaint_data.latent_cache.scratch import Scratch, rows_of
from inpaint_data.latent_cache.storage import STORED, from_storage
from inpaint_data.masks.soft_border import from_levels
from inpaint_data.seeding import sample_id

Contents = Mapping[str, Content]  # of the members that all samples have, by name
_SCRATCH = Scratch()


@dataclass(frozen=True)
class Described:
    """What the records of B samples say of the variant that is read of each."""

    caption: list[str]
    cuts: npt.NDArray[np.integer[Any]]  # (B, 7), see `RecordColumns`
    target_size: npt.NDArray[np.integer[Any]]  # (B, 2)
    offset: npt.NDArray[np.integer[Any]]  # (B,)
    window: list[str]
    generator: list[str]
    edits: list[list[str]]
    has_posterior: bool
    means: frozenset[str]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> "Described":
        """From the records, as `Record.read` gives each. Raises KeyError, TypeError, ValueError for other ones."""
        return cls(
            [record["caption"] for record in records],
            np.array([[*(side for name in CUTS for side in record[name]), record["flip"]] for record in records]),
            np.array([record["target_size"] for record in records]),
            np.array([record["offset"] for record in records]),
            [record["window"] for record in records],
            [record["generator"] for record in records],
            [record["edits"] for record in records],
            bool(records[0]["has_posterior"]),
            frozenset(records[0].get("means", ())),
        )


@dataclass(frozen=True)
class Parts:
    """What a batch of B samples is made of; `variants` says which of each is read, of how many `counts`."""

    keys: list[str]
    shards: list[str]
    variants: list[int]
    counts: list[int]
    described: Described
    contents: Contents
    carried: list[dict[str, Any]]


@dataclass(frozen=True)
class Drawing:
    """How latents are taken from moments: see `Posterior`; noise is by seed and epoch, in the autoencoder's dtype."""

    posterior: Posterior
    seed: int
    epoch: int
    dtype: torch.dtype = torch.float32


def assembled(parts: Parts, drawing: Drawing) -> dict[str, Any]:
    """The entries of a `Batch`.

    Raises:
        CacheError, ValueError, KeyError, TypeError: a member is not what a cache has.
    """
    described, contents = parts.described, parts.contents
    # The largest are made first, so that they find the memory of a batch before instead of fresh pages.
    cuts, masks = described.cuts, _masks(parts)
    sizes = dict(zip(SIZES, (cuts[:, :2], cuts[:, 2:4], cuts[:, 4:6], described.target_size), strict=True))
    return {
        **{ARRAYS[name].key: _latents(name, parts, drawing) for name in ARRAYS if name in contents},
        **{codec.key: _pictures(name, parts) for name, codec in PICTURES.items() if name in contents},
        "mask": masks,
        "offset": _whole_numbers(described.offset),
        "window": described.window,
        "variant": _whole_numbers(np.array(parts.variants)),
        "caption": described.caption,
        "generator": described.generator,
        "edits": described.edits,
        **{name: _whole_numbers(size) for name, size in sizes.items()},
        "flip": torch.from_numpy(cuts[:, 6] != 0),
        "carried": Carried(parts.carried),
        "__key__": parts.keys,
        "__shard__": parts.shards,
    }


def _whole_numbers(array: npt.NDArray[np.integer[Any]]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64, order="C"))


def _latents(name: str, parts: Parts, drawing: Drawing) -> Tensor:
    """(B, C, h, w) float32, or with the dimensions before C that the member has."""
    key, described = ARRAYS[name].key, parts.described
    # What has no log-variance is taken whole: an autoencoder without a posterior, or the mean alone.
    is_whole = drawing.posterior == "moments" or not described.has_posterior or key in described.means
    means_alone = not is_whole and drawing.posterior == "mode"
    raw, is_mean = _floats(name, parts, means_alone)
    if is_whole or is_mean:
        return raw
    mean = raw.chunk(2, dim=-3)[0]
    if means_alone:
        return mean.contiguous()
    ids = [sample_id(shard, key) for shard, key in zip(parts.shards, parts.keys, strict=True)]
    noise = normal_noise(drawing.seed, ids, [drawing.epoch] * len(ids), key, tuple(mean.shape[1:]))
    return sample_posterior(raw, noise, drawing.dtype)


def _floats(name: str, parts: Parts, means_alone: bool) -> tuple[Tensor, bool]:
    """What is stored as float32, of moments perhaps only the means, and whether that is so."""
    stored, is_mean = _stacked(name, parts, means_alone)
    if stored is None:
        return _one_by_one(name, parts), False
    if stored.dtype == STORED["int8"]:
        if scales_name(name) not in parts.contents:
            raise ValueError("int8 without its scales")
        scales, of_means = _stacked(scales_name(name), parts, is_mean)
        if scales is None or of_means != is_mean or scales.dtype != np.float32:
            return _one_by_one(name, parts), False
        return torch.from_numpy(stored).to(torch.float32).mul_(torch.from_numpy(scales)), is_mean
    if stored.dtype == STORED["bfloat16"]:
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).to(torch.float32), is_mean
    return torch.from_numpy(stored).to(torch.float32), is_mean


def _stacked(name: str, parts: Parts, means_alone: bool) -> tuple[npt.NDArray[Any] | None, bool]:
    """(B, …) of one variant's arrays as they are stored; None where they are not laid out alike.

    Of moments, (2C, h, w), only the means are read where `means_alone`; the second value says whether they were.
    """
    content, of_variant = parts.contents[name], name.removesuffix(".scale.npy").removesuffix(".npy") + ".npy"
    per_variant = ARRAYS[of_variant].per_variant
    head, shape, dtype = npy_layout(content)
    size = len(head) + math.prod(shape) * dtype.itemsize
    shape = shape[1:] if per_variant else shape
    step = math.prod(shape) * dtype.itemsize
    is_mean = means_alone and len(shape) == 3 and shape[0] % 2 == 0
    taken = (len(content.sizes), *((shape[0] // 2, *shape[1:]) if is_mean else shape))
    is_ours = not per_variant or size == len(head) + parts.counts[0] * step
    if not is_ours or not math.prod(taken) or not _are_all(content, size):
        return None, False
    starts = [variant * step for variant in parts.variants] if per_variant else [0] * len(content.sizes)
    # What is converted is read into memory that is used again; what becomes the batch's own is not.
    is_own = dtype == STORED["float32"]
    array = np.empty(taken, dtype) if is_own else _SCRATCH.array(taken, dtype)
    rows = rows_of(array) if is_own else _SCRATCH.rows(len(array), array.nbytes // len(array))
    return (array, is_mean) if content.fill(rows, head, starts) else (None, False)


def _are_all(content: Content, size: int) -> bool:
    """Whether each sample's is of that size."""
    return content.sizes.count(size) == len(content.sizes)


def _read(name: str, parts: Parts) -> list[Any]:
    """A member of each sample, decoded by itself."""
    codec, content = MEMBERS[name], parts.contents[name]
    return [
        codec.read(content.whole(sample), variant, count)
        for sample, (variant, count) in enumerate(zip(parts.variants, parts.counts, strict=True))
    ]


def _one_by_one(name: str, parts: Parts) -> Tensor:
    """The arrays of samples that are not laid out alike, as another tool may write them, as float32."""
    scales: list[Any] = [None] * len(parts.keys)
    if scales_name(name) in parts.contents:
        scales = _read(scales_name(name), parts)
    arrays = [from_storage(array, of) for array, of in zip(_read(name, parts), scales, strict=True)]
    for array in arrays:
        if array.shape != arrays[0].shape:
            raise CacheError(f"{name}: {array.shape} and {arrays[0].shape} do not go into one batch")
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def _masks(parts: Parts) -> Tensor:
    """(B, 1, H, W) bool, or float32 in [0, 1] if soft."""
    name = masks_member(parts.contents)
    if name == SOFT_MASK:
        return from_levels(torch.from_numpy(np.stack(_read(name, parts)))[:, None])
    content = parts.contents[MASK]
    head, width, rows = pbm_layout(content)
    height, stride = rows // parts.counts[0], (width + 7) // 8
    starts = [variant * height * stride for variant in parts.variants]
    is_ours = rows % parts.counts[0] == 0 and _are_all(content, len(head) + rows * stride)
    if not is_ours or not content.fill(_SCRATCH.rows(len(parts.keys), height * stride), head, starts):
        return torch.from_numpy(np.stack(_read(name, parts)))[:, None]
    packed = _SCRATCH.array((len(parts.keys), height, stride), np.uint8)
    # In P4 a set bit is black, and white is what is repainted.
    np.invert(packed, out=packed)
    masks = np.unpackbits(packed.reshape(-1)).reshape(len(packed), 1, height, 8 * stride)
    return torch.from_numpy(np.ascontiguousarray(masks[..., :width]).view(np.bool_))


def _pictures(name: str, parts: Parts) -> Tensor:
    """(B, 3, H, W) uint8."""
    return torch.from_numpy(np.stack(_read(name, parts))).permute(0, 3, 1, 2)
