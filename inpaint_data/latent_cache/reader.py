"""A cache as a map-style dataset that hands out the batch the live transform would."""

import hashlib
import io
import json
import mmap
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from inpaint_data.encoding.transform import POSTERIORS, Batch, Posterior
from inpaint_data.encoding.vae import sample_posterior
from inpaint_data.errors import CacheError, SampleError, ShardError, UsageError
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    LATENTS,
    MASKED_LATENTS,
    RECORD,
    RESERVED,
    SIZES,
    SOFT_MASK,
    TARGET_LATENTS,
    Sidecar,
    committed,
    masks_member,
    read_cache_file,
    read_pbm,
    read_png,
    tar_path,
)
from inpaint_data.masks.soft_border import from_levels
from inpaint_data.order import Batches, permutation
from inpaint_data.seeding import generator_for, noise_for
from inpaint_data.shards.mirror import Mirror, default_folder, read_range
from inpaint_data.shards.tar import is_url, unreadable

Decoder = Callable[[bytes], Any]
MEND = "run `inpaint-data verify` to see what is wrong with the cache"


class LatentCache(Dataset[Batch]):
    """Every committed sample of a cache, in the order of shards and samples. A job may still be writing to it.

    `cache[i]` is a batch of one; `cache.__getitems__([i, j, ...])`, which a DataLoader calls with
    `collate_fn=LatentCache.collate`, is a batch of many: see `Batch` for keys, shapes and dtypes. Where samples have
    several sizes, `batches` says which go together.

    Args:
        root: the cache's folder, or a URL that fsspec opens, whose shards are copied to `mirror` when first read.
        posterior: "mode", "sample" (noise from seed, epoch and key) or "moments" (mean, then log-variance).
        variant: which of the K mask variants; None draws one for each sample and `epoch`.
        seed: of variants and noise.
        carried: which of the members carried along to read, and with a mapping what makes each one's bytes into a
            value: `{"depth.npy": decode}`. None reads all, as bytes.
        masked_latents: whether to read `masked_latents`, where the cache has them.
        mirror: folder for the copies of a remote cache, which processes may share; a folder of the user's by default.
        mirror_bytes: how much the copies may take. Shards for which there is no room are read piece by piece.

    Attributes:
        epoch: set it before each epoch; only `variant=None` and posterior "sample" depend on it.
        settings: what the cache was made with, from `cache.json`; `settings["vae"]["config"]` is the VAE's.
        fingerprint: of those settings.
        buckets: (N,) int64, the bucket of every sample; samples of one bucket have one size and fit into a batch.
        quarantined, filtered: (shard, entry) of every sample that the job could not use, or left out on purpose.

    Raises:
        CacheError: no cache at `root`, nothing committed yet, or a shard that is not what its sidecar says.
        UsageError: no such folder, an unknown posterior, or a variant or member that the cache does not have.
    """

    def __init__(
        self,
        root: str | Path,
        posterior: Posterior = "mode",
        variant: int | None = None,
        seed: int = 0,
        carried: Collection[str] | Mapping[str, Decoder] | None = None,
        masked_latents: bool = True,
        mirror: str | None = None,
        mirror_bytes: int = 100 * 10**9,
    ) -> None:
        self.root = root
        url, copies, folder = None, None, Path(root)
        if is_url(str(root)):
            url, copies = str(root).rstrip("/"), Mirror(mirror or default_folder(), mirror_bytes)
            folder = _fetch_sidecars(url, copies.folder)
        content = read_cache_file(folder)
        self.settings: dict[str, Any] = content["settings"]
        self.fingerprint: str = content["fingerprint"]
        self.posterior, self.variant, self.seed, self.epoch = posterior, variant, seed, 0
        sidecars = list(map(Sidecar.read, committed(folder)))
        self.quarantined = [(sidecar.shard, entry) for sidecar in sidecars for entry in sidecar.quarantined]
        self.filtered = [(sidecar.shard, entry) for sidecar in sidecars for entry in sidecar.filtered]
        sidecars = [sidecar for sidecar in sidecars if sidecar.keys]
        if not sidecars:
            bad, filtered = len(self.quarantined), len(self.filtered)
            mend = "mend them or the filters" if bad or filtered else "run the cache command to its end"
            raise CacheError(f"{root}: no sample is in it, {bad} are quarantined and {filtered} filtered; {mend}")
        if posterior not in POSTERIORS:
            raise UsageError(f"posterior: {posterior!r} is unknown; choose from {', '.join(POSTERIORS)}")
        self.variants: int = sidecars[0].variants
        if variant is not None and not 0 <= variant < self.variants:
            raise UsageError(f"variant: {variant} is not in the cache, which has 0...{self.variants - 1}")
        for sidecar in sidecars:
            if sidecar.fingerprint != self.fingerprint:
                path = tar_path(folder, Path(sidecar.shard).stem)
                raise CacheError(f"{path}: made with other settings than cache.json says; {MEND}")
        self._shards = [_Shard(folder, sidecar, url, copies) for sidecar in sidecars]
        self._ends = np.cumsum([len(sidecar.keys) for sidecar in sidecars])
        self._decoders: Mapping[str, Decoder] | None = None
        if carried is not None:
            there = {name for shard in self._shards for name in shard.carried}
            if isinstance(carried, str) or not set(carried) <= there:
                raise UsageError(
                    f"carried: {carried!r} is not a list of names among {', '.join(sorted(there)) or 'none'}"
                )
            self._decoders = carried if isinstance(carried, Mapping) else dict.fromkeys(carried, bytes)
        self.has_masked_latents = all(MASKED_LATENTS in sidecar.index for sidecar in sidecars)
        self._arrays = [LATENTS]
        self._arrays += [MASKED_LATENTS] if masked_latents and self.has_masked_latents else []
        self._arrays += [TARGET_LATENTS] if all(TARGET_LATENTS in sidecar.index for sidecar in sidecars) else []
        sides = [np.array([each.target_size["height"], each.target_size["width"]], np.int64).T for each in sidecars]
        self.buckets = np.unique(np.concatenate(sides), axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def has_posterior(self) -> bool:
        return bool(self.settings["vae"]["has_posterior"])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batches(self, batch_size: int, shuffle: bool = True) -> Sequence[list[int]]:
        """The rows of each batch of the epoch that is set, every batch from one bucket: a DataLoader's `batch_sampler`.

        Args:
            batch_size: samples in a batch; what is left of each bucket makes smaller ones at the end.
            shuffle: by (seed, epoch), as training does it, or in the order of the cache.

        Raises:
            UsageError: a batch_size below 1.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size: {batch_size} is not a positive whole number; give 1 or more")
        order = permutation(len(self), self.seed, self.epoch) if shuffle else np.arange(len(self))
        made = Batches(order, self.buckets, batch_size)
        return [made[number].tolist() for number in range(len(made))]

    def places(self) -> list[tuple[str, str]]:
        """(shard, key) of every sample, in order."""
        return [(shard.name, key) for shard in self._shards for key in shard.keys]

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.__getitems__([index % len(self)])

    @staticmethod
    def collate(batch: Batch) -> Batch:
        """The `collate_fn` of a DataLoader: `__getitems__` has made a batch already."""
        return batch

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        if not len(indices) or not all(0 <= index < len(self) for index in indices):
            raise IndexError(f"samples {list(indices)}: give at least one, each within 0...{len(self) - 1}")
        if len(np.unique(self.buckets[list(indices)])) > 1:
            raise UsageError(f"samples {list(indices)} are of several sizes; take each batch from one of `buckets`")
        try:
            return self._batch(indices)
        except ShardError:
            raise  # a remote file, which it names
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            RecursionError,
            OSError,
            CacheError,
            SampleError,
        ) as error:
            keys = [f"{shard.name} {shard.keys[row]!r}" for shard, row in map(self._place, indices)]
            raise CacheError(
                f"{self.root}: cannot read {', '.join(keys)} ({type(error).__name__}: {error}); {MEND}"
            ) from error

    def _batch(self, indices: Sequence[int]) -> Batch:
        places = [self._place(index) for index in indices]
        keys = [shard.keys[row] for shard, row in places]
        members = [shard.members(self._names(shard), row) for shard, row in places]
        records = [json.loads(bytes(each[RECORD])) for each in members]
        variants = [self._variant(key) for key in keys]
        chosen = [record["variants"][k] for record, k in zip(records, variants, strict=True)]
        latents = {name.removesuffix(".npy"): self._latents(name, members, variants, keys) for name in self._arrays}
        batch: dict[str, Any] = {
            **latents,
            "mask": self._masks(places, members, variants),
            "offset": torch.tensor([each["offset"] for each in chosen]),
            "window": [(each["window"],) for each in chosen],
            "variant": torch.tensor(variants),
            "caption": [record["caption"] for record in records],
            "generator": [(each["generator"],) for each in chosen],
            **{name: torch.tensor([record[name] for record in records]) for name in SIZES},
            "flip": torch.tensor([record["flip"] for record in records]),
            "carried": [self._carried(shard, each) for (shard, _), each in zip(places, members, strict=True)],
            "__key__": keys,
            "__shard__": [shard.name for shard, _ in places],
        }
        return cast(Batch, batch)

    def _place(self, index: int) -> "tuple[_Shard, int]":
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._shards[number], int(index - (self._ends[number - 1] if number else 0))

    def _names(self, shard: "_Shard") -> list[str]:
        """The members to read."""
        carried = shard.carried if self._decoders is None else self._decoders.keys()
        return [*self._arrays, shard.masks, RECORD, *sorted(carried)]

    def _carried(self, shard: "_Shard", members: Mapping[str, memoryview]) -> dict[str, Any]:
        carried = {name: bytes(data) for name, data in members.items() if name in shard.carried}
        return {name: self._decoders[name](data) if self._decoders else data for name, data in carried.items()}

    def _masks(
        self, places: "Sequence[tuple[_Shard, int]]", members: Sequence[Mapping[str, memoryview]], chosen: Sequence[int]
    ) -> Tensor:
        """(B, 1, H, W) bool, or of soft ones float32 in [0, 1]."""
        read: Any = read_png if places[0][0].masks == SOFT_MASK else read_pbm
        masks = [
            read(each[shard.masks], self.variants)[k]
            for (shard, _), each, k in zip(places, members, chosen, strict=True)
        ]
        stacked = torch.from_numpy(np.stack(masks))[:, None]
        return from_levels(stacked) if read is read_png else stacked

    def _variant(self, key: str) -> int:
        if self.variant is not None:
            return self.variant
        return int(generator_for(self.seed, key, self.epoch, "variant").integers(self.variants))

    def _latents(
        self, name: str, members: Sequence[Mapping[str, memoryview]], variants: Sequence[int], keys: Sequence[str]
    ) -> Tensor:
        """One tensor for the batch, filled from the mapped files without a copy in between; float32."""
        raw = None
        for row, (each, k) in enumerate(zip(members, variants, strict=True)):
            array = _array(each[name])
            array = array[k] if name == MASKED_LATENTS else array
            if raw is None:
                raw = np.empty((len(members), *array.shape), np.float32)
            if array.shape != raw.shape[1:]:
                raise CacheError(f"{name}: {array.shape} and {raw.shape[1:]} do not go into one batch")
            raw[row] = array
        assert raw is not None
        moments = torch.from_numpy(raw)
        if self.posterior == "moments" or not self.has_posterior:
            return moments
        mean = moments.chunk(2, dim=1)[0]
        if self.posterior == "mode":
            return mean.contiguous()
        shape, purpose = tuple(mean.shape[1:]), name.removesuffix(".npy")
        noise = torch.stack([noise_for(self.seed, key, self.epoch, purpose, shape) for key in keys])
        return sample_posterior(moments, noise)


class _Shard:
    """One tar, mapped into memory when it is first read: nothing is copied but what is asked for."""

    def __init__(self, root: Path, sidecar: Sidecar, url: str | None, copies: Mirror | None) -> None:
        self.name, self.keys = sidecar.shard, sidecar.keys
        # As arrays: lists of numbers would take four times the memory.
        self.index = {
            name: (np.array(columns["offset"], np.int64), np.array(columns["size"], np.int64))
            for name, columns in sidecar.index.items()
        }
        self.masks = masks_member(self.index)
        self.carried = self.index.keys() - RESERVED - {self.masks}
        self._path: Path | None = tar_path(root, Path(sidecar.shard).stem)
        self._url, self._copies, self._output = f"{url}/{self.name}", copies, sidecar.output
        self._map: mmap.mmap | None = None
        if copies is None:
            self._check_size(self._path)

    def _check_size(self, path: Path) -> None:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CacheError(f"{path}: {error.strerror}; {MEND}") from None
        if size != self._output["size"]:
            raise CacheError(f"{path}: {size} bytes, its sidecar says {self._output['size']}; {MEND}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}  # a map cannot be pickled; a worker process makes its own

    def members(self, names: Sequence[str], row: int) -> dict[str, memoryview]:
        """The bytes of those members that the sample has."""
        columns = {name: self.index[name] for name in names if name in self.index}
        extents = {
            name: (int(offset[row]), int(offset[row] + size[row]))
            for name, (offset, size) in columns.items()
            if offset[row] >= 0
        }
        mapped = self._mapped()
        if mapped is not None:
            whole, first = memoryview(mapped), 0
        else:  # one request for all of a sample, whose members lie side by side
            first = min(start for start, _ in extents.values())
            whole = memoryview(read_range(self._url, first, max(end for _, end in extents.values())))
        return {name: whole[start - first : end - first] for name, (start, end) in extents.items()}

    def _mapped(self) -> mmap.mmap | None:
        """The file in memory; None for a remote one that there is no room to copy."""
        if self._map is None:
            path = self._path
            if self._copies is not None:
                sha256, size = self._output["sha256"], self._output["size"]
                path = self._copies.copy(self._url, sha256, size, sha256)
            if path is None:
                return None
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map


def _array(data: memoryview) -> npt.NDArray[Any]:
    """The array in a .npy file, as a view into its bytes."""
    if bytes(data[:6]) != b"\x93NUMPY":
        raise ValueError("not a .npy file")
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, dtype = _npy_header(bytes(data[:start]))
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@lru_cache(64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype; the samples of a cache have but a few headers between them."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype.hasobject:
        raise ValueError("not laid out as the cache writes arrays")
    return shape, dtype


def _fetch_sidecars(url: str, mirror: Path) -> Path:
    """Copy `cache.json` and the sidecars of a remote cache, as they are now, to a folder of their own."""
    folder = mirror / hashlib.sha256(url.encode()).hexdigest()[:16]
    try:
        files, path = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
        names = [name for name in files.ls(path, detail=False) if name.endswith(".json")]
        contents = files.cat(names) if names else {}
    except FileNotFoundError:
        contents = {}
    except Exception as error:  # every file system of fsspec has errors of its own
        raise unreadable(url, error) from error
    there = {name.rpartition("/")[2]: data for name, data in contents.items()}
    if CACHE_FILE not in there:
        raise CacheError(f"{url}: no {CACHE_FILE} here, so this is no latent cache; copy a whole one there")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in there.items():
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        temporary.write_bytes(data)
        temporary.replace(folder / name)
    for gone in {path.name for path in folder.glob("*.json")} - there.keys():
        (folder / gone).unlink(missing_ok=True)
    return folder
