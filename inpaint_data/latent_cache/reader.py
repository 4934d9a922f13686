"""Cache reader: a map-style dataset of the batches that the live transform would give."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from inpaint_data.batch import Batch, Posterior
from inpaint_data.durable import write_file
from inpaint_data.errors import CacheError, ShardError, UsageError
from inpaint_data.latent_cache.cached_samples import CachedSample, batch_of, check_kept, check_posterior
from inpaint_data.latent_cache.epoch_batches import EpochBatches
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    CacheFile,
    Sidecar,
    committed,
    is_cache,
    missing_cache_file,
    read_cache_file,
    shards_sha256,
    tar_path,
)
from inpaint_data.latent_cache.members import ARRAYS, MASKED_LATENTS, PICTURES, scales_name
from inpaint_data.latent_cache.record import RECORD
from inpaint_data.latent_cache.shard_files import FIX, Check, OpenFiles, ShardFile, check_when
from inpaint_data.latent_cache.variants import carried_of, is_of_variant, of_variant
from inpaint_data.seeding import generator_for, sample_id
from inpaint_data.shards.mirror import DEFAULT_BYTES, Mirror, mirror_in
from inpaint_data.shards.stores import is_url, local_path, read_folder

_log = logging.getLogger(__name__)
INCOMPLETE = "its job is under way or was stopped"
FINISH = "run the cache command to its end"
if TYPE_CHECKING:
    from inpaint_data.latent_cache.settings import CacheSettings

Decoder = Callable[[bytes], Any]
Variant = int | Literal["draw"]


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
        sizes: (N, 2) int64, height and width of every sample.
        buckets: (N,) int64, the bucket of every sample; samples of one bucket have one size and fit into a batch.
        quarantined, filtered: (shard, entry) of every sample that the job could not use or left out on purpose.

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
        caches = [_Cache(str(folder), mirror, mirror_bytes) for folder in roots]
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
        self.quarantined = [entry for cache in caches for entry in cache.left_out(on_purpose=False)]
        self.filtered = [entry for cache in caches for entry in cache.left_out(on_purpose=True)]
        self._shards = [shard for cache in caches for shard in cache.shards(files, check)]
        if not self._shards:
            bad, filtered = len(self.quarantined), len(self.filtered)
            fix = "fix them or the filters" if bad or filtered else "run the cache command to its end"
            raise CacheError(f"{self.root}: has no samples, {bad} are quarantined and {filtered} filtered; {fix}")
        for cache in caches:
            cache.check_complete()
        self.variants = self._shards[0].variants
        if variant != "draw" and not (type(variant) is int and 0 <= variant < self.variants):
            raise UsageError(f"variant: {variant!r} is not in the cache, which has 0...{self.variants - 1}")
        indexes = [shard.index for shard in self._shards]
        self._ends = np.cumsum([len(index.keys) for index in indexes])
        self.is_complete = all(cache.file.totals is not None for cache in caches)
        if not self.is_complete:
            _log.warning("%s: %s, at %d samples; %s", self.root, INCOMPLETE, len(self), FINISH)
        self._decoders = self._checked(carried)
        self.has_masked_latents = all(MASKED_LATENTS in index.members for index in indexes)
        self._arrays = [
            name
            for name in ARRAYS
            if all(name in index.members for index in indexes) and (masked_latents or name != MASKED_LATENTS)
        ]
        self._arrays += [name for name in PICTURES if all(name in index.members for index in indexes)]
        self._arrays += [scales for name in self._arrays if (scales := scales_name(name)) in indexes[0].members]
        self.sizes = np.concatenate([index.target_sizes for index in indexes])
        self.buckets = np.unique(self.sizes, axis=0, return_inverse=True)[1].reshape(-1)

    def check_ranks(self, world: int) -> None:
        """Raises CacheError if several ranks may have opened an unfinished cache at different times."""
        if world > 1 and not self.is_complete:
            raise CacheError(f"{self.root}: {INCOMPLETE}, and ranks may see other samples of it; {FINISH}")

    def _checked(self, carried: Collection[str] | Mapping[str, Decoder] | None) -> Mapping[str, Decoder] | None:
        """The function that decodes each carried member; None for all, as bytes."""
        if carried is None:
            return None
        names = {name for shard in self._shards for name in shard.index.carried}
        if isinstance(carried, str) or not set(carried) <= names:
            raise UsageError(f"carried: {carried!r} is not a list of names among {', '.join(sorted(names)) or 'none'}")
        return carried if isinstance(carried, Mapping) else dict.fromkeys(carried, bytes)

    @property
    def settings(self) -> "CacheSettings":
        """The settings that the cache was made with; `settings.vae.config` is the autoencoder's."""
        return self._file.settings

    @property
    def keys(self) -> frozenset[str]:
        """Of the latents and the pictures that its batches have."""
        tables: tuple[Mapping[str, Any], ...] = (ARRAYS, PICTURES)
        return frozenset(table[name].key for table in tables for name in self._arrays if name in table)

    @property
    def member_bytes(self) -> Counter[str]:
        """Member -> bytes of it in all samples."""
        sizes = Counter[str]()
        for shard in self._shards:
            for name, places in shard.index.places.items():
                sizes[name] += int(places[:, 1].clip(min=0).sum())
        return sizes

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
        self._state.numpy()[:2] = epoch, 0
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
        return [(shard.name, key) for shard in self._shards for key in shard.index.keys]

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
            UsageError: they are of several sizes.
            CacheError, ShardError: one cannot be read, or is damaged.
        """
        return self._batch(indices, self.epoch if epoch is None else epoch)

    def _batch(self, indices: Sequence[int], epoch: int) -> Batch:
        if not len(indices) or not all(0 <= index < len(self) for index in indices):
            raise IndexError(f"samples {list(indices)}: give at least one, each within 0...{len(self) - 1}")
        if len(np.unique(self.buckets[list(indices)])) > 1:
            raise UsageError(
                f"samples {list(indices)} are of several sizes; take batches from `batches`, with drop_last where "
                "Accelerate deals them out"
            )
        places = [self._place(index) for index in indices]
        samples = []
        for place in places:
            with self._named_in_errors([place]):
                samples.append(self._sample(*place, epoch))
        with self._named_in_errors(places):
            return batch_of(samples, self.posterior, self.seed, epoch, getattr(torch, self._vae_dtype))

    @contextmanager
    def _named_in_errors(self, places: Sequence[tuple[ShardFile, int]]) -> Iterator[None]:
        try:
            yield
        except ShardError:
            raise  # a remote file, which it names
        except Exception as error:  # damaged bytes raise whatever their parsers do
            keys = [f"{shard.name} {shard.index.keys[row]!r}" for shard, row in places]
            raise CacheError(
                f"{self.root}: cannot read {', '.join(keys)} ({type(error).__name__}: {error}); {FIX}"
            ) from error

    def _sample(self, shard: ShardFile, row: int, epoch: int) -> CachedSample:
        key, index = shard.index.keys[row], shard.index
        wanted = index.carried if self._decoders is None else self._decoders.keys()
        variant = self.variant
        if variant == "draw":
            variant = int(
                generator_for(self.seed, sample_id(shard.name, key), epoch, "variant").integers(self.variants)
            )
        own = {of_variant(variant, name) for name in wanted} & index.carried
        shared = {name for name in wanted if not is_of_variant(name)}
        members = shard.members([*self._arrays, index.masks, RECORD, *sorted(shared | own)], row, variant)
        held = carried_of(index.carried & members.keys(), variant)
        values: dict[str, Any] = {name: members[member] for name, member in held.items()}
        if self._decoders is not None:
            values = {name: self._decoders[name](data) for name, data in values.items()}
        return CachedSample(key, shard.name, members, variant, self.variants, values)

    def _place(self, index: int) -> tuple[ShardFile, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._shards[number], int(index - (self._ends[number - 1] if number else 0))


def _differing(first: CacheFile, other: CacheFile) -> list[str]:
    """The settings in which two caches differ, a line each."""
    if first.fingerprint == other.fingerprint:
        return []
    from inpaint_data.latent_cache.settings import incompatible  # as in CacheFile.settings

    return incompatible(first.settings_json, other.settings_json)


class _Cache:
    """One cache: its files at the time it was opened."""

    def __init__(self, root: str, mirror: str | None, mirror_bytes: int) -> None:
        self.root, self._mirror_bytes = root, mirror_bytes
        self._url: str | None = None
        self._copies: Mirror | None = None
        self._folder = local_path(root)
        if is_url(root):
            self._url, self._copies = root.rstrip("/"), mirror_in(mirror)
            self._folder = _fetch_sidecars(self._url, self._copies.folder)
        self.file = read_cache_file(self._folder)
        self._sidecars = list(map(Sidecar.read, committed(self._folder)))

    def left_out(self, on_purpose: bool) -> Iterator[tuple[str, Any]]:
        for sidecar in self._sidecars:
            for entry in sidecar.filtered if on_purpose else sidecar.quarantined:
                yield sidecar.shard, entry

    def check_complete(self) -> None:
        """Raises CacheError if samples are missing that `cache.json` counts; a job under way has counted none yet."""
        count = sum(len(sidecar.keys) for sidecar in self._sidecars)
        if self.file.totals is not None and count != self.file.totals["samples"]:
            raise CacheError(
                f"{self.root}: its sidecars have {count} samples, but cache.json counts {self.file.totals['samples']}; "
                "run the cache command again, it makes what is missing, or `inpaint-data verify` to see what that is"
            )
        present = shards_sha256({sidecar.shard: sidecar.sha256 for sidecar in self._sidecars})
        if self.file.shards_sha256 not in (None, present):
            raise CacheError(
                f"{self.root}: cache.json was written for other shards than are here, so a tar and its sidecar were "
                "put in place of some; run the cache command again, it makes those anew"
            )

    def shards(self, files: OpenFiles, check: Check) -> Iterator[ShardFile]:
        for sidecar in self._sidecars:
            if not sidecar.keys:
                continue
            if sidecar.fingerprint != self.file.fingerprint:
                path = tar_path(self._folder, Path(sidecar.shard).stem)
                raise CacheError(f"{path}: made with other settings than cache.json says; {FIX}")
            yield ShardFile(self._folder, sidecar, files, check, self._url, self._copies, self._mirror_bytes)


def _fetch_sidecars(url: str, mirror: Path) -> Path:
    """Copy `cache.json` and the sidecars of a remote cache to a folder of its own, and return that."""
    folder = mirror / hashlib.sha256(url.encode()).hexdigest()[:16]
    contents = read_folder(url, ".json")
    if CACHE_FILE not in contents and is_cache(url):
        raise CacheError(
            f"{url}: its server has the cache's files but does not list them; copy the cache here, or serve it from a "
            "store that lists folders"
        )
    if CACHE_FILE not in contents:
        raise CacheError(missing_cache_file(url, sidecars=False))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        write_file(folder / name, data)
    for name in {path.name for path in folder.glob("*.json")} - contents.keys():
        (folder / name).unlink(missing_ok=True)
    return folder
