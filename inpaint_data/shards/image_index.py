"""The index of image shards: how large each is, and where in it every sample and its members lie.

A NumPy .npz of columns over all samples, and over all members of all samples, with `about`, a JSON of the shards.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import SampleError
from inpaint_data.shards.reading import Fault, Sample

FORMAT = 1
Column = npt.NDArray[Any]
# Of a sample: bytes of its key in UTF-8, the bytes [start, end) of the shard that it fills, and its members.
OF_SAMPLES = {"key_bytes": np.uint16, "start": np.int64, "end": np.int64, "members": np.uint32}
# Of a member: its name's place in the shard's list of names, where its bytes are, and the picture's size or zeros.
OF_MEMBERS = {"name": np.uint16, "offset": np.int64, "size": np.int64, "height": np.uint32, "width": np.uint32}
KEYS = "keys"  # of all samples, one behind another


@dataclass(frozen=True, eq=False)
class ShardEntry:
    """What the index says of one shard.

    Attributes:
        name: its path below the index's folder, or its whole path or URL.
        size: in bytes.
        stamp: a text that changes when its contents do; None where its store has none.
        sha256: of its bytes, where they were all read.
        names: of the members that any sample has.
        faults: what it has that is not a sample.
        keys: of the samples, in UTF-8, one behind another.
        columns: those of OF_SAMPLES and of OF_MEMBERS.
    """

    name: str
    size: int
    stamp: str | None
    sha256: str | None
    names: Sequence[str]
    faults: Sequence[Fault]
    keys: bytes
    columns: Mapping[str, Column] = field(repr=False)

    def __len__(self) -> int:
        return len(self.columns["start"])

    @cached_property
    def _key_ends(self) -> Column:
        return np.cumsum(self.columns["key_bytes"], dtype=np.int64)

    @cached_property
    def _member_ends(self) -> Column:
        return np.cumsum(self.columns["members"], dtype=np.int64)

    def key(self, row: int) -> str:
        end = int(self._key_ends[row])
        return self.keys[end - int(self.columns["key_bytes"][row]) : end].decode(errors="replace")

    def key_at(self, start: int) -> str:
        """The key of the sample that begins at that byte."""
        return self.key(int(np.searchsorted(self.columns["start"], start)))

    def sample(self, row: int) -> Sample:
        """A sample with members of no bytes, as `locate_samples` gives it."""
        names, offsets, sizes = self._of_row(row, "name"), self._of_row(row, "offset"), self._of_row(row, "size")
        members = [self.names[name] for name in names]
        return Sample(
            self.name,
            self.key(row),
            dict.fromkeys(members, b""),
            (int(self.columns["start"][row]), int(self.columns["end"][row])),
            dict(zip(members, map(int, offsets), strict=True)),
            dict(zip(members, map(int, sizes), strict=True)),
        )

    def picture_size(self, row: int, member: str) -> tuple[int, int]:
        """(height, width) of a picture, upright. Raises SampleError where it could not be read."""
        names = [self.names[name] for name in self._of_row(row, "name")]
        place = names.index(member)
        size = int(self._of_row(row, "height")[place]), int(self._of_row(row, "width")[place])
        if not all(size):
            raise SampleError(f"{member} is no picture that can be read")
        return size

    def _of_row(self, row: int, column: str) -> Column:
        end = int(self._member_ends[row])
        return self.columns[column][end - int(self.columns["members"][row]) : end]

    def kinds(self) -> tuple[Column, Column]:
        """Samples of a kind have the same members, with pictures of the same sizes.

        Returns:
            a row of each kind, and the kind of each row.
        """
        counts = self.columns["members"].astype(np.int64)
        row_of = np.repeat(np.arange(len(self)), counts)
        place = np.arange(len(row_of)) - np.repeat(self._member_ends - counts, counts)
        table = np.full((len(self), int(counts.max(initial=0)), 3), -1, np.int64)
        for number, column in enumerate(("name", "height", "width")):
            table[row_of, place, number] = self.columns[column]
        _, rows, kinds = np.unique(table.reshape(len(self), -1), axis=0, return_index=True, return_inverse=True)
        return rows, kinds.reshape(-1)


class EntryMaker:
    """Collects the samples and Faults of a shard."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.faults: list[Fault] = []
        self._keys: list[bytes] = []
        self._samples: list[tuple[int, ...]] = []
        self._members: list[tuple[int, ...]] = []

    def add(self, sample: Sample, sizes: Mapping[str, tuple[int, int]]) -> None:
        """A sample, and the (height, width) of those of its members that are pictures."""
        key = sample.key.encode()
        self._keys.append(key)
        self._samples.append((len(key), *sample.extent, len(sample.members)))
        for name in sample.members:
            number = self.names.setdefault(name, len(self.names))
            place = sample.offsets[name], sample.sizes[name]
            self._members.append((number, *place, *sizes.get(name, (0, 0))))

    def entry(self, name: str, size: int, stamp: str | None, sha256: str | None) -> ShardEntry:
        columns = _columns(OF_SAMPLES, self._samples) | _columns(OF_MEMBERS, self._members)
        return ShardEntry(name, size, stamp, sha256, list(self.names), self.faults, b"".join(self._keys), columns)


def _columns(kinds: Mapping[str, Any], rows: Sequence[tuple[int, ...]]) -> dict[str, Column]:
    table = np.array(rows, np.int64).reshape(-1, len(kinds))
    return {name: table[:, number].astype(kind) for number, (name, kind) in enumerate(kinds.items())}


def encoded(entries: Iterable[ShardEntry]) -> bytes:
    """The bytes of the file."""
    entries = list(entries)
    about = {"format": FORMAT, "shards": [_about(entry) for entry in entries]}
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    arrays[KEYS] = np.frombuffer(b"".join(entry.keys for entry in entries), np.uint8)
    for name, kind in (OF_SAMPLES | OF_MEMBERS).items():
        arrays[name] = np.concatenate([np.zeros(0, kind), *(entry.columns[name] for entry in entries)])
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _about(entry: ShardEntry) -> dict[str, Any]:
    faults = [[fault.key, fault.reason, fault.offset, fault.end] for fault in entry.faults]
    return {
        "name": entry.name,
        "size": entry.size,
        "stamp": entry.stamp,
        "sha256": entry.sha256,
        "samples": len(entry),
        "members": len(entry.columns["name"]),
        "key_bytes": len(entry.keys),
        "names": list(entry.names),
        "faults": faults,
    }


def decoded(data: bytes) -> list[ShardEntry]:
    """The entries of a file that `encoded` made.

    Raises:
        ValueError: it is of another format, damaged, or says what cannot be.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}, and this version reads {FORMAT}")
            keys = file[KEYS].astype(np.uint8).tobytes()
            columns = {name: file[name].astype(kind) for name, kind in (OF_SAMPLES | OF_MEMBERS).items()}
        return list(_entries(about["shards"], keys, columns))
    except (OSError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:  # the latter of a damaged kind of packing
        raise ValueError(str(error)) from None


def _entries(shards: Sequence[Mapping[str, Any]], keys: bytes, columns: Mapping[str, Column]) -> Iterator[ShardEntry]:
    sample = member = letter = 0
    for about in shards:
        ends = sample + about["samples"], member + about["members"], letter + about["key_bytes"]
        own = {name: columns[name][sample : ends[0]] for name in OF_SAMPLES}
        own |= {name: columns[name][member : ends[1]] for name in OF_MEMBERS}
        faults = [Fault(about["name"], key, reason, start, end) for key, reason, start, end in about["faults"]]
        entry = ShardEntry(
            str(about["name"]),
            int(about["size"]),
            about["stamp"],
            about["sha256"],
            about["names"],
            faults,
            keys[letter : ends[2]],
            own,
        )
        _check(entry, ends[0] - sample, ends[1] - member, ends[2] - letter)
        yield entry
        sample, member, letter = ends
    if (sample, member, letter) != (len(columns["start"]), len(columns["name"]), len(keys)):
        raise ValueError("its columns are not as long as its shards say")


def _check(entry: ShardEntry, samples: int, members: int, letters: int) -> None:
    """Raises ValueError for what cannot be, as in a file from a stranger."""
    columns = entry.columns
    start, end = columns["start"], columns["end"]
    is_long = all(len(columns[name]) == samples for name in OF_SAMPLES)
    is_long &= all(len(columns[name]) == members for name in OF_MEMBERS) and len(entry.keys) == letters
    if not is_long or int(columns["members"].sum()) != members or int(columns["key_bytes"].sum()) != letters:
        raise ValueError(f"its columns of {entry.name} are not as long as it says")
    if ((start < 0) | (end < start) | (end > entry.size)).any():
        raise ValueError(f"it says that samples lie outside {entry.name}")
    if members and int(columns["name"].max()) >= len(entry.names):
        raise ValueError(f"it names members of {entry.name} that there are not")
