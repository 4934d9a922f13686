"""Index of one shard: the place of every member of every sample, as the columns of a sidecar."""

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from inpaint_data.latent_cache.members import MEMBERS, REQUIRED, masks_member

Column = npt.NDArray[np.int64]
SIDES = ("height", "width")


class Place(NamedTuple):
    """Where a member's bytes are in the tar, and their checksum; all -1 where a sample does not have it."""

    offset: int
    size: int
    crc32: int

    @classmethod
    def of(cls, offset: int, data: bytes | memoryview) -> "Place":
        return cls(offset, len(data), zlib.crc32(data))

    @property
    def end(self) -> int:
        return self.offset + self.size


NOWHERE = Place(-1, -1, -1)


class ShardIndex:
    """The samples of a shard in their order: keys, extents of members, sizes of images.

    Attributes:
        keys: of the samples.
        places: member name -> (N, 3) int64, the `Place` of the member of each sample.
        target_sizes: (N, 2) int64, height and width of each image.
    """

    def __init__(self, keys: list[str], places: dict[str, Column], target_sizes: Column) -> None:
        self.keys, self.places, self.target_sizes = keys, places, target_sizes

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        places: Sequence[Mapping[str, Place]],
        target_sizes: Sequence[Sequence[int]],
    ) -> "ShardIndex":
        """From the place of each member of each sample."""
        names = sorted({name for members in places for name in members})
        columns = {name: np.array([members.get(name, NOWHERE) for members in places], np.int64) for name in names}
        return cls(list(keys), columns, np.array(target_sizes, np.int64).reshape(-1, 2))

    @property
    def members(self) -> Collection[str]:
        """The members that any sample has."""
        return self.places.keys()

    @property
    def masks(self) -> str:
        """The name of the member with the masks."""
        return masks_member(self.members)

    @property
    def carried(self) -> set[str]:
        """The members that are not the cache's own."""
        return self.members - MEMBERS.keys()

    def of_row(self, row: int, names: Collection[str] | None = None) -> dict[str, Place]:
        """The place of each member that a sample has; of those named, where some are."""
        columns = self.places.items() if names is None else [(name, self.places.get(name)) for name in names]
        found = {name: Place(*column[row].tolist()) for name, column in columns if column is not None}
        return {name: place for name, place in found.items() if place != NOWHERE}

    def to_json(self) -> dict[str, Any]:
        return {
            "keys": self.keys,
            "index": {
                name: dict(zip(Place._fields, self.places[name].T.tolist(), strict=True))
                for name in sorted(self.members)
            },
            "target_size": {name: self.target_sizes[:, side].tolist() for side, name in enumerate(SIDES)},
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], end: int) -> "ShardIndex":
        """The index that `to_json` encoded, of a tar of `end` bytes.

        Raises:
            ValueError: the columns are wrong, as those from a stranger may be though their hash is right.
        """
        if problems := "; ".join(_problems(fields["keys"], fields["index"], fields["target_size"], end)):
            raise ValueError(problems)
        places = {
            name: np.array([columns[field] for field in Place._fields], np.int64).T.reshape(-1, len(Place._fields))
            for name, columns in fields["index"].items()
        }
        sides = np.array([fields["target_size"][name] for name in SIDES], np.int64).T.reshape(-1, 2)
        return cls(fields["keys"], places, sides)


def is_count(value: object) -> bool:
    """True if a value of JSON is a whole number, 0 or more."""
    return type(value) is int and 0 <= value < 2**63


def _problems(keys: Any, index: Any, sides: Any, end: int) -> Iterator[str]:
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys) and isinstance(index, dict)):
        yield "it has no keys and index"
        return
    if not (isinstance(sides, dict) and sides.keys() == set(SIDES)) or not all(
        isinstance(column, list) and len(column) == len(keys) and all(map(is_count, column))
        for column in sides.values()
    ):
        yield f"its target_size does not have a height and a width for each of {len(keys)} samples"
    if len(set(keys)) < len(keys):
        yield f"its key {next(key for key in keys if keys.count(key) > 1)!r} comes twice"
    for name in sorted(index.keys() | (REQUIRED | {masks_member(index)} if keys else set())):
        columns = index.get(name)
        if not (isinstance(columns, dict) and columns.keys() == set(Place._fields)):
            yield f"its index has no offsets, sizes and checksums of {name}"
        elif not all(isinstance(column, list) and len(column) == len(keys) for column in columns.values()):
            yield f"its index of {name} does not have an entry for each of {len(keys)} samples"
        else:
            for key, *values in zip(keys, *(columns[field] for field in Place._fields), strict=True):
                absent = tuple(values) == NOWHERE and name not in MEMBERS
                if not absent and not (all(map(is_count, values)) and Place(*values).end <= end):
                    yield f"its index says {values} for {name} of sample {key!r}"
