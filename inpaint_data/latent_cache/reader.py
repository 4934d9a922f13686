"""A cache as a map-style dataset that hands out the batch the live transform would."""

import io
import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.format import (
    LATENTS,
    MASK,
    MASKED_LATENTS,
    RECORD,
    RESERVED,
    Sidecar,
    committed,
    read_cache_file,
    read_pbm,
    tar_path,
)
from inpaint_data.seeding import generator_for, noise_for
from inpaint_data.transform import POSTERIORS, Batch, Posterior


class LatentCache(Dataset[Batch]):
    """Every committed sample of a cache, in the order of shards and samples.

    `cache[i]` is a batch of one; `cache.__getitems__([i, j, ...])`, which a DataLoader calls with
    `collate_fn=lambda batch: batch`, is a batch of many: see `Batch` for keys, shapes and dtypes.

    Args:
        root: the cache's folder.
        posterior: "mode", "sample" (noise from seed, epoch and key) or "moments".
        variant: which of the K mask variants; None draws one for each sample and `epoch`.
        seed: of variants and noise.

    Attributes:
        epoch: set it before each epoch; only `variant=None` and posterior "sample" depend on it.
        settings: what the cache was made with, from `cache.json`; `settings["vae"]["config"]` is the VAE's.

    Raises:
        CacheError: no cache at `root`, nothing committed yet, or a shard that is not what its sidecar says.
        UsageError: an unknown posterior, or a variant that the cache does not have.
    """

    def __init__(
        self, root: str | Path, posterior: Posterior = "mode", variant: int | None = None, seed: int = 0
    ) -> None:
        self.root = Path(root)
        content = read_cache_file(self.root)
        self.settings: dict[str, Any] = content["settings"]
        self.posterior, self.variant, self.seed, self.epoch = posterior, variant, seed, 0
        sidecars = [sidecar for sidecar in map(Sidecar.read, committed(self.root)) if sidecar.keys]
        if not sidecars:
            raise CacheError(f"{root}: no sample is committed; run the cache command to its end")
        if posterior not in POSTERIORS:
            raise UsageError(f"posterior: {posterior!r} is unknown; choose from {', '.join(POSTERIORS)}")
        self.variants: int = sidecars[0].variants
        if variant is not None and not 0 <= variant < self.variants:
            raise UsageError(f"variant: {variant} is not in the cache, which has 0...{self.variants - 1}")
        self._shards = [_Shard(self.root, sidecar, content["fingerprint"]) for sidecar in sidecars]
        self._ends = np.cumsum([len(sidecar.keys) for sidecar in sidecars])

    @property
    def has_posterior(self) -> bool:
        return bool(self.settings["vae"]["has_posterior"])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def places(self) -> list[tuple[str, str]]:
        """(shard, key) of every sample, in order."""
        return [(shard.name, key) for shard in self._shards for key in shard.keys]

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.__getitems__([index % len(self)])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        try:
            return self._batch(indices)
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            RecursionError,
            OSError,
            CacheError,
        ) as error:
            keys = [f"{shard.name} {shard.keys[row]!r}" for shard, row in map(self._place, indices)]
            raise CacheError(
                f"{self.root}: cannot read {', '.join(keys)} ({type(error).__name__}: {error}); "
                "run `inpaint-data verify` to see what is wrong with the cache"
            ) from error

    def _batch(self, indices: Sequence[int]) -> Batch:
        places = [self._place(index) for index in indices]
        keys = [shard.keys[row] for shard, row in places]
        records = [json.loads(shard.member(RECORD, row)) for shard, row in places]
        variants = [self._variant(key) for key in keys]
        latents = torch.from_numpy(np.stack([shard.array(LATENTS, row) for shard, row in places])).float()
        masked = np.stack(
            [shard.array(MASKED_LATENTS, row)[k] for (shard, row), k in zip(places, variants, strict=True)]
        )
        masks = np.stack([shard.masks(row)[k] for (shard, row), k in zip(places, variants, strict=True)])
        chosen = [record["variants"][k] for record, k in zip(records, variants, strict=True)]
        return Batch(
            latents=self._posterior(latents, keys, "latents"),
            masked_latents=self._posterior(torch.from_numpy(masked).float(), keys, "masked_latents"),
            mask=torch.from_numpy(masks)[:, None],
            offset=torch.tensor([each["offset"] for each in chosen]),
            caption=[record["caption"] for record in records],
            generator=[(each["generator"],) for each in chosen],
            original_size=torch.tensor([record["original_size"] for record in records]),
            crop_top_left=torch.tensor([record["crop_top_left"] for record in records]),
            target_size=torch.tensor([record["target_size"] for record in records]),
            carried=[shard.carried(row) for shard, row in places],
            variant=torch.tensor(variants),
            __key__=keys,
            __shard__=[shard.name for shard, _ in places],
        )

    def _place(self, index: int) -> "tuple[_Shard, int]":
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._shards[number], int(index - (self._ends[number - 1] if number else 0))

    def _variant(self, key: str) -> int:
        if self.variant is not None:
            return self.variant
        return int(generator_for(self.seed, key, self.epoch, "variant").integers(self.variants))

    def _posterior(self, raw: Tensor, keys: Sequence[str], purpose: str) -> Tensor:
        if self.posterior == "moments" or not self.has_posterior:
            return raw
        mean, log_variance = raw.chunk(2, dim=1)
        if self.posterior == "mode":
            return mean.contiguous()
        shape = tuple(mean.shape[1:])
        noise = torch.stack([noise_for(self.seed, key, self.epoch, purpose, shape) for key in keys])
        return mean + torch.exp(0.5 * log_variance) * noise


class _Shard:
    """One tar, mapped into memory when it is first read: nothing is copied but what is asked for."""

    def __init__(self, root: Path, sidecar: Sidecar, fingerprint: str) -> None:
        self.name, self.keys, self._index = sidecar.shard, sidecar.keys, sidecar.index
        self._variants = sidecar.variants
        self._path = tar_path(root, Path(sidecar.shard).stem)
        self._map: mmap.mmap | None = None
        mend = "run `inpaint-data verify` to see what is wrong with the cache"
        if sidecar.fingerprint != fingerprint:
            raise CacheError(f"{self._path}: made with other settings than cache.json says; {mend}")
        try:
            size = self._path.stat().st_size
        except OSError as error:
            raise CacheError(f"{self._path}: {error.strerror}; {mend}") from None
        if size != sidecar.output["size"]:
            raise CacheError(f"{self._path}: {size} bytes, its sidecar says {sidecar.output['size']}; {mend}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}  # a map cannot be pickled; a worker process makes its own

    def member(self, name: str, row: int) -> bytes:
        if self._map is None:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        columns = self._index[name]
        start = columns["offset"][row]
        return self._map[start : start + columns["size"][row]]

    def array(self, name: str, row: int) -> npt.NDArray[Any]:
        loaded: npt.NDArray[Any] = np.load(io.BytesIO(self.member(name, row)), allow_pickle=False)
        return loaded

    def masks(self, row: int) -> npt.NDArray[np.bool_]:
        return read_pbm(self.member(MASK, row), self._variants)

    def carried(self, row: int) -> dict[str, bytes]:
        return {
            name: self.member(name, row)
            for name, columns in self._index.items()
            if name not in RESERVED and columns["offset"][row] >= 0
        }
