"""Batches of cached samples from their members, for `LatentCache` and the `cached` stage."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from inpaint_data.batch import POSTERIORS, SIZES, Batch, Carried, Posterior
from inpaint_data.encoding.vae import sample_posterior
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.encodings import Content
from inpaint_data.latent_cache.members import ARRAYS, MEMBERS, PICTURES, SOFT_MASK, masks_member, scales_name
from inpaint_data.latent_cache.record import RECORD
from inpaint_data.latent_cache.storage import from_storage
from inpaint_data.masks.soft_border import from_levels
from inpaint_data.seeding import noise_for, sample_id


@dataclass(frozen=True)
class CachedSample:
    """One sample of a cache, as it was stored."""

    key: str
    shard: str
    members: Mapping[str, Content]  # the record, the masks, and those of the latents that were asked for
    variant: int  # which of the masks
    variants: int  # how many there are
    carried: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return sample_id(self.shard, self.key)


class CachedBatch(dict[str, Any]):
    """A `Batch` of a cache, which torch's own collate function knows how to join with others."""


def joined(batches: Sequence[CachedBatch], **_: Any) -> CachedBatch:
    """One batch of several of one size: a DataLoader's `collate_fn`.

    Raises:
        UsageError: their sizes differ.
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    sizes = sorted({tuple(size) for batch in batches for size in batch["target_size"].tolist()})
    if len(sizes) > 1:
        raise UsageError(f"samples of {sizes} do not go into one batch; take them from one bucket, as `batches` does")
    return CachedBatch({name: _joined([batch[name] for batch in batches]) for name in first})


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    items = chain.from_iterable(values)
    return Carried(items) if isinstance(values[0], Carried) else list(items)


# So torch's own collate function joins them, behind a ConcatDataset or a Subset too.
default_collate_fn_map[CachedBatch] = joined


def check_posterior(posterior: str) -> None:
    """Raises UsageError if it is unknown."""
    if posterior not in POSTERIORS:
        raise UsageError(f"posterior: {posterior!r} is unknown; choose from {', '.join(POSTERIORS)}")


def check_kept(posterior: Posterior, means: Collection[str]) -> None:
    """Raises UsageError if a cache keeps only the mean of what more is asked of.

    Only the image's own latents are drawn where others are means: those are their mode, whatever is drawn.
    """
    lacking = set(means) if posterior == "moments" else set(means) & {"latents"} if posterior == "sample" else set()
    if lacking:
        raise UsageError(
            f"posterior: {posterior!r} needs the log-variance of {', '.join(sorted(lacking))}, of which the cache "
            "keeps only the mean; give posterior mode, or make it again with keep: moments"
        )


def batch_of(
    samples: Sequence[CachedSample], posterior: Posterior, seed: int, epoch: int, dtype: torch.dtype = torch.float32
) -> Batch:
    """The batch of samples of one size.

    Args:
        samples: at least one.
        posterior: how latents are taken from moments.
        seed, epoch: of the noise, with posterior "sample".
        dtype: what the autoencoder computed in, and so "sample" does.

    Raises:
        CacheError, ValueError, KeyError, TypeError: a member is not what a cache has.
    """
    records = [_read(sample, RECORD) for sample in samples]
    has_posterior = bool(records[0]["has_posterior"])
    keys = [sample.key for sample in samples]
    means = frozenset[str](records[0].get("means", ()))
    check_kept(posterior, means)
    arrays = [name for name in ARRAYS if all(name in sample.members for sample in samples)]
    latents = {}
    for name in arrays:
        key = ARRAYS[name].key
        # What has no log-variance is taken whole: an autoencoder without a posterior, or the mean alone.
        how = posterior if has_posterior and key not in means else "moments"
        latents[key] = _latents(name, samples, how, seed, epoch, dtype)
    pictures = {
        codec.key: torch.from_numpy(np.stack([_read(sample, name) for sample in samples])).permute(0, 3, 1, 2)
        for name, codec in PICTURES.items()
        if all(name in sample.members for sample in samples)
    }
    batch: dict[str, Any] = {
        **latents,
        **pictures,
        "mask": _masks(samples),
        "offset": torch.tensor([record["offset"] for record in records]),
        "window": [record["window"] for record in records],
        "variant": torch.tensor([sample.variant for sample in samples]),
        "caption": [record["caption"] for record in records],
        "generator": [record["generator"] for record in records],
        "edits": [record["edits"] for record in records],
        **{name: torch.tensor([record[name] for record in records]) for name in SIZES},
        "flip": torch.tensor([record["flip"] for record in records]),
        "carried": Carried(sample.carried for sample in samples),
        "__key__": keys,
        "__shard__": [sample.shard for sample in samples],
    }
    return cast(Batch, CachedBatch(batch))


def _read(sample: CachedSample, name: str) -> Any:
    return MEMBERS[name].read(sample.members[name], sample.variant, sample.variants)


def _masks(samples: Sequence[CachedSample]) -> Tensor:
    """(B, 1, H, W) bool, or float32 in [0, 1] if soft."""
    name = masks_member(samples[0].members)
    stacked = torch.from_numpy(np.stack([_read(sample, name) for sample in samples]))[:, None]
    return from_levels(stacked) if name == SOFT_MASK else stacked


def _latents(
    name: str, samples: Sequence[CachedSample], posterior: Posterior, seed: int, epoch: int, dtype: torch.dtype
) -> Tensor:
    """One float32 tensor for the batch, filled without a copy in between."""
    raw = None
    for row, sample in enumerate(samples):
        scales = scales_name(name)
        array = from_storage(_read(sample, name), _read(sample, scales) if scales in sample.members else None)
        if raw is None:
            raw = np.empty((len(samples), *array.shape), np.float32)
        if array.shape != raw.shape[1:]:
            raise CacheError(f"{name}: {array.shape} and {raw.shape[1:]} do not go into one batch")
        raw[row] = array
    assert raw is not None
    moments = torch.from_numpy(raw)  # or latents, of an autoencoder without a posterior
    if posterior == "moments":
        return moments
    mean = moments.chunk(2, dim=-3)[0]
    if posterior == "mode":
        return mean.contiguous()
    shape, purpose = tuple(mean.shape[1:]), ARRAYS[name].key
    noise = torch.stack([noise_for(seed, sample.id, epoch, purpose, shape) for sample in samples])
    return sample_posterior(moments, noise, dtype)
