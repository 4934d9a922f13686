"""The streamed head: image shards that are read one after another, from wherever they lie.

What is drawn is a function of (seed, epoch) and of how many readers there are: the order of the shards, which reader
gets which, and the order of samples in a buffer. Batches are made up by headers, before anything is decoded: so what a
run took before is passed over without decoding it, and the next batch is the very next one.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from inpaint_data.errors import FilteredError, ShardError
from inpaint_data.order import permutation
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.images import image_size
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.dealing import Numbers, Piece, begun_by, deal
from inpaint_data.pipeline.decorator import SampleDict, Stage
from inpaint_data.pipeline.samples import as_dict, as_sample
from inpaint_data.pipeline.stages import DRAWN_BY, VIEWS, BatchEnd, planned_batches, way_of_a_sample
from inpaint_data.pipeline.user_stages import run_on
from inpaint_data.pipeline.view_finder import ViewFinder
from inpaint_data.seeding import generator_for
from inpaint_data.shards.fetching import Fetching
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
        counts: samples of each shard, where they are known; of the only source.
    """

    shards: Sequence[str]
    settings: ExampleSettings
    weight: float = 1.0
    masks_of: int = 0
    name: str = "source"
    counts: Sequence[int] | None = None


@dataclass(frozen=True)
class Reader:
    """One of those that read an epoch's shards, each its own: a rank, or a worker process of one.

    Attributes:
        epoch: of the order.
        number, of: which one it is of how many.
        begun: of each source the shards, by their places in its list, that an earlier run of other readers began in
            this epoch, which are not read again.
    """

    epoch: int
    number: int = 0
    of: int = 1
    begun: Sequence[Sequence[int]] = ((),)


class StreamedShards:
    """Image shards in a new order every epoch, for ever; of several sources, each sample from one that is drawn.

    Args:
        parts: the sources.
        own: the user's stages between reading and examples.
        seed: of the order.
        buffer: samples among which the next one is drawn, in all.
        on_fault: takes what is not a sample, or cannot be read.
        fetching: where local copies of remote shards are kept.

    Attributes:
        counts: samples of each shard, where there is one source and they are known.
    """

    def __init__(
        self,
        parts: Sequence[StreamedPart],
        own: Sequence[Stage],
        seed: int,
        buffer: int,
        on_fault: Callable[[Fault], None],
        fetching: Fetching,
    ) -> None:
        self.parts, self.own, self.seed, self._fetching = list(parts), own, seed, fetching
        counts = parts[0].counts if len(parts) == 1 else None
        self.counts: Numbers | None = None if counts is None else np.array(counts, np.int64)
        weights = np.array([part.weight for part in parts])
        self._shares = weights / weights.sum()
        self._buffers = [round(buffer * share) for share in self._shares]
        self._on_fault, self._finders = on_fault, [ViewFinder(part.settings.pictures) for part in parts]

    def order(self, part: int, epoch: int, begun: Sequence[int] = (), again: int = 0) -> Numbers:
        """The shards of a source, by their places in its list, in the order of an epoch, without those begun before.

        Or of a further pass over all of them within it.
        """
        rows = permutation(len(self.parts[part].shards), self.seed, epoch, again, part)
        return rows if again else rows[~np.isin(rows, np.array(begun, np.int64))]

    def pieces(self, reader: Reader, part: int, again: int = 0) -> list[Piece]:
        """What a reader reads of a source, in its order."""
        order = self.order(part, reader.epoch, reader.begun[part], again)
        return deal(order, reader.number, reader.of, self.counts)

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
        waiting = self._buffers[0] + 1 + (batch_size - 1) * len(self._finders[0].sizes)
        samples = batches * batch_size + waiting
        each = (replace(readers, number=number) for number in range(readers.of))
        return {shard for reader in each for shard in begun_by(self.pieces(reader, 0), samples, self.counts)}

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
        shards, pieces = self.parts[part].shards, self.pieces(reader, part, again)
        number = reader.epoch + again * AGAIN
        unreadable, has_sample = 0, False
        with closing(self._fetching.copies([shards[piece.shard] for piece in pieces])) as copies:
            for piece, (shard, copy) in zip(pieces, copies, strict=True):
                try:
                    for drawn in self._of_piece(part, piece, shard, copy, number):
                        has_sample, unreadable = True, 0
                        yield drawn
                except ShardError as error:
                    unreadable += 1
                    self._on_fault(Fault(shard, None, f"the rest of it is left out: {error}", None, None))
                    if unreadable == UNREADABLE:
                        reason = f"{unreadable} shards one after another cannot be read; the last: {error}"
                        raise ShardError(reason) from None
        if not has_sample and (again or not reader.begun[part]):
            raise ShardError(f"{', '.join(shards[:3])}: no sample that can be used in any shard")

    def _of_piece(self, part: int, piece: Piece, shard: str, copy: Path | None, number: int) -> Iterator[Drawn]:
        """The views of a piece of a shard, each drawn with `number`."""
        settings, masks_of = self.parts[part].settings, self.parts[part].masks_of
        drawn_by = {"__url__": shard, DRAWN_BY: (settings, (number,))}
        for result in self._results(piece, shard, copy):
            if isinstance(result, Fault):
                self._on_fault(result)
                continue
            sample = as_sample(result) if isinstance(result, dict) else result
            try:
                views = self._finders[part].views(sample, partial(_size_of, settings))
            except FilteredError as error:
                self._on_fault(Fault(shard, sample.key, str(error), None, None, on_purpose=True))
                continue
            for view, size in views:
                yield Drawn(as_dict(sample) | drawn_by, view, size, masks_of)

    def _results(self, piece: Piece, shard: str, copy: Path | None) -> Iterator[Any]:
        """What a piece of a shard has, behind the user's stages."""
        keys: set[str] = set()
        place = 0  # of a sample, or of what has a key and is none
        for item in read_shard(shard, None if copy is None else str(copy)):
            if isinstance(item, ShardEnd) or place == piece.stop:
                return
            place += item.key is not None
            if piece.first and place <= piece.first:
                continue
            if self.own and isinstance(item, Sample):
                yield from run_on(as_dict(item), self.own, shard, keys)
            else:
                yield item


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
