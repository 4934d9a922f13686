"""Image shards as a map-style dataset: any view at any time, so that live and cached epochs go the same way."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from inpaint_data.errors import SampleError, ShardError, UsageError
from inpaint_data.pictures.examples import Example, ImageBatch, collate, prepare
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.images import image_size
from inpaint_data.pictures.settings import SampleSettings
from inpaint_data.pipeline.image_batches import warn_of
from inpaint_data.shards.mirror import Mirror, default_folder
from inpaint_data.shards.reading import (
    Fault,
    Sample,
    image_member,
    locate_samples,
    read_sample,
    shard_size,
    shard_stamp,
)
from inpaint_data.shards.tar import is_url

HEADER = 2**16  # bytes of a picture that tell its size, but for those with much before it


class ImageShards(Dataset[ImageBatch | None]):
    """The views of image shards: samples are found by their tar headers, sizes by those of the pictures, read once.

    `images.__getitems__([i, j, ...])` is a batch of pictures and masks, not yet encoded. Bad samples are left out of it
    and named in the log; it is None where none is left.

    Args:
        shards: paths or URLs, already expanded; remote ones are copied to `mirror` first.
        settings: what decides the pixels.
        variants: the mask variants of every sample, or None: the one whose number is `epoch`.
        threads: how many decode at a time.
        mirror, mirror_bytes: see `LatentCache`.

    Attributes:
        epoch: set it before each epoch.
        faults: what the shards have that is no sample.
        too_small: how many views there are not, since their picture is too small, though not for all.
        buckets: (N,) int64, the bucket of every sample.

    Raises:
        ShardError: a shard cannot be read, or there is no sample in any.
        UsageError: no room for the copy of a remote shard.
    """

    def __init__(
        self,
        shards: Sequence[str],
        settings: SampleSettings,
        variants: Sequence[int] | None,
        threads: int,
        mirror: str | None = None,
        mirror_bytes: int = 100 * 10**9,
    ) -> None:
        self.settings, self.variants, self.epoch = settings, variants, 0
        self._pool = ThreadPoolExecutor(max(1, threads), "inpaint_data-decode")
        self.faults: list[Fault] = []
        self._shards = list(shards)
        self._paths = [_local(shard, mirror, mirror_bytes) for shard in shards]
        self.too_small = 0
        self._sizes = settings.views.sizes()
        places: list[tuple[int, ...]] = []  # shard, extent, number of the view, size of the view
        for number, path in enumerate(self._paths):
            with path.open("rb") as file:
                for item in locate_samples(str(path)):
                    if isinstance(item, Fault):
                        self.faults.append(item)
                        warn_of(item)
                    else:
                        places += [(number, *item.extent, view, *size) for view, size in self._views(item, file)]
        if not places:
            raise ShardError(f"{', '.join(self._shards[:3])}: no sample in any shard; see the warnings for the reasons")
        table = np.array(places, np.int64)
        self._places = table[:, :4]
        self.buckets: npt.NDArray[np.int64] = np.unique(table[:, 4:], axis=0, return_inverse=True)[1].reshape(-1)

    def _views(self, sample: Sample, file: BinaryIO) -> list[tuple[int, Size]]:
        """Number and size of each view of a sample, by the header of its picture, which it looks up in the shard."""
        if self.settings.views.count == len(self._sizes) == 1:
            return [(0, self._sizes[0])]
        with suppress(SampleError):
            offset, end = sample.offsets[image_member(sample)], sample.extent[1]
            for length in (min(HEADER, end - offset), end - offset):
                file.seek(offset)
                with suppress(SampleError):
                    size = image_size(file.read(length))
                    views = self.settings.views.of(size)
                    self.too_small += self.settings.views.count - len(views)
                    return [(view.number, view.target) for view in views]
        return [(0, self._sizes[0])]  # why it cannot be used is said when it is read

    def __len__(self) -> int:
        return len(self._places)

    def __getitems__(self, indices: Sequence[int]) -> ImageBatch | None:
        variants = [self.epoch] if self.variants is None else list(self.variants)
        made: list[Example] = []
        for each in self._pool.map(lambda index: self.example(index, variants), indices):
            if isinstance(each, Fault):
                warn_of(each)
            else:
                made.append(each)
        return collate(made, variants, self.settings.seed) if made else None

    def __getitem__(self, index: int) -> ImageBatch | None:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.__getitems__([index])

    def example(self, index: int, variants: Sequence[int]) -> Example | Fault:
        """One view with its masks of `variants`, or why it cannot be used."""
        number, start, end, view = map(int, self._places[index])
        shard, path = self._shards[number], self._paths[number]
        try:
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(end - start)
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}; it was there when training began") from error
        sample = read_sample(shard, data)
        if isinstance(sample, Fault):
            return sample
        if made := prepare(sample, self.settings, variants, [view]):
            return made[0]
        reason = "its picture is not of the size that its header says; save it again"
        return Fault(shard, sample.key, reason, None, None)


def _local(shard: str, mirror: str | None, mirror_bytes: int) -> Path:
    """Where the shard lies on this machine, copied if need be."""
    if not is_url(shard):
        return Path(shard)
    name = hashlib.sha256(f"{shard}\n{shard_stamp(shard)}".encode()).hexdigest()
    path = Mirror(mirror or default_folder(), mirror_bytes).copy(shard, name, shard_size(shard))
    if path is None:
        raise UsageError(f"mirror_bytes: no room to copy {shard}; allow more, or cache the shards first")
    return path
