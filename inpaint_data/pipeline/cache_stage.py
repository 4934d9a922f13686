"""The stage that reads samples of a cache from any pipeline."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inpaint_data.batch import Posterior
from inpaint_data.encoding.settings import Dtype
from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.cached_samples import CachedSample, check_posterior
from inpaint_data.latent_cache.format import read_cache_file
from inpaint_data.latent_cache.gathering import Variant
from inpaint_data.latent_cache.members import MEMBERS, masks_member
from inpaint_data.latent_cache.record import RECORD
from inpaint_data.latent_cache.variants import carried_of
from inpaint_data.pipeline.decorator import SampleDict, stage
from inpaint_data.pipeline.samples import as_sample, is_sample
from inpaint_data.seeding import generator_for, sample_id
from inpaint_data.shards.naming import shard_stem


@dataclass(frozen=True)
class CachedExample:
    """A sample of a cache on its way to a batch."""

    sample: CachedSample
    size: tuple[int, int]  # of the picture
    posterior: Posterior
    seed: int
    epoch: int
    dtype: torch.dtype  # of the autoencoder


@stage
def cached(
    samples: Iterable[SampleDict],
    variant: Variant = "draw",
    posterior: Posterior = "mode",
    seed: int = 0,
    epoch: int = 0,
    dtype: Dtype | None = None,
) -> Iterator[Any]:
    """Samples of a cache's tars, as webdataset or `read_shards` reads them, for `bucketed`.

    Args:
        samples: sample dicts with the members of cache format 1. All else passes through.
        variant: which of the K masks, or "draw".
        posterior: "mode", "sample" or "moments".
        seed, epoch: of the variant and the noise: give another epoch for each pass.
        dtype: what the cache's autoencoder computed in, in which posterior "sample" is drawn; left out, as the
            `cache.json` beside the tars says.

    Raises:
        UsageError: not a sample of a cache, a variant that it does not have, or no `cache.json` and no `dtype`.
    """
    check_posterior(posterior)
    if variant != "draw" and type(variant) is not int:
        raise UsageError(f'variant: {variant!r} is neither a number nor "draw"; give one of them')
    drawn_in = _DtypeOf(dtype) if posterior == "sample" else None
    for item in samples:
        if not is_sample(item):
            yield item
            continue
        sample = as_sample(item)
        masks = masks_member(sample.members)
        if absent := [name for name in (RECORD, masks) if name not in sample.members]:
            raise UsageError(
                f"{sample.shard}, sample {sample.key!r}: has no {absent[0]}, so it is not of a latent cache; "
                "read image shards with examples()"
            )
        record = MEMBERS[RECORD].read(sample.members[RECORD], 0, 1)
        variants = record["count"]
        shard, number = shard_stem(sample.shard), variant
        if number == "draw":
            number = int(generator_for(seed, sample_id(shard, sample.key), epoch, "variant").integers(variants))
        if not 0 <= number < variants:
            raise UsageError(f"variant: {variant!r} is not in the cache, which has 0...{variants - 1}")
        held = carried_of(sample.members.keys() - MEMBERS.keys(), number)
        carried = {name: sample.members[member] for name, member in held.items()}
        stored = CachedSample(sample.key, f"{shard}.tar", sample.members, number, variants, carried)
        height, width = record["target_size"]
        computed_in = drawn_in(sample.shard) if drawn_in else torch.float32
        yield CachedExample(stored, (height, width), posterior, seed, epoch, computed_in)


class _DtypeOf:
    """What the autoencoder of a shard's cache computed in, looked up once a folder."""

    def __init__(self, given: Dtype | None) -> None:
        self._given = given
        self._found: dict[str, torch.dtype] = {}

    def __call__(self, shard: str) -> torch.dtype:
        folder = shard.rpartition("/")[0]
        if folder not in self._found:
            name = self._given
            try:
                name = name or read_cache_file(Path(folder or ".")).settings_json["vae"]["dtype"]
            except CacheError as error:
                raise UsageError(
                    f"posterior: sample is drawn in what the autoencoder computed in, and {error}; give cached() dtype"
                ) from None
            self._found[folder] = getattr(torch, name)
        return self._found[folder]
