"""The streamed head: image shards that are read one after another, from wherever they lie, and never copied.

What is drawn is a function of (seed, epoch) and of how many readers there are: the order of the shards, which reader
gets which, and the order of samples in a buffer. Batches are made up by headers, before anything is decoded: so what a
run took before is passed over without decoding it, and the next batch is the very next one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from typing import Any

import webdataset as wds

from inpaint_data.errors import FilteredError, ShardError
from inpaint_data.order import permutation
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.images import image_size
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.decorator import SampleDict, Stage
from inpaint_data.pipeline.samples import as_dict, as_sample
from inpaint_data.pipeline.stages import VIEWS, BatchEnd, planned_batches, way_of_a_sample
from inpaint_data.pipeline.user_stages import run_on
from inpaint_data.pipeline.view_finder import ViewFinder
from inpaint_data.seeding import generator_for
from inpaint_data.shards.reading import Fault, Sample, ShardEnd, image_member, read_shard

AT_FIRST = 100  # samples that wait before the first one is drawn
UNREADABLE = 8  # shards one after another, behind which a run ends
Drawn = tuple[SampleDict, int, Size]  # a sample, and the number and the size of one of its views


@dataclass(frozen=True)
class Reader:
    """One of those that read an epoch's shards, each its own: a rank, or a worker process of one.

    Attributes:
        epoch: of the order.
        number, of: which one it is of how many.
        begun: how many of the epoch's shards an earlier run of other readers began, which are not read again.
    """

    epoch: int
    number: int = 0
    of: int = 1
    begun: int = 0


class StreamedShards:
    """Image shards in a new order every epoch, for ever.

    Args:
        shards: paths or URLs, already expanded.
        settings: what decides the pixels.
        own: the user's stages between reading and examples.
        seed: of the order.
        buffer: samples among which the next one is drawn.
        on_fault: takes what is not a sample, or cannot be read.
    """

    def __init__(
        self,
        shards: Sequence[str],
        settings: ExampleSettings,
        own: Sequence[Stage],
        seed: int,
        buffer: int,
        on_fault: Callable[[Fault], None],
    ) -> None:
        self.shards, self.settings, self.own, self.seed, self.buffer = list(shards), settings, own, seed, buffer
        self._on_fault, self._finder = on_fault, ViewFinder(settings.pictures)

    def order(self, epoch: int, again: int = 0) -> list[str]:
        """The shards in the order of an epoch, or of a further pass over them within it."""
        rows = permutation(len(self.shards), self.seed, epoch, again)
        return [self.shards[row] for row in rows]

    def batches(
        self, reader: Reader, batch_size: int, skipped: int, variants: Sequence[int], threads: int
    ) -> Iterator[Any]:
        """A reader's batches of decoded pictures behind the first `skipped`; None where no sample of one can be used.

        Raises:
            ShardError: no shard can be read, or none has a sample.
        """
        head = partial(self._planned, reader, batch_size, skipped)
        stages = way_of_a_sample(self.settings, (), batch_size, variants, threads)
        return planned_batches(wds.DataPipeline(head, *stages), self._on_fault)

    def _planned(self, reader: Reader, batch_size: int, skipped: int) -> Iterator[SampleDict | BatchEnd]:
        passes = chain.from_iterable(self._shuffled(reader, again) for again in count())
        for group in islice(_of_one_size(passes, batch_size), skipped, None):
            for sample, view, size in group:
                yield sample | {VIEWS: {view: size}}
            yield BatchEnd()

    def _shuffled(self, reader: Reader, again: int) -> Iterator[Drawn]:
        """The views of one pass over the reader's shards, each once, drawn from those that wait.

        The first ones are drawn from a few, so that a run need not wait until the buffer is full.
        """
        rng = generator_for(self.seed, f"{reader.number} of {reader.of}, {again}", reader.epoch, "buffer")
        waiting: list[Drawn] = []
        is_grown = False

        def draw() -> Drawn:
            place = int(rng.integers(len(waiting)))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            return waiting.pop()

        for drawn in self._views(reader, again):
            waiting.append(drawn)
            is_grown = not is_grown or len(waiting) > self.buffer
            if len(waiting) > min(AT_FIRST, self.buffer) and is_grown:
                yield draw()
        while waiting:
            yield draw()

    def _views(self, reader: Reader, again: int) -> Iterator[Drawn]:
        order = self.order(reader.epoch, again)[0 if again else reader.begun :]
        unreadable, has_sample = 0, False
        for shard in order[reader.number :: reader.of]:
            try:
                for drawn in self._of_shard(shard):
                    has_sample, unreadable = True, 0
                    yield drawn
            except ShardError as error:
                unreadable += 1
                self._on_fault(Fault(shard, None, f"the rest of it is left out: {error}", None, None))
                if unreadable == UNREADABLE:
                    reason = f"{unreadable} shards one after another cannot be read; the last: {error}"
                    raise ShardError(reason) from None
        if not has_sample and (again or not reader.begun):
            raise ShardError(f"{', '.join(self.shards[:3])}: no sample that can be used in any shard")

    def _of_shard(self, shard: str) -> Iterator[Drawn]:
        keys: set[str] = set()
        for item in read_shard(shard):
            if isinstance(item, ShardEnd):
                return
            results: Any = [item]
            if self.own and isinstance(item, Sample):
                results = run_on(as_dict(item), self.own, shard, keys)
            for result in results:
                if isinstance(result, Fault):
                    self._on_fault(result)
                    continue
                sample = as_sample(result) if isinstance(result, dict) else result
                try:
                    views = self._finder.views(sample, self._size_of)
                except FilteredError as error:
                    self._on_fault(Fault(shard, sample.key, str(error), None, None, on_purpose=True))
                    continue
                for view, size in views:
                    yield as_dict(sample) | {"__url__": shard}, view, size

    def _size_of(self, sample: Sample) -> Size:
        pictures = self.settings.pictures
        return image_size(sample.members[image_member(sample, pictures.image)], pictures.decoding)


def _of_one_size(views: Iterator[Drawn], batch_size: int) -> Iterator[list[Drawn]]:
    """Views in groups of one size, in the order in which the groups are full."""
    waiting: dict[Size, list[Drawn]] = {}
    for drawn in views:
        group = waiting.setdefault(drawn[2], [])
        group.append(drawn)
        if len(group) == batch_size:
            yield waiting.pop(drawn[2])
