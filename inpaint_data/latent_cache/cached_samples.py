"""Batches of a cache, and those of cached samples whose members are in memory, for the `cached` stage."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from inpaint_data.batch import POSTERIORS, Batch, Carried, Posterior, to_device
from inpaint_data.errors import UsageError
from inpaint_data.latent_cache.assembling import Described, Drawing, Parts, assembled
from inpaint_data.latent_cache.contents import Held
from inpaint_data.latent_cache.members import MEMBERS
from inpaint_data.latent_cache.record import RECORD


@dataclass(frozen=True)
class CachedSample:
    """One sample of a cache, as it was stored."""

    key: str
    shard: str
    members: Mapping[str, bytes]  # the record, the masks, and those of the latents that were asked for
    variant: int  # which of the masks
    variants: int  # how many there are
    carried: dict[str, Any] = field(default_factory=dict)


class CachedBatch(dict[str, Any]):
    """A `Batch` of a cache, which torch's own collate function knows how to join with others."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "CachedBatch":  # noqa: ARG002 - as it can
        """The batch on a device, for Lightning, Fabric and Accelerate, who else walk through each of its texts."""
        return CachedBatch(to_device(cast(Batch, self), torch.device(device)))


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
    counts = [sample.variants for sample in samples]
    records = [MEMBERS[RECORD].read(sample.members[RECORD], sample.variant, sample.variants) for sample in samples]
    described = Described.of(records)
    check_kept(posterior, described.means)
    names = [name for name in MEMBERS if all(name in sample.members for sample in samples)]
    parts = Parts(
        keys=[sample.key for sample in samples],
        shards=[sample.shard for sample in samples],
        variants=[sample.variant for sample in samples],
        counts=counts,
        described=described,
        contents={name: Held([sample.members[name] for sample in samples]) for name in names},
        carried=[sample.carried for sample in samples],
    )
    return cast(Batch, CachedBatch(assembled(parts, Drawing(posterior, seed, epoch, dtype))))
