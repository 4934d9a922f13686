"""Cache reader: a map-style dataset of the batches that the live transform would give."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from inpaint_data.batch import Batch, Posterior, select
from inpaint_data.errors import CacheError, ShardError, UsageError
from inpaint_data.latent_cache.assembling import Drawing
from inpaint_data.latent_cache.cached_samples import CachedBatch, check_kept, check_posterior, joined
from inpaint_data.latent_cache.epoch_batches import EpochBatches
from inpaint_data.latent_cache.format import CacheFile
from inpaint_data.latent_cache.gathering import Decoder, Variant, Wanted, gathered
from inpaint_data.latent_cache.members import ARRAYS, MASKED_LATENTS, MEMBERS, PICTURES, scales_name
from inpaint_data.latent_cache.opened_cache import OpenedCache
from inpaint_data.latent_cache.shard_files import FIX, Check, OpenFiles, check_when
from inpaint_data.shards.mirror import DEFAULT_BYTES

_log = logging.getLogger(__name__)
INCOMPLETE = "its job is under way or was stopped"
FINISH = "run the cache command to its end"
if TYPE_CHECKING:
    from inpaint_data.latent_cache.settings import CacheSettings


class LatentCache(Dataset[Batch]):
    """Every committed sample of a cache, in the order of shards and samples. A job may still be writing to it.

    `cache[i]` is a batch of one, and `cache.batch([i, j, ...])` one of many: see `Batch` for keys, shapes and dtypes.
    For a DataLoader `batches` says which samples go together, and in which order in which epoch; its own collate
    function does, also behind a ConcatDataset or a Subset.

    Args:
        root: the cache's folder, or a URL that fsspec opens, whose shards are copied to `mirror` when first read; or
            several caches of one fingerprint, which are read as one.
        posterior: "mode", "sample" (noise from seed, epoch and key) or "moments" (mean, then log-variance).
        variant: which of the K mask variants; "draw" draws one for each sample and `epoch`.
        seed: of variants and noise.
        carried: the carried members to read; or a mapping from each to the function that decodes it:
            `{"depth.npy": decode}`. None reads all, as bytes.
        masked_latents: whether to read `masked_latents`, where the cache has them.
        mirror: folder for the copies of a remote cache, which processes may share; a folder of the user's by default.
        mirror_bytes: how much the copies may take. Shards for which there is no room are read piece by piece.
        check: when the bytes of a sample are compared with their checksums: the "first" time that this object reads
            it, "always" or "never".

    Attributes:
        first_root: the cache's folder or URL, of several the first.
        epoch: set it before each epoch, unless the batches are those of `batches`; only variant "draw" and posterior
            "sample" depend on it. It lies in shared memory, so worker processes follow it.
        is_complete: False while the job that makes the cache is under way, or after it was stopped.
        fingerprint: of the settings that the cache was made with.
        buckets: (N,) int32, the bucket of every sample; samples of one bucket have one size and fit into a batch.
        bucket_counts: how many samples each bucket has.

    Raises:
        CacheError: no cache at `root`, nothing committed yet, or a shard that is not what its sidecar says.
        UsageError: no such folder, an unknown posterior, a variant or member that the cache does not have, or several
            caches that were not made with the same settings.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        posterior: Posterior = "mode",
        variant: Variant = "draw",
        seed: int = 0,
        carried: Collection[str] | Mapping[str, Decoder] | None = None,
        masked_latents: bool = True,
        mirror: str | None = None,
        mirror_bytes: int = DEFAULT_BYTES,
        check: Check = "first",
    ) -> None:
        roots = [root] if isinstance(root, str | Path) else root
        if not isinstance(roots, list | tuple) or not all(isinstance(each, str | Path) for each in roots) or not roots:
            raise UsageError(f"root: {root!r} is not a folder; name that of a cache, or a list of those")
        if type(seed) is not int:
            raise UsageError(f"seed: {seed!r} is not a whole number; give one")
        self.root = ", ".join(map(str, roots))
        check_when(check)
        files = OpenFiles()
        self._caches = caches = [OpenedCache(str(folder), mirror, mirror_bytes) for folder in roots]
        self.first_root = caches[0].root
        self._file = caches[0].file
        self.fingerprint: str = self._file.fingerprint
        for other in caches[1:]:
            if lines := _differing(self._file, other.file):
                raise UsageError(
                    f"source: {other.root} was made with other settings than {caches[0].root}, so they are not one "
                    "cache; train on one of them, or make them with the same settings. The first has on the left: "
                    f"{'; '.join(line.replace('the cache has ', '').replace('this run ', '') for line in lines)}"
                )
        check_posterior(posterior)
        check_kept(posterior, self._file.settings_json.get("means", ()))
        self.posterior, self.variant = posterior, variant
        self.seed = seed
        self._orders: set[bool] = set()
        # The epoch, how many samples were read since it was set, and whether anybody was told of another pass.
        self._state = torch.zeros(3, dtype=torch.int64)
        self.times_set = 0
        self._state.share_memory_()  # type: ignore[no-untyped-call]
        for cache in caches:
            cache.open_tars(files, check)
        if not sum(map(len, caches)):
            bad, filtered = len(self.quarantined), len(self.filtered)
            fix = "fix them or the filters" if bad or filtered else "run the cache command to its end"
            raise CacheError(f"{self.root}: has no samples, {bad} are quarantined and {filtered} filtered; {fix}")
        for cache in caches:
            cache.check_complete()
        self.variants = next(cache for cache in caches if len(cache)).merged.header.variants
        if variant != "draw" and not (type(variant) is int and 0 <= variant < self.variants):
            raise UsageError(f"variant: {variant!r} is not in the cache, which has 0...{self.variants - 1}")
        self._ends = np.cumsum([len(cache) for cache in caches])
        self.is_complete = all(cache.file.totals is not None for cache in caches)
        if not self.is_complete:
            _log.warning("%s: %s, at %d samples; %s", self.root, INCOMPLETE, len(self), FINISH)
        of_shards = [names for cache in caches for names in _members_of_shards(cache)]
        self._carried = sorted({name for names in of_shards for name in names} - MEMBERS.keys())
        self._decoders = self._checked(carried)
        of_all = set[str].intersection(*of_shards)
        self.has_masked_latents = MASKED_LATENTS in of_all
        self._arrays = [name for name in ARRAYS if name in of_all and (masked_latents or name != MASKED_LATENTS)]
        self._arrays += [name for name in PICTURES if name in of_all]
        self._arrays += [scales for name in self._arrays if (scales := scales_name(name)) in of_shards[0]]
        self._size_table, self.buckets, self.bucket_counts = _buckets_of(caches)

    def check_ranks(self, world: int) -> None:
        """Raises CacheError if several ranks may have opened an unfinished cache at different times."""
        if world > 1 and not self.is_complete:
            raise CacheError(f"{self.root}: {INCOMPLETE}, and ranks may see other samples of it; {FINISH}")

    def _checked(self, carried: Collection[str] | Mapping[str, Decoder] | None) -> Mapping[str, Decoder] | None:
        """The function that decodes each carried member; None for all, as bytes."""
        if carried is None:
            return None
        names = ", ".join(self._carried) or "none"
        if isinstance(carried, str) or not set(carried) <= set(self._carried):
            raise UsageError(f"carried: {carried!r} is not a list of names among {names}")
        return carried if isinstance(carried, Mapping) else dict.fromkeys(carried, bytes)

    @property
    def settings(self) -> "CacheSettings":
        """The settings that the cache was made with; `settings.vae.config` is the autoencoder's."""
        return self._file.settings

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(N, 2), height and width of every sample."""
        sizes: npt.NDArray[np.int64] = self._size_table[self.buckets]
        return sizes

    @cached_property
    def quarantined(self) -> list[tuple[str, Any]]:
        """(shard, entry) of every sample that the job could not use."""
        return [entry for cache in self._caches for entry in cache.left_out(on_purpose=False)]

    @cached_property
    def filtered(self) -> list[tuple[str, Any]]:
        """(shard, entry) of every sample that the job left out on purpose."""
        return [entry for cache in self._caches for entry in cache.left_out(on_purpose=True)]

    @property
    def keys(self) -> frozenset[str]:
        """Of the latents and the pictures that its batches have."""
        tables: tuple[Mapping[str, Any], ...] = (ARRAYS, PICTURES)
        return frozenset(table[name].key for table in tables for name in self._arrays if name in table)

    @property
    def member_bytes(self) -> Counter[str]:
        """Member -> bytes of it in all samples."""
        sizes = Counter[str]()
        for cache in self._caches:
            for rows in cache.all_rows():
                of_shard = rows["places"][..., 1].clip(min=0).sum(axis=0).tolist()
                sizes.update(dict(zip(cache.merged.header.members, of_shard, strict=True)))
        return +sizes

    @property
    def vae_class(self) -> str:
        """The name of the autoencoder's class, which `settings` has too, but not without pydantic."""
        return str(self._file.settings_json["vae"]["kind"])

    @property
    def _vae_dtype(self) -> str:
        return str(self._file.settings_json["vae"]["dtype"])  # as above

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def epoch(self) -> int:
        return int(self._state[0])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        # Not through torch, which would refuse it if made in inference mode.
        self._state.numpy()[:2] = _checked_epoch(epoch), 0
        self.times_set += 1

    def set_epoch(self, epoch: int) -> None:
        """Set `epoch`, by the name that samplers have for it."""
        self.epoch = epoch

    def batches(
        self,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int | None = None,
        world: int | None = None,
    ) -> EpochBatches:
        """The rows of batches, for a DataLoader's `batch_sampler`: see `EpochBatches`."""
        self._orders.add(shuffle)
        return EpochBatches(None, batch_size, drop_last, self, shuffle, rank, world)

    @property
    def shuffled(self) -> bool:
        """Whether `batches` was asked for shuffled ones.

        Raises:
            UsageError: both for such and for others, so that Lightning's copy of one cannot tell.
        """
        if len(self._orders) > 1:
            raise UsageError(
                f"{self.root}: its batches are both shuffled and not; open the cache once for each, or make the "
                "loaders in the Trainer's hooks"
            )
        return next(iter(self._orders), True)

    def places(self) -> list[tuple[str, str]]:
        """(shard, key) of every sample, in order."""
        return [
            (name, key)
            for cache in self._caches
            for name, rows in zip(cache.merged.header.shards, cache.all_rows(), strict=True)
            for key in cache.merged.keys(rows)
        ]

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.batch([index % len(self)])

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """For a DataLoader, whose collate function joins the batches in the list: there is one."""
        if (epoch := getattr(indices, "epoch", None)) is None:
            epoch = self.epoch
            self._count(len(indices))
        return [self._batch(indices, epoch)]

    def _count(self, samples: int) -> None:
        """Warn, once, whoever takes more than an epoch's samples without another epoch."""
        state = self._state.numpy()
        state[1] += samples
        draws = self.variant == "draw" or self.posterior == "sample"
        if draws and state[1] > len(self) and not state[2]:
            state[2] = 1
            _log.warning(
                "%s: another pass with the variants and the noise of epoch %d; call set_epoch() before each, or take "
                "batches() as batch_sampler",
                self.root,
                self.epoch,
            )

    def batch(self, indices: Sequence[int], epoch: int | None = None) -> Batch:
        """The batch of those samples, drawn as in `epoch`, by default that of the cache.

        Raises:
            IndexError: none are given, or there is no such sample.
            UsageError: they are of several sizes, or the epoch is not a whole number.
            CacheError, ShardError: one cannot be read, or is damaged.
        """
        return self._batch(indices, self.epoch if epoch is None else _checked_epoch(epoch))

    def _batch(self, indices: Sequence[int], epoch: int) -> Batch:
        given = np.asarray(indices)
        are_numbers = given.ndim == 1 and given.size > 0 and given.dtype.kind in "iu"
        if not are_numbers or given.min() < 0 or given.max() >= len(self):
            raise IndexError(
                f"samples {indices!r}: give one or more, as a list of whole numbers from 0 to {len(self) - 1}"
            )
        rows = given.astype(np.int64, copy=False)
        buckets = self.buckets[rows]
        if (buckets != buckets[0]).any():
            raise UsageError(
                f"samples {list(indices)} are of several sizes; take batches from `batches`, with drop_last where "
                "Accelerate deals them out"
            )
        parts = np.searchsorted(self._ends, rows, side="right")
        if (parts == parts[0]).all():
            return self._of_cache(int(parts[0]), rows, epoch)
        of_parts = [np.flatnonzero(parts == part) for part in np.unique(parts)]
        batches = [cast(CachedBatch, self._of_cache(int(parts[places[0]]), rows[places], epoch)) for places in of_parts]
        order = np.argsort(np.concatenate(of_parts)).tolist()
        return cast(Batch, CachedBatch(select(cast(Batch, joined(batches)), order)))

    def _of_cache(self, number: int, rows: npt.NDArray[np.int64], epoch: int) -> Batch:
        """The batch of some rows, all of one cache."""
        cache = self._caches[number]
        own = rows - (int(self._ends[number]) - len(cache))
        wanted = Wanted(self._arrays, self._carried, self._decoders, self.variant)
        drawing = Drawing(self.posterior, self.seed, epoch, getattr(torch, self._vae_dtype))
        try:
            return cast(Batch, CachedBatch(gathered(cache, own, wanted, drawing)))
        except ShardError:
            raise  # a remote file, which it names
        except Exception as error:  # damaged bytes raise whatever their parsers do
            for row in rows.tolist() if len(rows) > 1 else []:
                self._of_cache(number, np.array([row]), epoch)  # the one that is damaged names itself
            raise CacheError(
                f"{self.root}: cannot read {', '.join(_names(cache, own))} ({type(error).__name__}: {error}); {FIX}"
            ) from error


def _names(cache: OpenedCache, rows: npt.NDArray[np.int64]) -> list[str]:
    """Of some samples, for an error."""
    merged = cache.merged
    shards = np.searchsorted(merged.ends, rows, side="right").tolist()
    keys = merged.keys(cache.rows(rows, sorted(set(shards))))
    return [f"{merged.header.shards[shard]} {key!r}" for shard, key in zip(shards, keys, strict=True)]


def _members_of_shards(cache: OpenedCache) -> list[set[str]]:
    """The members that any sample of each shard has; without shards that have no samples."""
    header = cache.merged.header
    kinds = {tuple(numbers) for numbers, samples in zip(header.members_of, header.samples, strict=True) if samples}
    return [{header.members[number] for number in kind} for kind in sorted(kinds)]


def _buckets_of(caches: Sequence[OpenedCache]) -> tuple[Any, npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """(S, 2) the sizes that there are, in order; the number in there of every sample; and how many have each."""
    tables = [np.array(cache.merged.header.sizes, np.int64).reshape(-1, 2) for cache in caches]
    counts = [np.array(cache.merged.header.bucket_counts, np.int64) for cache in caches]
    if len(caches) == 1:
        return tables[0], caches[0].merged.buckets, counts[0]
    sizes, inverse = np.unique(np.concatenate(tables), axis=0, return_inverse=True)
    numbers = np.split(inverse.reshape(-1).astype(np.int32), np.cumsum([len(table) for table in tables])[:-1])
    buckets = [of_cache[cache.merged.buckets] for of_cache, cache in zip(numbers, caches, strict=True)]
    totals = np.bincount(inverse.reshape(-1), np.concatenate(counts), len(sizes)).astype(np.int64)
    return sizes, np.concatenate(buckets), totals


def _differing(first: CacheFile, other: CacheFile) -> list[str]:
    """The settings in which two caches differ, a line each."""
    if first.fingerprint == other.fingerprint:
        return []
    from inpaint_data.latent_cache.settings import incompatible  # as in CacheFile.settings

    return incompatible(first.settings_json, other.settings_json)


def _checked_epoch(epoch: Any) -> int:
    """Raises UsageError for what draws as no epoch does."""
    if not isinstance(epoch, int | np.integer) or isinstance(epoch, bool) or not 0 <= epoch < 2**63:
        raise UsageError(f"epoch: {epoch!r} is not a whole number from 0; give that of the Trainer")
    return int(epoch)
