"""One shard of images, read by byte ranges wherever its bytes are: here, in a copy, or in a store."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from inpaint_data.errors import ReplacedError, SampleError, ShardError
from inpaint_data.pictures.formats import Decoding
from inpaint_data.pictures.geometry import Size
from inpaint_data.pictures.images import image_size
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.shards.image_index import ShardEntry
from inpaint_data.shards.mirror import Mirror, name_of_contents
from inpaint_data.shards.naming import shard_size, shard_stamp
from inpaint_data.shards.reading import Fault, Sample, image_member, locate_samples, read_sample
from inpaint_data.shards.stores import is_remote, is_url, stored, stored_now
from inpaint_data.shards.streams import anew_if_replaced, read_range

HEADER = 2**16  # bytes of a picture that tell its size, but for those with much before it


class ShardFile:
    """One shard, wherever its bytes are read from.

    Args:
        shard: its path or URL; a remote one is read piece by piece until it is fetched.
        entry: what its index says of it.
    """

    def __init__(self, shard: str, entry: ShardEntry | None = None) -> None:
        self.shard, self.entry = shard, entry
        self._stored = stored(shard) if is_url(shard) else None
        self._path = None if is_url(shard) else Path(shard)

    @property
    def is_elsewhere(self) -> bool:
        """Whether each read of it is a question to its store."""
        return self._path is None and is_remote(self.shard)

    def fetch(self, mirror: Mirror, limit: int) -> bool:
        """Copy a remote shard to `mirror`; False where there is no room for it within `limit` bytes."""
        if self.is_elsewhere:
            self._path = anew_if_replaced(partial(self._copied, mirror, limit))
        return not self.is_elsewhere

    def _copied(self, mirror: Mirror, limit: int) -> Path | None:
        if self.entry is not None and self.entry.sha256 is not None:
            return mirror.copy(self.shard, self.entry.sha256, self.entry.size, limit, self.entry.sha256)
        return mirror.copy(
            self.shard, name_of_contents(self.shard, shard_stamp(self.shard)), shard_size(self.shard), limit
        )

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
        """The sample that fills an extent.

        Raises:
            ReplacedError: the shard is another one by now.
            ShardError: it cannot be read.
        """
        try:
            sample = read_sample(self.shard, self.bytes(*extent))
        except ShardError:
            self._check_still()
            raise
        if isinstance(sample, Fault):
            self._check_still()
        if self.entry is not None and sample.key != self.entry.key_at(extent[0]):
            raise ReplacedError(f"{self.shard}: it is not the shard of its index, for it was replaced; start again")
        return sample

    def _check_still(self) -> None:
        if self._path is None and stored_now(self.shard) != self._stored:
            raise ReplacedError(f"{self.shard}: it was replaced by another one since training began; start again")
