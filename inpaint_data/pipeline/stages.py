"""The way of a sample, stage by stage, for any `wds.DataPipeline` and behind any `wds.WebDataset(...).compose(...)`.

A stage is a function from an iterator to an iterator, and can be pickled. Samples are webdataset's: dicts of `__key__`,
`__url__` and members (extension -> bytes). What cannot be used becomes a `Fault`, which a stage hands to `on_fault`, or
with None passes on as an item, so that whoever counts at the end can account for every sample.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

from inpaint_data.batch import Batch, ImageBatch, is_batch
from inpaint_data.errors import ReplacedError, ShardError, UsageError
from inpaint_data.latent_cache.cached_samples import batch_of
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.order import check_batch_size
from inpaint_data.pictures.examples import Example, collate, prepare
from inpaint_data.pictures.settings import ExampleSettings, PictureSettings
from inpaint_data.pipeline.cache_stage import CachedExample
from inpaint_data.pipeline.decorator import SampleDict, Stage, stage
from inpaint_data.pipeline.faults import OnFault, handled, warn
from inpaint_data.pipeline.samples import as_dict, as_sample, is_sample, shard_of
from inpaint_data.pipeline.user_stages import run_on
from inpaint_data.settings import group_of
from inpaint_data.shards.naming import ShardIdentity
from inpaint_data.shards.reading import Fault, Sample, ShardAnew, ShardEnd, read_shard
from inpaint_data.shards.tar import stored_size

MAX_WAITING_BYTES = 2**30  # of samples that were read and are not decoded yet
VIEWS = "__views__"  # of a sample dict: which of its views are wanted, where not all are, and the size of each
DRAWN_BY = "__drawn_by__"  # of a sample dict: its own ExampleSettings and variants, where samples differ in these


@dataclass
class Tally:
    """How much was read so far, by whoever looks while a pipeline runs."""

    samples: int = 0
    bytes: int = 0

    def expected(self, total_bytes: int) -> float:
        """How many samples `total_bytes` of shards have, by the mean size of those read so far."""
        return total_bytes / max(1, self.bytes) * self.samples


@dataclass(frozen=True)
class BatchEnd:
    """Follows the samples of a planned batch."""


def image_stages(
    shards: Iterable[str],
    examples_as: ExampleSettings,
    own: Sequence[Stage],
    batch_size: int,
    variants: Sequence[int],
    threads: int,
    tally: Tally | None = None,
) -> list[Any]:
    """The whole way of pictures, shard after shard, as the job goes it: batches, Faults and ShardEnds come out.

    A shard is asked for when it is to be read.
    """
    return [
        partial(_shard_list, shards),
        read_shards(on_fault=None, ends=True, tally=tally),
        *way_of_a_sample(examples_as, own, batch_size, variants, threads, in_shards=True),
    ]


def _shard_list(shards: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What `wds.SimpleShardList` gives, but it may be empty, as when a job has nothing left to do."""
    return ({"url": shard} for shard in shards)


def way_of_a_sample(
    examples_as: ExampleSettings,
    own: Sequence[Stage],
    batch_size: int,
    variants: Sequence[int],
    threads: int,
    in_shards: bool = False,
) -> list[Any]:
    """What follows any head of samples, in training as in the job."""
    return [
        # The user's functions, one sample at a time: what each leaves out is known.
        own_stages(own, in_shards),
        # Decoded once, cut into views, K masks drawn for each: 1 -> n.
        examples(
            examples_as.pictures,
            examples_as.masks,
            seed=examples_as.seed,
            variants=variants,
            threads=threads,
            on_fault=None,
        ),
        # Batches of one size. What is left over is handed out at the end of a shard, or of a planned batch.
        bucketed(batch_size),
    ]


@stage
def read_shards(
    urls: Iterable[dict[str, Any]], on_fault: OnFault = warn, ends: bool = False, tally: Tally | None = None
) -> Iterator[SampleDict | Fault | ShardEnd | ShardAnew]:
    """Read tars strictly: every member comes out in a sample or in a Fault that names it, and nothing is executed.

    Args:
        urls: dicts of `url`, as webdataset's shard lists give them; local paths, or URLs that fsspec opens.
        on_fault: `warn`, `stop`, a function or a list that takes each Fault, or None to pass it on as an item.
        ends: whether each shard is followed by its `ShardEnd`. One that is replaced while it is read begins anew, once,
            behind a `ShardAnew`; one that cannot be read ends with a `problem`, and the next one follows.
        tally: counts what was read.

    Raises:
        ShardError: a shard cannot be opened or read, and there are no `ends`.
    """
    for url in urls:
        for item in _to_the_end(url["url"]) if ends else read_shard(url["url"]):
            if isinstance(item, ShardEnd | ShardAnew):
                if ends:
                    yield item
            elif isinstance(item, Fault):
                if not handled(item, on_fault):
                    yield item
            else:
                if tally is not None:
                    tally.samples += 1
                    tally.bytes += stored_size(item.members.values())
                yield as_dict(item)


def _to_the_end(url: str) -> Iterator[Sample | Fault | ShardEnd | ShardAnew]:
    """The items of a shard, whatever comes; anew, once, where it is replaced while it is read."""
    try:
        try:
            yield from read_shard(url)
        except ReplacedError:
            yield ShardAnew(url)
            yield from read_shard(url)
    except ShardError as error:
        yield ShardEnd(url, ShardIdentity(0, ""), 0, problem=str(error))


@stage
def own_stages(items: Iterable[Any], stages: Sequence[Stage], in_shards: bool = False) -> Iterator[Any]:
    """Run the user's stages on each sample alone; all else passes by them.

    Args:
        in_shards: whether keys must stay different within each shard, whose `ShardEnd`s come too, as in a cache; a
            pipeline that repeats its samples has none.

    Raises:
        UsageError: what comes is not a sample any more, so that stages would be passed by without a word.
    """
    keys: set[str] | None = set() if in_shards else None  # of the shard
    for item in items:
        if in_shards and isinstance(item, ShardEnd | ShardAnew):
            keys = set()
        if stages and (is_batch(item) or isinstance(item, Example | CachedExample)):
            raise UsageError(
                f"stages: {type(item).__name__} comes to them, and they take samples; put them into your pipeline, "
                "before examples() or cached()"
            )
        if not stages or not is_sample(item):
            yield item
            continue
        for result in run_on(item, stages, shard_of(item), keys):
            if isinstance(result, dict):
                fields = {name: value for name, value in item.items() if name.startswith("__")}
                yield fields | result
            else:
                yield result


@stage
def examples(
    items: Iterable[Any],
    pictures: PictureSettings | Mapping[str, Any] | None = None,
    masks: MaskSettings | Mapping[str, Any] | None = None,
    seed: int = 0,
    variants: Sequence[int] = (0,),
    threads: int = 0,
    on_fault: OnFault = warn,
) -> Iterator[Any]:
    """Decode each sample once, cut its views and draw their masks: 1 -> n `Example`s, in the order of the samples.

    Args:
        items: sample dicts. All else, such as ready batches, passes through in its place.
        pictures, masks: how pictures are cut, and which masks they get.
        seed: of crops and masks, with the sample's key and the variant.
        variants: numbers of the mask variants of every sample.
        threads: how many decode at a time, each ahead of whoever iterates; 0 decodes here. Decoders let go of Python's
            lock, and no picture is copied between processes.
        on_fault: see `read_shards`.

    Raises:
        UsageError: settings that cannot work, or members that are not bytes any more.
    """
    settings = ExampleSettings(group_of(PictureSettings, pictures), group_of(MaskSettings, masks), seed)
    seconds = 0.0  # of decoding, since the last shard's end
    for item in _in_order(items, settings, tuple(variants), threads):
        if isinstance(item, ShardEnd):
            yield replace(item, decode_seconds=seconds)
            seconds = 0.0
        elif isinstance(item, _Decoded):
            seconds += item.seconds
            for result in item.results:
                if not isinstance(result, Fault) or not handled(result, on_fault):
                    yield result
        elif not isinstance(item, Fault) or not handled(item, on_fault):
            yield item


@dataclass(frozen=True)
class _Decoded:
    """What one sample gave, and how long that took."""

    results: Sequence[Example | Fault]
    seconds: float


def _in_order(
    items: Iterable[Any], settings: ExampleSettings, variants: tuple[int, ...], threads: int
) -> Iterator[Any]:
    if threads < 1:
        for item in items:
            yield _decode(item, settings, variants) if is_sample(item) else item
        return
    # Here, not where the stage was made: a pool does not survive a fork.
    with ThreadPoolExecutor(threads, "inpaint_data-decode") as pool:
        pending: deque[tuple[int, Future[_Decoded] | Any]] = deque()  # each with its bytes
        waiting = 0
        for item in items:
            size = sum(len(data) for data in item.values() if isinstance(data, bytes)) if is_sample(item) else 0
            pending.append((size, pool.submit(_decode, item, settings, variants) if is_sample(item) else item))
            waiting += size
            while len(pending) > 2 * threads or (waiting > MAX_WAITING_BYTES and pending):
                size, first = pending.popleft()
                waiting -= size
                yield _result(first)
        while pending:
            yield _result(pending.popleft()[1])


def _result(item: Any) -> Any:
    return item.result() if isinstance(item, Future) else item


def _decode(sample: SampleDict, settings: ExampleSettings, variants: tuple[int, ...]) -> _Decoded:
    started = perf_counter()
    settings, variants = sample.get(DRAWN_BY, (settings, variants))
    results = prepare(as_sample(sample), settings, variants, sample.get(VIEWS))
    return _Decoded(results, perf_counter() - started)


@stage
def bucketed(items: Iterable[Any], batch_size: int) -> Iterator[Any]:
    """Batches of one size, from `examples` or from `cached`.

    Args:
        items: what those stages yield. All else passes through; what waits is handed out before a `ShardEnd` or a
            `BatchEnd`, and at the end, and dropped before a `ShardAnew`.
        batch_size: samples in a batch; what is left over of each size makes a smaller one.
    """
    check_batch_size(batch_size)
    waiting: dict[tuple[int, int], list[Any]] = {}
    for item in items:
        if is_sample(item):
            raise UsageError(
                f"{item.get('__url__', '')}, sample {item.get('__key__')!r} came to bucketed() as it was read; put "
                "examples() before it, or cached() for a cache"
            )
        if isinstance(item, Example | CachedExample):
            group = waiting.setdefault(item.size, [])
            group.append(item)
            if len(group) == batch_size:
                yield _batch(waiting.pop(item.size))
            continue
        if isinstance(item, ShardAnew):
            waiting.clear()
        if isinstance(item, ShardEnd | BatchEnd):
            for size in sorted(waiting):
                yield _batch(waiting.pop(size))
        yield item
    for size in sorted(waiting):
        yield _batch(waiting.pop(size))


def planned_batches(items: Iterable[Any], log: Callable[[Fault], None]) -> Iterator[ImageBatch | None]:
    """The batch before each `BatchEnd`; None where no sample of it can be used. `log` takes the Faults."""
    batch = None
    for item in items:
        if isinstance(item, BatchEnd):
            yield batch
            batch = None
        elif isinstance(item, Fault):
            log(item)
        else:
            batch = item


def _batch(group: Sequence[Any]) -> ImageBatch | Batch:
    if isinstance(group[0], CachedExample):
        first = group[0]
        return batch_of([example.sample for example in group], first.posterior, first.seed, first.epoch, first.dtype)
    return collate(group)
