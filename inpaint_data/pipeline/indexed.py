"""The indexed head: image shards that lie here, whose views are found beforehand and read in any order.

Samples are found by the headers of their tar, sizes by those of the pictures, so an epoch is an order of rows. Where
the user has stages, every sample goes through them once beforehand: what they leave out is known before batches are.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import webdataset as wds

from inpaint_data.errors import FilteredError, ReplacedError, SampleError, ShardError
from inpaint_data.pictures.formats import Decoding
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.images import image_size
from inpaint_data.pictures.settings import ExampleSettings, PictureSettings
from inpaint_data.pipeline.decorator import SampleDict, Stage
from inpaint_data.pipeline.faults import log, warn
from inpaint_data.pipeline.samples import as_dict, as_sample
from inpaint_data.pipeline.stages import VIEWS, BatchEnd, way_of_a_sample
from inpaint_data.pipeline.user_stages import run_on
from inpaint_data.pipeline.view_finder import ViewFinder
from inpaint_data.shards.mirror import DEFAULT_BYTES, mirror_in, name_of_contents
from inpaint_data.shards.naming import shard_size, shard_stamp
from inpaint_data.shards.reading import Fault, Sample, image_member, locate_samples, read_sample
from inpaint_data.shards.stores import is_remote, is_url, stored, stored_now
from inpaint_data.shards.streams import anew_if_replaced, read_range

HEADER = 2**16  # bytes of a picture that tell its size, but for those with much before it
Rows = Sequence[int] | npt.NDArray[np.int64]


class IndexedShards:
    """The views of image shards, each at a row.

    Args:
        shards: paths or URLs, already expanded; remote ones are copied to `mirror`, or read piece by piece where they
            do not fit.
        settings: what decides the pixels.
        own: the user's stages between reading and examples.
        mirror, mirror_bytes: see `LatentCache`.

    Attributes:
        faults: what the shards have that is not a sample, or that a stage leaves out.
        finder: of views, which knows how many there are not since their picture is too small.
        sizes: (N, 2) int64, height and width of the view at every row.
        buckets: (N,) int64, the bucket of every row.

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
    ) -> None:
        self.settings, self.own = settings, list(own)
        self.faults: list[Fault] = []
        self.finder = ViewFinder(settings.pictures)
        self._files = [ShardFile(shard, _copy_of(shard, mirror, mirror_bytes)) for shard in shards]
        places: list[tuple[int, ...]] = []  # shard, extent, which of the stages' results, view, size of the view
        for number, file in enumerate(self._files):
            keys: set[str] = set()
            for item in file.locate():
                for place in [item] if isinstance(item, Fault) else self._places_of(item, file, keys):
                    if isinstance(place, Fault):
                        self._note(place)
                    else:
                        places.append((number, *place))
        self._tell_filtered()
        if not places:
            reason = f"; the first: {self.faults[0].reason}" if self.faults else ""
            named = ", ".join(shards[:3])
            raise ShardError(f"{named}: no sample in any shard; see the warnings for the reasons{reason}")
        table = np.array(places, np.int64)
        self._places = table
        self.sizes: npt.NDArray[np.int64] = table[:, 5:]
        self.buckets: npt.NDArray[np.int64] = np.unique(self.sizes, axis=0, return_inverse=True)[1].reshape(-1)

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
        number, start, end, result, view, height, width = map(int, self._places[row])
        promised = {VIEWS: {view: (height, width)}}
        file = self._files[number]
        read = file.read((start, end))
        if isinstance(read, Fault):
            return read
        if not self.own:
            return as_dict(read) | promised
        results = list(run_on(as_dict(read), self.own, file.shard))
        if result >= len(results):
            reason = "stages: a stage of yours made another number of samples than before; it must not draw at random"
            return Fault(file.shard, read.key, reason, None, None)
        item = results[result]
        return item if isinstance(item, Fault) else item | {"__url__": file.shard} | promised

    def samples(self, plan: Sequence[Rows]) -> Iterator[SampleDict | Fault | BatchEnd]:
        """The head of a pipeline: what is at the rows of each planned batch, each batch followed by its end."""
        for rows in plan:
            for row in rows:
                yield self.sample(int(row))
            yield BatchEnd()

    def pipeline(self, plan: Sequence[Rows], batch_size: int, variants: Sequence[int], threads: int) -> Any:
        """The planned batches, each with its `BatchEnd` behind it: a `wds.DataPipeline`.

        The user's stages have run when a sample leaves the head.
        """
        head = partial(self.samples, plan)
        return wds.DataPipeline(head, *way_of_a_sample(self.settings, (), batch_size, variants, threads))


class ShardFile:
    """One shard, wherever its bytes are read from.

    Args:
        shard: its path or URL.
        copy: of a remote one, here; None reads it piece by piece.
    """

    def __init__(self, shard: str, copy: Path | None = None) -> None:
        self.shard = shard
        self._stored = stored(shard) if is_url(shard) else None
        self._path = copy if is_url(shard) else Path(shard)

    def locate(self) -> Iterator[Sample | Fault]:
        """Its samples by their headers, without bytes, under the shard's own name."""
        return locate_samples(self.shard if self._path is None else str(self._path), self.shard)

    def size_of(self, sample: Sample, pictures: PictureSettings) -> Size:
        """The size of a sample's picture, which is looked up in the shard where the sample was only located.

        Raises:
            SampleError: it has none, or none that can be read.
        """
        return self.size_of_member(sample, image_member(sample, pictures.image), pictures.decoding)

    def size_of_member(self, sample: Sample, name: str, decoding: Decoding) -> Size:
        """The same of any picture of the sample."""
        if sample.members[name]:
            return image_size(sample.members[name], decoding)
        offset = sample.offsets[name]
        end = offset + sample.sizes[name]
        with suppress(SampleError):
            return image_size(self.bytes(offset, min(offset + HEADER, end)), decoding)
        return image_size(self.bytes(offset, end), decoding)

    def has_alpha(self, sample: Sample, pictures: PictureSettings) -> bool:
        """Whether a sample's picture is a PNG with an alpha channel, by its header."""
        name = image_member(sample, pictures.image)
        if not name.endswith("png"):
            return False
        header = sample.members[name][:26]
        offset = sample.offsets.get(name, 0)
        header = header or self.bytes(offset, offset + 26)
        return header[:4] == b"\x89PNG" and header[25:26] in (b"\x04", b"\x06")

    def bytes(self, start: int, end: int) -> bytes:
        if self._path is None:
            return read_range(self.shard, start, end)
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        except OSError as error:
            raise ShardError(f"{self._path}: {error.strerror}; it was there when training began") from error

    def read(self, extent: tuple[int, int]) -> Sample | Fault:
        sample = read_sample(self.shard, self.bytes(*extent))
        if isinstance(sample, Fault) and self._path is None and stored_now(self.shard) != self._stored:
            raise ReplacedError(f"{self.shard}: it was replaced by another one since training began; start again")
        return sample


def _copy_of(shard: str, mirror: str | None, mirror_bytes: int) -> Path | None:
    return anew_if_replaced(partial(_copy, shard, mirror, mirror_bytes)) if is_remote(shard) else None


def _copy(shard: str, mirror: str | None, mirror_bytes: int) -> Path | None:
    """The local copy of a remote shard; None where there is no room for it."""
    name = name_of_contents(shard, shard_stamp(shard))
    return mirror_in(mirror).copy(shard, name, shard_size(shard), mirror_bytes)
