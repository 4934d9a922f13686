"""What training loads from: a cache, pictures, a cache with fresh masks, or samples of the user's own."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch.utils.data
import webdataset as wds

from inpaint_data.batch import is_batch
from inpaint_data.errors import SampleError, UsageError
from inpaint_data.latent_cache.cached_samples import CachedBatch, joined
from inpaint_data.latent_cache.format import CACHE_FILE, folders_of, is_cache, is_cache_or_lost
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.datasets import from_dataset, is_dataset
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.faults import warn
from inpaint_data.pipeline.indexed import IndexedShards
from inpaint_data.pipeline.stages import DRAWN_BY, BatchEnd, planned_batches, way_of_a_sample
from inpaint_data.shards.naming import expand_shards, shard_stem
from inpaint_data.shards.reading import Fault
from inpaint_data.training.loader import HOPELESS, Pass, read_ahead
from inpaint_data.training.mixture import Planned, Rows

Source = str | Sequence[str] | Iterable[Any]
PARAMETERS = {"fit": "source", "validate": "val_source", "test": "test_source", "predict": "predict_source"}
LOADERS = {
    "fit": "train_dataloader",
    "validate": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
UNDER_WAY = 10_000  # samples that are read and not yet in a batch, at most
EVALUATION_SEED = 0  # of validation and test, whatever the seed of training: their losses stay comparable


class CacheSource:
    """Batches of caches whose samples may come together, the rows of one after those of another."""

    def __init__(self, *caches: LatentCache) -> None:
        self.caches = caches
        self.buckets: Any = caches[0].buckets if len(caches) == 1 else buckets_of(self.sizes)
        self._ends = np.cumsum([len(cache) for cache in caches])

    @cached_property
    def sizes(self) -> Rows:
        """(N, 2), height and width of every row."""
        sizes: Rows = np.concatenate([cache.sizes for cache in self.caches])
        return sizes

    @property
    def is_soft(self) -> bool:
        """Whether their masks are soft."""
        return self.caches[0].settings.soft

    def __len__(self) -> int:
        return len(self.buckets)

    def planned(self, plan: Sequence[Planned], batch_size: int) -> Iterator[Any]:  # noqa: ARG002
        for planned in plan:
            yield self.batch(planned)

    def batch(self, planned: Planned) -> Any:
        """One batch: of each cache and number what is planned of them."""
        parts = np.searchsorted(self._ends, planned.rows, side="right")
        is_new = (np.diff(parts) != 0) | (np.diff(planned.numbers) != 0)
        batches = []
        for places in np.split(np.arange(len(planned)), np.flatnonzero(is_new) + 1):
            cache, end = self.caches[parts[places[0]]], self._ends[parts[places[0]]]
            rows = planned.rows[places] - (end - len(cache))
            batches.append(cast(CachedBatch, cache.batch(rows.tolist(), int(planned.numbers[places[0]]))))
        return joined(batches)


class ImageSource:
    """Batches of decoded pictures that may come together, the rows of some shards after those of others.

    Args:
        parts: the shards, each with the settings of its pictures.
        threads: how many decode at a time.
        masks_of: which of the `Encoder`'s settings of masks they have.
        names: of the parts, for an error.
    """

    def __init__(
        self, parts: Sequence[IndexedShards], threads: int, masks_of: int = 0, names: Sequence[str] = ("source",)
    ) -> None:
        self.parts, self.threads, self.masks_of, self.names = list(parts), threads, masks_of, list(names)
        self.sizes: Rows = np.concatenate([part.sizes for part in parts])
        self.buckets = buckets_of(self.sizes)
        self._ends = np.cumsum([len(part) for part in parts])
        self._log = FaultLog()
        self._use = _Use(self.names, self.parts)

    def __len__(self) -> int:
        return len(self.sizes)

    def planned(self, plan: Sequence[Planned], batch_size: int) -> Iterator[Any]:
        # What each sample is drawn by, it says itself.
        stages = way_of_a_sample(self.parts[0].settings, (), batch_size, [0], self.threads)

        def note(fault: Fault) -> None:
            self._log(fault)
            self._use.note_fault(fault, batch_size)

        for batch in planned_batches(wds.DataPipeline(partial(self._samples, plan), *stages), note):
            self._use.note_batch(batch)
            yield batch if batch is None or not self.masks_of else batch | {"masks_of": self.masks_of}

    def _samples(self, plan: Sequence[Planned]) -> Iterator[Any]:
        rows = np.concatenate([planned.rows for planned in plan] or [np.zeros(0, np.int64)])
        which = np.searchsorted(self._ends, rows, side="right")
        of_parts = [
            part.samples(rows[which == number] - (end - len(part)))
            for number, (part, end) in enumerate(zip(self.parts, self._ends, strict=True))
        ]
        numbers = map(int, which)
        try:
            for planned in plan:
                for drawn_with, number in zip(planned.numbers.tolist(), numbers, strict=False):
                    sample, settings = next(of_parts[number]), self.parts[number].settings
                    self._use.note(sample, number)
                    yield sample if isinstance(sample, Fault) else sample | {DRAWN_BY: (settings, (drawn_with,))}
                yield BatchEnd()
        finally:
            for samples in of_parts:
                samples.close()  # its threads end with it


class _Use:
    """Ends a run of which one of several sources gives nothing, before the others have made up most of an epoch."""

    def __init__(self, names: Sequence[str], parts: Sequence[IndexedShards]) -> None:
        self._names, self._parts = names, parts
        self._good, self._bad = set[int](), Counter[int]()
        self._owners: OrderedDict[tuple[str, str | None], int] = OrderedDict()  # of what is under way

    @property
    def is_known(self) -> bool:
        """Whether there is nothing to be learnt any more."""
        return len(self._names) < 2 or len(self._good) == len(self._names)

    def note(self, sample: Any, part: int) -> None:
        """A sample, or a Fault, of a part is on its way."""
        if self.is_known:
            return
        is_fault = isinstance(sample, Fault)
        shard, key = (sample.shard, sample.key) if is_fault else (sample["__url__"], sample["__key__"])
        self._owners[shard_stem(shard), key] = part
        while len(self._owners) > UNDER_WAY:
            self._owners.popitem(last=False)

    def note_batch(self, batch: Any) -> None:
        if batch is None or self.is_known:
            return
        views = self._parts[0].settings.pictures.views
        for name, key in zip(batch["__shard__"], batch["__key__"], strict=True):
            self._good.add(self._owners.get((name.removesuffix(".tar"), views.sample_key(key)), -1))
        self._good.discard(-1)

    def note_fault(self, fault: Fault, batch_size: int) -> None:
        """Raises SampleError for the last one that is to be waited for."""
        part = self._owners.get((shard_stem(fault.shard), fault.key))
        if part is None or part in self._good or self.is_known:
            return
        self._bad[part] += 1
        if self._bad[part] == min(HOPELESS * batch_size, len(self._parts[part])):
            raise SampleError(
                f"{self._names[part]}: no sample of its first {self._bad[part]} can be used; the log names each with "
                "its reason"
            )


def buckets_of(sizes: Rows) -> Rows:
    """(N, 2) heights and widths -> (N,), the bucket of each."""
    buckets: Rows = np.unique(sizes, axis=0, return_inverse=True)[1].reshape(-1)
    return buckets


class OwnSource(torch.utils.data.IterableDataset[Any]):
    """Batches of samples that the user's own iterable or pipeline gives, through the way that every sample goes.

    It may give sample dicts, `Example`s, or ready batches, which pass through. A pipeline splits itself by node; any
    other iterable is dealt out, so that no two ranks or workers get one sample.
    """

    def __init__(
        self,
        source: Iterable[Any],
        settings: ExampleSettings,
        own: Sequence[Stage],
        batch_size: int,
        variant: int,
        threads: int,
        ranks: tuple[int, int],
    ) -> None:
        self.source, self.ranks, self._log = source, ranks, FaultLog()
        self.stages = way_of_a_sample(settings, own, batch_size, [variant], threads)
        _check_split(source, ranks)

    def __iter__(self) -> Iterator[Any]:
        for item in wds.DataPipeline(partial(_dealt, self.source, self.ranks), *self.stages):
            if isinstance(item, Fault):
                self._log(item)
            elif is_batch(item) and "__shard__" in item:
                yield item
            elif is_batch(item):
                raise UsageError("source: yours gives samples batched by others; leave its batching to batch_size")
            else:
                raise UsageError(
                    f"source: yours gives {type(item).__name__}; give sample dicts with __key__ and members of bytes, "
                    "or batches"
                )


class OwnLoader:
    """The batches of a source of the user's own. How many there are, nobody knows.

    Args:
        name: of the source, for an error.
        source: the batches of a pass.
        next_pass: how the next pass is to be.
        finish: what is done to each batch, given its epoch.
        processes: worker processes.
    """

    def __init__(
        self,
        name: str,
        source: Callable[[Pass], OwnSource],
        next_pass: Callable[[], Pass],
        finish: Callable[[Any, int], Any],
        processes: int,
    ) -> None:
        self.name, self.source, self.next_pass, self.finish, self.processes = name, source, next_pass, finish, processes
        self.passes = 0  # that were begun

    def __iter__(self) -> Iterator[Any]:
        this = self.next_pass()
        self.passes += 1
        batches = 0
        for batch in read_ahead(self.source(this), self.processes):
            batches += 1
            yield self.finish(batch, this.epoch)
        if not batches:
            raise SampleError(
                f"{self.name}: yours gave no batch that can be used; the log names each sample with its "
                f"reason{'; a generator is gone through once: give what begins anew' if self.passes > 1 else ''}"
            )


class FaultLog:
    """Names bad samples; one that is left out on purpose only the first time."""

    def __init__(self) -> None:
        self._named: set[tuple[str, str | None]] = set()

    def __call__(self, fault: Fault) -> None:
        if not fault.on_purpose or (fault.shard, fault.key) not in self._named:
            warn(fault)
        self._named.add((fault.shard, fault.key))


def _dealt(source: Iterable[Any], ranks: tuple[int, int]) -> Iterator[Any]:
    """The first stage of a pipeline: this rank's and this worker's share."""
    (rank, world), worker = ranks, torch.utils.data.get_worker_info()
    if isinstance(source, torch.utils.data.IterableDataset):
        parts = getattr(source, "datasets", [source])
        if (
            worker is not None
            and worker.num_workers > 1
            and not all(_splits(part, "split_by_worker") for part in parts)
        ):
            raise UsageError(
                f"source: yours has no wds.split_by_worker, so all {worker.num_workers} workers would give the same "
                "samples; put it behind the shard list, or read with workers: threads"
            )
        return iter(source)
    if worker is not None:
        rank, world = rank * worker.num_workers + worker.id, world * worker.num_workers
    return islice(iter(source), rank, None, world)


def _check_split(source: Iterable[Any], ranks: tuple[int, int]) -> None:
    """Raises UsageError for a pipeline or a dataset that may give every rank the same samples."""
    if ranks[1] < 2 or not isinstance(source, torch.utils.data.IterableDataset):
        return
    for part in getattr(source, "datasets", [source]):  # those that RandomMix mixes
        if not _splits(part):
            raise UsageError(
                f"source: yours has no wds.split_by_node, so all {ranks[1]} ranks would train on the same samples; put "
                "it behind the shard list, or give WebDataset(nodesplitter=wds.split_by_node); an iterable that is no "
                "IterableDataset is dealt out to the ranks"
            )


def _splits(pipeline: Any, by: str = "split_by_node") -> bool:
    """Whether a pipeline gives every rank, or worker, samples of its own: it splits, or draws with replacement."""
    stages = getattr(pipeline, "pipeline", None)
    if not isinstance(stages, list):
        return False
    names = {getattr(each, "__name__", type(each).__name__) for each in stages}
    if isinstance(pipeline, wds.WebDataset):  # which splits by worker, and by node, perhaps in the user's own way
        return by != "split_by_node" or "single_node_only" not in names
    return bool(names & {by, "ResampledShards"})


def as_source(name: str, source: Any, seed: int) -> Source:
    """What was given; of a Hugging Face `Dataset` its samples. Raises UsageError for what can be no source."""
    if not is_named(source) and not hasattr(source, "__iter__"):
        raise UsageError(
            f"{name}: {source!r} is neither a path nor samples; name image shards or a cache, or give a wds pipeline",
            (name,),
        )
    return from_dataset(source, seed=seed) if is_dataset(source) else source


def names_a_cache(name: str, source: Source) -> bool:
    """Whether a source is a cache, or several.

    Raises:
        UsageError: some of several are, and others are not.
        CacheError: it is a cache that has lost its `cache.json`.
    """
    if isinstance(source, str | Path):
        return is_cache_or_lost(source)
    if not is_named(source):
        return False
    caches = [is_cache_or_lost(root) for root in source]
    if any(caches) and not all(caches):
        odd = list(source)[caches.index(False)]
        raise UsageError(f"{name}: {odd!r} is not a cache, though others in the list are; name caches or shards alone")
    return bool(caches) and all(caches)


def is_named(source: Source) -> bool:
    """Whether a source is named by paths or URLs, and not samples themselves."""
    return isinstance(source, str | Path) or (
        isinstance(source, list | tuple) and all(isinstance(each, str | Path) for each in source)
    )


def shards_of(name: str, source: Any) -> list[str]:
    """The image shards of a source. Raises UsageError where there are none, or they are a cache's."""
    try:
        shards = expand_shards(source)
    except UsageError as error:
        raise UsageError(f"{name}: {str(error).removeprefix('shards: ')}, or name a cache") from None
    for folder in folders_of(shards):
        if is_cache(folder):
            raise UsageError(f"{name}: {shards[0]} lies in a cache; name the folder with {CACHE_FILE}, {folder}")
    return shards
