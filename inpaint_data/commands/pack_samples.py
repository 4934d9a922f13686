"""The samples that are to be packed, and whether each one can be."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from inpaint_data.commands.pack_report import Packed
from inpaint_data.errors import SampleError
from inpaint_data.folders.files import IMAGES, LeftOut
from inpaint_data.folders.owners import Member
from inpaint_data.folders.pairing import Pairing
from inpaint_data.folders.parquet import ParquetRows
from inpaint_data.kinds import kind_of
from inpaint_data.pictures.formats import DECODERS, Decoding
from inpaint_data.pictures.images import image_size, stated_orientation
from inpaint_data.shards.reading import name_problem

ANY = Decoding(tuple(DECODERS), max_pixels=sys.maxsize)  # what is decoded is for the job to say
PICTURE = re.compile(rf"(?:(?P<role>mask|target|control|reference)(?:\.[0-9]+)?\.)?(?:{'|'.join(IMAGES)})")


@dataclass(frozen=True)
class PackSample:
    """A sample of the folder, not read yet."""

    root: Path
    key: str
    members: Mapping[str, Member]
    where: str = ""  # in a table
    problem: str | None = None

    def name(self, member: Member) -> str:
        if isinstance(member, bytes):
            return self.where or "of a table"
        return str(member.relative_to(self.root)) if member.is_relative_to(self.root) else str(member)

    def listed(self) -> dict[str, str]:
        return {name: self.name(member) for name, member in self.members.items()}

    def read(self, left_out: list[LeftOut]) -> dict[str, bytes] | None:
        """Its members; None where it cannot be packed, and then each of its files is in `left_out`."""
        if self.problem:
            left_out.append(LeftOut(self.where, self.problem))
            return None
        data: dict[str, bytes] = {}
        problems: dict[str, str] = {}
        sizes: dict[str, tuple[int, int]] = {}
        for name, member in self.members.items():
            try:
                data[name] = member if isinstance(member, bytes) else member.read_bytes()
                if PICTURE.fullmatch(name) and (size := _size(data[name])):
                    sizes[name] = size
            except SampleError as error:
                problems[name] = str(error)
            except OSError as error:
                problems[name] = f"it cannot be read ({error.strerror}); make it readable"
        image = next((name for name in sizes if name in IMAGES), None)
        fitting = [] if image is None else [sizes[image]]
        if image is not None and (stated_orientation(data[image], ANY) or 1) >= 5:
            fitting.append(sizes[image][::-1])  # whether it is of the stored pixels is for the job to tell
        for name, size in sizes.items():
            match = PICTURE.fullmatch(name)
            if match and match["role"] in ("mask", "target") and fitting and size not in fitting:
                problems[name] = f"the {match['role']} has another size than its image; give it the image's size"
        if not problems:
            return data
        for name, member in self.members.items():
            if isinstance(member, Path):
                reason = problems.get(name, f"its {_word(next(iter(problems)))} cannot be packed")
                left_out.append(LeftOut(self.name(member), reason))
        if self.where:
            left_out.append(LeftOut(self.where, "; ".join(f"{_word(name)}: {why}" for name, why in problems.items())))
        return None


def _word(member: str) -> str:
    return "image" if member in IMAGES else {"txt": "caption"}.get(member, member.partition(".")[0])


def _size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a picture; None of one that only an extra decodes.

    Raises:
        SampleError: it is not a picture.
    """
    try:
        return image_size(data, ANY)
    except SampleError:
        if kind_of(data) != "heic":
            raise
        return None


def samples_of(root: Path, pairing: Pairing, packed: Packed) -> list[PackSample]:
    """The samples of a folder, but those whose keys cannot be in a shard."""
    packed.layout, packed.passed_over, packed.notes = pairing.layout, pairing.passed_over, pairing.notes
    packed.left_out += pairing.left_out
    samples = []
    for key, members in pairing.samples.items():
        sample = PackSample(root, key, members)
        if problem := name_problem(key):
            packed.left_out += [LeftOut(sample.name(member), problem) for member in members.values()]
        else:
            samples.append(sample)
    return samples


@dataclass(frozen=True)
class _Rows:
    """The samples of tables, which are read anew by each iteration."""

    rows: ParquetRows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PackSample]:
        for row in self.rows:
            yield PackSample(Path(), row.key, row.members, row.where, row.problem)


Collected = list[PackSample] | _Rows


def rows_of(rows: ParquetRows, packed: Packed) -> Collected:
    """The samples of parquet tables."""
    if rows.unread:
        packed.notes.append(f"these columns are not packed: {', '.join(rows.unread)}")
    return _Rows(rows)
