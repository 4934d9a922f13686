"""The streamed head: image shards that are read one after another, from wherever they lie.

What is drawn is a function of (seed, epoch) and of how many readers there are: the order of the shards, which reader
gets which, and the order of samples in a buffer. Batches are made up by headers, before anything is decoded: so what a
run took before is passed over without decoding it, and the next batch is the very next one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from inpaint_data.errors import FilteredError, ShardError
from inpaint_data.order import permutation
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.images import image_size
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.dealing import Numbers, Part, begun_by, deal
from inpaint_data.pipeline.decorator import SampleDict, Stage
from inpaint_data.pipeline.samples import as_dict, as_sample
from inpaint_data.pipeline.stages import VIEWS, BatchEnd, planned_batches, way_of_a_sample
from inpaint_data.pipeline.user_stages import run_on
from inpaint_data.pipeline.view_finder import ViewFinder
from inpaint_data.seeding import generator_for
from inpaint_data.shards.fetching import Fetching
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
        begun: shards, by their place in the list of all, that an earlier run of other readers began in this epoch,
            which are not read again.
    """

    epoch: int
    number: int = 0
    of: int = 1
    begun: Sequence[int] = ()


class StreamedShards:
    """Image shards in a new order every epoch, for ever.

    Args:
        shards: paths or URLs, already expanded.
        settings: what decides the pixels.
        own: the user's stages between reading and examples.
        seed: of the order.
        buffer: samples among which the next one is drawn.
        on_fault: takes what is not a sample, or cannot be read.
        fetching: where local copies of remote shards are kept.
        counts: samples of each shard, where they are known.
    """

    def __init__(
        self,
        shards: Sequence[str],
        settings: ExampleSettings,
        own: Sequence[Stage],
        seed: int,
        buffer: int,
        on_fault: Callable[[Fault], None],
        fetching: Fetching,
        counts: Sequence[int] | None = None,
    ) -> None:
        self.shards, self.settings, self.own, self.seed, self.buffer = list(shards), settings, own, seed, buffer
        self._on_fault, self._finder, self._fetching = on_fault, ViewFinder(settings.pictures), fetching
        self.counts = None if counts is None else np.array(counts, np.int64)

    def order(self, epoch: int, begun: Sequence[int] = (), again: int = 0) -> Numbers:
        """The shards, by their places in the list, in the order of an epoch, without those that were begun before.

        Or of a further pass over all of them within it.
        """
        rows = permutation(len(self.shards), self.seed, epoch, again)
        return rows if again else rows[~np.isin(rows, np.array(begun, np.int64))]

    def parts(self, reader: Reader, again: int = 0) -> list[Part]:
        """What a reader reads, in its order."""
        return deal(self.order(reader.epoch, reader.begun, again), reader.number, reader.of, self.counts)

    def begun(self, readers: Reader, batches: int, batch_size: int) -> set[int]:
        """The shards that so many batches of each reader can be of, where counts are known.

        Args:
            readers: any of them.
            batches: that a reader gave, at most.

        A sample may wait in the buffer and then for others of its size. Samples that give no view, since a filter or a
        stage leaves them out, make a reader come further than this says.
        """
        assert self.counts is not None
        if not batches:
            return set()
        samples = batches * batch_size + self.buffer + 1 + (batch_size - 1) * len(self._finder.sizes)
        each = (replace(readers, number=number) for number in range(readers.of))
        return {shard for reader in each for shard in begun_by(self.parts(reader), samples, self.counts)}

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
        unreadable, has_sample = 0, False
        parts = self.parts(reader, again)
        with closing(self._fetching.copies([self.shards[part.shard] for part in parts])) as copies:
            for part, (shard, copy) in zip(parts, copies, strict=True):
                try:
                    for drawn in self._of_part(shard, part, copy):
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

    def _of_part(self, shard: str, part: Part, copy: Path | None) -> Iterator[Drawn]:
        keys: set[str] = set()
        number = 0  # of a sample, or of what has a key and is none
        for item in read_shard(shard, None if copy is None else str(copy)):
            if isinstance(item, ShardEnd) or number == part.stop:
                return
            number += item.key is not None
            if part.first and number <= part.first:
                continue
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
