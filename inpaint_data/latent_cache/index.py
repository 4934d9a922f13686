"""Index of one shard: the place of every member of every sample, as the columns of a sidecar."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.latent_cache.members import MEMBERS, REQUIRED, masks_member

Column = npt.NDArray[np.int64]
SIDES = ("height", "width")


class ShardIndex:
    """The samples of a shard in their order: keys, extents of members, sizes of images.

    Attributes:
        keys: of the samples.
        offsets, sizes: member name -> (N,) int64, its byte offset and size in the tar; -1 where a sample has none.
        target_sizes: (N, 2) int64, height and width of each image.
    """

    def __init__(
        self, keys: list[str], offsets: dict[str, Column], sizes: dict[str, Column], target_sizes: Column
    ) -> None:
        self.keys, self.offsets, self.sizes, self.target_sizes = keys, offsets, sizes, target_sizes

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        extents: Sequence[Mapping[str, tuple[int, int]]],
        target_sizes: Sequence[Sequence[int]],
    ) -> "ShardIndex":
        """From the (offset, size) of each member of each sample."""
        names = sorted({name for members in extents for name in members})
        offsets, sizes = (
            {name: np.array([members.get(name, (-1, -1))[column] for members in extents], np.int64) for name in names}
            for column in (0, 1)
        )
        return cls(list(keys), offsets, sizes, np.array(target_sizes, np.int64).reshape(-1, 2))

    @property
    def members(self) -> Collection[str]:
        """The members that any sample has."""
        return self.offsets.keys()

    @property
    def masks(self) -> str:
        """The name of the member with the masks."""
        return masks_member(self.members)

    @property
    def carried(self) -> set[str]:
        """The members that are not the cache's own."""
        return self.members - MEMBERS.keys()

    def extents(self, row: int) -> Iterator[tuple[str, int, int]]:
        """Name, byte offset and end of each member that a sample has."""
        for name, offsets in self.offsets.items():
            if (start := int(offsets[row])) >= 0:
                yield name, start, start + int(self.sizes[name][row])

    def extent(self, name: str, row: int) -> tuple[int, int] | None:
        """Byte offset and end of one member; None where the sample does not have it."""
        if name not in self.offsets or (start := int(self.offsets[name][row])) < 0:
            return None
        return start, start + int(self.sizes[name][row])

    def to_json(self) -> dict[str, Any]:
        return {
            "keys": self.keys,
            "index": {
                name: {"offset": self.offsets[name].tolist(), "size": self.sizes[name].tolist()}
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
        offsets, sizes = (
            {name: np.array(columns[column], np.int64) for name, columns in fields["index"].items()}
            for column in ("offset", "size")
        )
        sides = np.array([fields["target_size"][name] for name in SIDES], np.int64).T.reshape(-1, 2)
        return cls(fields["keys"], offsets, sizes, sides)


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
        if not (isinstance(columns, dict) and columns.keys() == {"offset", "size"}):
            yield f"its index has no offsets and sizes of {name}"
        elif not all(isinstance(column, list) and len(column) == len(keys) for column in columns.values()):
            yield f"its index of {name} does not have an entry for each of {len(keys)} samples"
        else:
            for key, *place in zip(keys, columns["offset"], columns["size"], strict=True):
                absent = place == [-1, -1] and name not in MEMBERS
                if not absent and not (all(map(is_count, place)) and sum(place) <= end):
                    yield f"its index says {place} for {name} of sample {key!r}"
