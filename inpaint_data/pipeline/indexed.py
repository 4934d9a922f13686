"""The indexed head: image shards whose views are found beforehand, and read in any order.

Samples are found by their shards' index or else by the headers of their tar, sizes by the index or those of the
pictures, so an epoch is an order of rows. Where the user has stages, every sample goes through them once beforehand:
what they leave out is known before batches are.
"""

import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import webdataset as wds

from inpaint_data.errors import FilteredError, InpaintDataError, ShardError
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.decorator import SampleDict, Stage
from inpaint_data.pipeline.faults import log, warn
from inpaint_data.pipeline.index_places import Places, places_of
from inpaint_data.pipeline.samples import as_dict, as_sample
from inpaint_data.pipeline.shard_file import ShardFile
from inpaint_data.pipeline.stages import VIEWS, BatchEnd, way_of_a_sample
from inpaint_data.pipeline.user_stages import run_on
from inpaint_data.pipeline.view_finder import ViewFinder
from inpaint_data.shards.image_index import ShardEntry
from inpaint_data.shards.mirror import DEFAULT_BYTES, mirror_in
from inpaint_data.shards.reading import Fault, Sample
from inpaint_data.shards.stores import AT_A_TIME

Rows = Sequence[int] | npt.NDArray[np.int64]


class IndexedShards:
    """The views of image shards, each at a row.

    Args:
        shards: paths or URLs, already expanded.
        settings: what decides the pixels.
        own: the user's stages between reading and examples.
        mirror, mirror_bytes: see `LatentCache`. Remote shards without an index are copied there at once, or read piece
            by piece where they do not fit; those with one are read piece by piece, and copied meanwhile.
        entries: what the index says of each shard; None looks at their headers.

    Attributes:
        faults: what the shards have that is not a sample, or that a stage leaves out.
        finder: of views, which knows how many there are not since their picture is too small.
        sizes: (N, 2) int64, height and width of the view at every row.

    Raises:
        ShardError: a shard cannot be read, or there is no sample in any.
    """

    def __init__(
        self,
        shards: Sequence[str],
        settings: ExampleSettings,
        own: Sequence[Stage] = (),
        mirror: str | None = None,
        mirror_bytes: int = DEFAULT_BYTES,
        entries: Sequence[ShardEntry] | None = None,
    ) -> None:
        self.settings, self.own = settings, list(own)
        self.faults: list[Fault] = []
        self.finder = ViewFinder(settings.pictures)
        self._mirror, self._mirror_bytes = mirror, mirror_bytes
        self._fetching = 0  # the process that has a thread for it
        self._files = list(map(ShardFile, shards, entries or repeat(None)))
        if mirror_bytes and any(file.is_elsewhere for file in self._files):
            mirror_in(mirror)  # which refuses a folder that cannot be written to
        tables = [self._table_of(number, file) for number, file in enumerate(self._files)]
        self._tell_filtered()
        self._places = np.concatenate(tables)
        if not len(self._places):
            reason = f"; the first: {self.faults[0].reason}" if self.faults else ""
            named = ", ".join(shards[:3])
            raise ShardError(f"{named}: no sample in any shard; see the warnings for the reasons{reason}")
        self.sizes: npt.NDArray[np.int64] = self._places[:, 5:]

    def _table_of(self, number: int, file: ShardFile) -> Places:
        """(N, 7) int64: shard, extent, which of the stages' results, view and its size, of each view of a shard."""
        if file.entry is None and file.is_elsewhere and self._mirror_bytes:
            file.fetch(mirror_in(self._mirror), self._mirror_bytes)
        is_read = bool(self.own) or self.settings.pictures.filters.caption
        if file.entry is not None and not is_read:
            places, faults = places_of(file.entry, file.shard, self.finder, self.settings.pictures)
            for fault in faults:
                self._note(fault)
        else:
            rows, keys = [], set[str]()
            for item in file.locate():
                for place in [item] if isinstance(item, Fault) else self._places_of(item, file, keys):
                    if isinstance(place, Fault):
                        self._note(place)
                    else:
                        rows.append(place)
            places = np.array(rows, np.int64).reshape(-1, 6)
        return np.insert(places, 0, number, axis=1)

    def _note(self, fault: Fault) -> None:
        self.faults.append(fault)
        if not fault.on_purpose:
            warn(fault)

    def _tell_filtered(self) -> None:
        """Name the first sample that each filter leaves out, and say how many more there are."""
        by_filter: dict[str, list[Fault]] = {}
        for fault in self.faults:
            if fault.on_purpose:
                by_filter.setdefault(fault.reason.partition(":")[0], []).append(fault)
        for name, faults in by_filter.items():
            warn(faults[0])
            if len(faults) > 1:
                log.warning("%d more are left out by %s", len(faults) - 1, name)

    def _places_of(self, sample: Sample, file: "ShardFile", keys: set[str]) -> Iterator[tuple[int, ...] | Fault]:
        """Extent, number of the stages' result, number and size of each view of a sample."""
        results: Iterable[Any] = [sample]
        if self.own or self.settings.pictures.filters.caption:
            read = file.read(sample.extent)
            results = [read]
            if self.own and isinstance(read, Sample):
                results = run_on(as_dict(read), self.own, file.shard, keys)
        for number, result in enumerate(results):
            if isinstance(result, Fault):
                yield result
                continue
            made = as_sample(result) if isinstance(result, dict) else result
            try:
                for view, size in self.finder.views(made, partial(file.size_of, pictures=self.settings.pictures)):
                    yield (*sample.extent, number, view, *size)
            except FilteredError as error:
                yield Fault(file.shard, made.key, str(error), None, None, on_purpose=True)

    def __len__(self) -> int:
        return len(self._places)

    def sample(self, row: int) -> SampleDict | Fault:
        """What is at a row, its view named, behind the user's stages."""
        return self._staged(row, self._read(row))

    def _read(self, row: int) -> Sample | Fault:
        number, start, end = map(int, self._places[row, :3])
        return self._files[number].read((start, end))

    def _staged(self, row: int, read: Sample | Fault) -> SampleDict | Fault:
        number, _, _, result, view, height, width = map(int, self._places[row])
        promised = {VIEWS: {view: (height, width)}}
        if isinstance(read, Fault):
            return read
        if not self.own:
            return as_dict(read) | promised
        shard = self._files[number].shard
        results = list(run_on(as_dict(read), self.own, shard))
        if result >= len(results):
            reason = "stages: a stage of yours made another number of samples than before; it must not draw at random"
            return Fault(shard, read.key, reason, None, None)
        item = results[result]
        return item if isinstance(item, Fault) else item | {"__url__": shard} | promised

    def samples(self, rows: Iterable[int]) -> Generator[SampleDict | Fault, None, None]:
        """The same of rows, in their order; many are asked for at once where shards lie elsewhere."""
        if not any(file.is_elsewhere for file in self._files):
            for row in map(int, rows):
                yield self.sample(row)
            return
        self._fetch_meanwhile()
        # A question to a store takes long.
        pool = ThreadPoolExecutor(AT_A_TIME, "inpaint_data-read")
        try:
            asked: deque[tuple[int, Future[Sample | Fault]]] = deque()
            for row in map(int, rows):
                asked.append((row, pool.submit(self._read, row)))
                if len(asked) > AT_A_TIME:
                    yield self._answer(*asked.popleft())
            while asked:
                yield self._answer(*asked.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, row: int, read: Future[Sample | Fault]) -> SampleDict | Fault:
        return self._staged(row, read.result())

    def _fetch_meanwhile(self) -> None:
        """Copy shards as long as there is room, in a thread of this process."""
        if self._mirror_bytes and self._fetching != os.getpid():
            self._fetching = os.getpid()
            threading.Thread(target=self._fetch, name="inpaint_data-fetch", daemon=True).start()

    def _fetch(self) -> None:
        for file in self._files:
            try:
                if not file.fetch(mirror_in(self._mirror), self._mirror_bytes) and file.is_elsewhere:
                    return  # there is no room
            except InpaintDataError as error:
                log.warning("%s: no copies are made, it is read piece by piece: %s", file.shard, error)
                return

    def pipeline(self, plan: Sequence[Rows], batch_size: int, variants: Sequence[int], threads: int) -> Any:
        """The planned batches, each with its `BatchEnd` behind it: a `wds.DataPipeline`.

        The user's stages have run when a sample leaves the head.
        """
        head = partial(self._planned, plan)
        return wds.DataPipeline(head, *way_of_a_sample(self.settings, (), batch_size, variants, threads))

    def _planned(self, plan: Sequence[Rows]) -> Iterator[SampleDict | Fault | BatchEnd]:
        with closing(self.samples(chain.from_iterable(plan))) as samples:
            for rows in plan:
                yield from islice(samples, len(rows))
                yield BatchEnd()
