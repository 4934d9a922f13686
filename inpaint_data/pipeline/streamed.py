"""The streamed head: image shards that are read one after another, from wherever they lie, and never copied.

What is drawn is a function of (seed, epoch) and of how many readers there are: the order of the shards, which reader
gets which, and the order of samples in a buffer. Batches are made up by headers, before anything is decoded: so what a
run took before is passed over without decoding it, and the next batch is the very next one.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np
import webdataset as wds

from inpaint_data.errors import FilteredError, ShardError
from inpaint_data.order import permutation
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.images import image_size
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.decorator import SampleDict, Stage
from inpaint_data.pipeline.samples import as_dict, as_sample
from inpaint_data.pipeline.stages import DRAWN_BY, VIEWS, BatchEnd, planned_batches, way_of_a_sample
from inpaint_data.pipeline.user_stages import run_on
from inpaint_data.pipeline.view_finder import ViewFinder
from inpaint_data.seeding import generator_for
from inpaint_data.shards.reading import Fault, Sample, ShardEnd, image_member, read_shard

AT_FIRST = 100  # samples that wait before the first one is drawn
UNREADABLE = 8  # shards one after another, behind which a run ends
AGAIN = 2**32  # above any epoch: with it a sample is drawn that comes again within one


@dataclass(frozen=True)
class Drawn:
    """A view of a sample.

    Attributes:
        sample: as it was read.
        view, size: its number and its size.
        masks_of: as of its `StreamedPart`.
    """

    sample: SampleDict
    view: int
    size: Size
    masks_of: int


@dataclass(frozen=True)
class StreamedPart:
    """Image shards that are streamed beside others.

    Attributes:
        shards: paths or URLs, already expanded.
        settings: what decides the pixels.
        weight: how often its samples come beside those of the others.
        masks_of: which of the `Encoder`'s settings of masks they have.
        name: of the source, for an error.
    """

    shards: Sequence[str]
    settings: ExampleSettings
    weight: float = 1.0
    masks_of: int = 0
    name: str = "source"


@dataclass(frozen=True)
class Reader:
    """One of those that read an epoch's shards, each its own: a rank, or a worker process of one.

    Attributes:
        epoch: of the order.
        number, of: which one it is of how many.
        begun: how many of the epoch's shards of each source an earlier run of other readers began, which are not read
            again.
    """

    epoch: int
    number: int = 0
    of: int = 1
    begun: Sequence[int] = (0,)


class StreamedShards:
    """Image shards in a new order every epoch, for ever; of several sources, each sample from one that is drawn.

    Args:
        parts: the sources.
        own: the user's stages between reading and examples.
        seed: of the order.
        buffer: samples among which the next one is drawn, in all.
        on_fault: takes what is not a sample, or cannot be read.
    """

    def __init__(
        self,
        parts: Sequence[StreamedPart],
        own: Sequence[Stage],
        seed: int,
        buffer: int,
        on_fault: Callable[[Fault], None],
    ) -> None:
        self.parts, self.own, self.seed = list(parts), own, seed
        weights = np.array([part.weight for part in parts])
        self._shares = weights / weights.sum()
        self._buffers = [round(buffer * share) for share in self._shares]
        self._on_fault, self._finders = on_fault, [ViewFinder(part.settings.pictures) for part in parts]

    def order(self, part: int, epoch: int, again: int = 0) -> list[str]:
        """The shards of a source in the order of an epoch, or of a further pass over them within it."""
        shards = self.parts[part].shards
        return [shards[row] for row in permutation(len(shards), self.seed, epoch, again, part)]

    def batches(self, reader: Reader, batch_size: int, skipped: int, threads: int) -> Iterator[Any]:
        """A reader's batches of decoded pictures behind the first `skipped`; None where no sample of one can be used.

        Raises:
            ShardError: no shard can be read, or none has a sample.
        """
        planned: deque[int] = deque()  # `masks_of` of the batches that are under way
        head = partial(self._planned, reader, batch_size, skipped, planned)
        # What each sample is drawn by, it says itself.
        stages = way_of_a_sample(self.parts[0].settings, (), batch_size, [reader.epoch], threads)
        for batch in planned_batches(wds.DataPipeline(head, *stages), self._on_fault):
            masks_of = planned.popleft()
            yield batch if batch is None or not masks_of else batch | {"masks_of": masks_of}

    def _planned(
        self, reader: Reader, batch_size: int, skipped: int, planned: deque[int]
    ) -> Iterator[SampleDict | BatchEnd]:
        for group in islice(_of_one_kind(self._mixed(reader), batch_size), skipped, None):
            planned.append(group[0].masks_of)
            for drawn in group:
                yield drawn.sample | {VIEWS: {drawn.view: drawn.size}}
            yield BatchEnd()

    def _mixed(self, reader: Reader) -> Iterator[Drawn]:
        """The views of all sources, each from one that is drawn by its weight."""
        endless = [self._endless(reader, part) for part in range(len(self.parts))]
        rng = generator_for(self.seed, f"{reader.number} of {reader.of}", reader.epoch, "mixture")
        ends = np.cumsum(self._shares)[:-1]
        while True:
            yield next(endless[int(np.searchsorted(ends, rng.random(), side="right"))])

    def _endless(self, reader: Reader, part: int) -> Iterator[Drawn]:
        for again in count():
            yield from self._shuffled(reader, part, again)

    def _shuffled(self, reader: Reader, part: int, again: int) -> Iterator[Drawn]:
        """The views of one pass over the reader's shards, each once, drawn from those that wait.

        The first ones are drawn from a few, so that a run need not wait until the buffer is full.
        """
        of_part = f" of source {part}" if part else ""
        rng = generator_for(self.seed, f"{reader.number} of {reader.of}, {again}{of_part}", reader.epoch, "buffer")
        buffer = self._buffers[part]
        waiting: list[Drawn] = []
        is_grown = False

        def draw() -> Drawn:
            place = int(rng.integers(len(waiting)))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            return waiting.pop()

        for drawn in self._views(reader, part, again):
            waiting.append(drawn)
            is_grown = not is_grown or len(waiting) > buffer
            if len(waiting) > min(AT_FIRST, buffer) and is_grown:
                yield draw()
        while waiting:
            yield draw()

    def _views(self, reader: Reader, part: int, again: int) -> Iterator[Drawn]:
        begun = 0 if again else reader.begun[part]
        order = self.order(part, reader.epoch, again)[begun:]
        unreadable, has_sample = 0, False
        for shard in order[reader.number :: reader.of]:
            try:
                for drawn in self._of_shard(part, shard, reader.epoch + again * AGAIN):
                    has_sample, unreadable = True, 0
                    yield drawn
            except ShardError as error:
                unreadable += 1
                self._on_fault(Fault(shard, None, f"the rest of it is left out: {error}", None, None))
                if unreadable == UNREADABLE:
                    reason = f"{unreadable} shards one after another cannot be read; the last: {error}"
                    raise ShardError(reason) from None
        if not has_sample and not begun:
            raise ShardError(f"{', '.join(self.parts[part].shards[:3])}: no sample that can be used in any shard")

    def _of_shard(self, part: int, shard: str, number: int) -> Iterator[Drawn]:
        settings, masks_of = self.parts[part].settings, self.parts[part].masks_of
        size_of = partial(_size_of, settings)
        drawn_by = {"__url__": shard, DRAWN_BY: (settings, (number,))}
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
                    views = self._finders[part].views(sample, size_of)
                except FilteredError as error:
                    self._on_fault(Fault(shard, sample.key, str(error), None, None, on_purpose=True))
                    continue
                for view, size in views:
                    yield Drawn(as_dict(sample) | drawn_by, view, size, masks_of)


def _size_of(settings: ExampleSettings, sample: Sample) -> Size:
    pictures = settings.pictures
    return image_size(sample.members[image_member(sample, pictures.image)], pictures.decoding)


def _of_one_kind(views: Iterator[Drawn], batch_size: int) -> Iterator[list[Drawn]]:
    """Views in groups of one size, for one of the `Encoder`'s settings, in the order in which the groups are full."""
    waiting: dict[tuple[Size, int], list[Drawn]] = {}
    for drawn in views:
        kind = drawn.size, drawn.masks_of
        group = waiting.setdefault(kind, [])
        group.append(drawn)
        if len(group) == batch_size:
            yield waiting.pop(kind)
