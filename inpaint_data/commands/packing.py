"""Packing: a folder of images to shards."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inpaint_data.commands.pack_output import Output
from inpaint_data.commands.pack_report import SHOWN, Packed, PackProgress
from inpaint_data.errors import SampleError, UsageError
from inpaint_data.folders.files import IMAGES, LeftOut, shard_prefix
from inpaint_data.folders.owners import Member
from inpaint_data.folders.pairing import Pairing, pair_folder
from inpaint_data.pictures.images import image_size
from inpaint_data.shards.reading import name_problem
from inpaint_data.shards.stores import local_path

PICTURE = re.compile(rf"(?:(?P<role>mask|target|control)(?:\.[0-9]+)?\.)?(?:{'|'.join(IMAGES)})")
# How files begin that are packed as they are, whether or not this version can decode them: GIF, BMP, TIFF, and those
# of the ISO base media format, AVIF and HEIC, whose brand follows a box size.
_SIGNATURE = re.compile(
    rb"GIF8[79]a|BM.{12}|II\*\0|MM\0\*|.{4}ftyp(?:avif|avis|hei[cfmsx]|hev[cx]|mif1|msf1)", re.DOTALL
)
MIN_BYTES = 26  # of the shortest of those headers: BMP's


def pack(
    folder: str,
    out: str,
    shard_size: int = 1000,
    *,
    layout: str = "auto",
    masks_from: str | None = None,
    targets_from: str | None = None,
    captions_from: str | None = None,
    on_bad: Literal["quarantine", "raise"] = "quarantine",
    prefix: str | None = None,
    append: bool = False,
    dry_run: bool = False,
) -> Packed:
    """Pack the images of a folder and its subfolders, with their masks and captions, into `out/PREFIX-000000.tar` ….

    Which files belong together: docs/layouts.md. Bytes are packed as they are, by the order of the keys, so the same
    folder gives the same shards. What cannot be packed is left out and listed, also in `out/PREFIX-left_out.txt`; a
    sample whose mask or target cannot be is left out whole, for it would be another sample.

    Args:
        folder: the folder of the images.
        out: the folder or the URL for the shards.
        shard_size: samples in each.
        layout: how the folder is laid out.
        masks_from: the folder of the masks.
        targets_from: the folder of the targets.
        captions_from: the table with the captions, or the column of a table.
        on_bad: "raise" refuses a folder with a file that should be packed and cannot be; nothing is written then.
        prefix: what shards are called; None for the folder's name.
        append: add what is not in the shards of that name yet, as new shards; those that are there stay as they are.
        dry_run: write nothing, read no image, and tell what would be packed.

    Raises:
        UsageError: an argument, or a folder that has two readings.
        SampleError: nothing could be packed, or with `on_bad` "raise" not all; its `summary` is the `Packed`.
        ShardError: the store of `out` cannot be written to.
    """
    if shard_size < 1:
        raise UsageError(f"shard_size is {shard_size}; give at least 1")
    root = local_path(folder)
    output = Output(out, _prefix(root, prefix))
    existing = output.existing()
    if existing and not append:
        raise UsageError(
            f"{out} already has shards ({re.split('[/]', existing[0])[-1]}); add what is new with --append, choose "
            "another --prefix or another folder, or delete them"
        )
    pairing = pair_folder(root, layout, masks_from, targets_from, captions_from, without=output.folder)
    packed = Packed(
        pairing.layout,
        left_out=pairing.left_out,
        passed_over=pairing.passed_over,
        notes=pairing.notes,
        dry_run=dry_run,
        is_appended=append,
    )
    samples = _named(root, pairing, packed)
    if append and existing:
        samples = list(_new(samples, output, existing, packed))
    if dry_run:
        for sample in samples:
            packed.count(sample.members)
        packed.examples = [(sample.key, sample.listed()) for sample in samples[:SHOWN]]
        return packed
    if on_bad == "raise":
        for sample in samples:
            sample.read(packed.left_out)
        if bad := [left for left in packed.left_out if left.is_bad]:
            raise _failed(packed, bad, "nothing is packed")
    _write(samples, output, existing, shard_size, packed)
    packed.left_out.sort(key=lambda left: (left.name, left.reason))
    if not packed.shards and not packed.known:
        raise _failed(packed, packed.left_out, "no image could be packed")
    if packed.left_out:
        output.write_text(f"{output.prefix}-left_out.txt", packed.left_out_text())
    return packed


def _prefix(root: Path, prefix: str | None) -> str:
    """A name for shards without what patterns and shells take for their own."""
    if prefix is not None:
        if not re.fullmatch(r"\w[\w.-]{0,99}", prefix):
            raise UsageError(f"prefix: {prefix!r} is not a name of letters, digits, _, . and -; choose another")
        return prefix
    return shard_prefix(root)


def _failed(packed: Packed, left_out: list[LeftOut], what: str) -> SampleError:
    listed = "; ".join(f"{left.name}: {left.reason}" for left in left_out[:10])
    more = f" … and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    error = SampleError(f"{what}; fix these or move them out: {listed}{more}")
    error.summary = packed  # type: ignore[attr-defined]
    return error


@dataclass(frozen=True)
class _Sample:
    """A sample of the folder, not read yet."""

    root: Path
    key: str
    members: Mapping[str, Member]

    def name(self, member: Member) -> str:
        if isinstance(member, bytes):
            return "of a table"
        return str(member.relative_to(self.root)) if member.is_relative_to(self.root) else str(member)

    def listed(self) -> dict[str, str]:
        return {name: self.name(member) for name, member in self.members.items()}

    def read(self, left_out: list[LeftOut]) -> dict[str, bytes] | None:
        """Its members; None where it cannot be packed, and then each of its files is in `left_out`."""
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
        image = next((size for name, size in sizes.items() if name in IMAGES), None)
        for name, size in sizes.items():
            match = PICTURE.fullmatch(name)
            if match and match["role"] in ("mask", "target") and image not in (None, size):
                problems[name] = f"the {match['role']} has another size than its image; give it the image's size"
        if not problems:
            return data
        for name, member in self.members.items():
            if isinstance(member, Path):
                reason = problems.get(name, f"its {_word(next(iter(problems)))} cannot be packed")
                left_out.append(LeftOut(self.name(member), reason))
        return None


def _word(member: str) -> str:
    return "image" if member in IMAGES else {"txt": "caption"}.get(member, member.partition(".")[0])


def _size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a picture; None of a whole header that this version cannot decode.

    Raises:
        SampleError: it is not a picture.
    """
    try:
        return image_size(data)
    except SampleError:
        if len(data) >= MIN_BYTES and _SIGNATURE.match(data):
            return None
        raise


def _named(root: Path, pairing: Pairing, packed: Packed) -> list[_Sample]:
    """The samples whose keys can be those of a shard."""
    samples = []
    for key, members in pairing.samples.items():
        sample = _Sample(root, key, members)
        if problem := name_problem(key):
            packed.left_out += [LeftOut(sample.name(member), problem) for member in members.values()]
        else:
            samples.append(sample)
    return samples


def _digest(members: Mapping[str, bytes]) -> bytes:
    """What tells the contents of a sample from all others."""
    lines = (f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in sorted(members.items()))
    return hashlib.sha256("\n".join(lines).encode()).digest()


def _new(samples: list[_Sample], output: Output, existing: list[str], packed: Packed) -> Iterator[_Sample]:
    """The samples that are not in the shards, under their own key or, renamed, under that of a file that is gone."""
    there = {sample.key: _digest(sample.members) for sample in output.samples(existing)}
    keys = {sample.key for sample in samples}
    gone = {digest: key for key, digest in there.items() if key not in keys}
    renamed = set()
    for sample in samples:
        if sample.key not in there and not gone:
            yield sample
            continue
        members = sample.read([])
        digest = None if members is None else _digest(members)
        if sample.key in there:
            packed.known += 1
            if digest != there[sample.key]:
                packed.changed.append(sample.key)
        elif digest in gone:
            packed.known += 1
            renamed.add(gone[digest])
            packed.notes.append(f"{sample.key} is in the shards as {gone[digest]}, and is not packed again")
        else:
            yield sample
    packed.removed = sorted(there.keys() - keys - renamed)


def _write(samples: list[_Sample], output: Output, existing: list[str], shard_size: int, packed: Packed) -> None:
    if not samples:
        return
    progress = PackProgress(len(samples))
    try:
        with output.writing(existing) as writer:
            for sample in samples:
                members = sample.read(packed.left_out)
                progress.image()
                if members is None:
                    continue
                writer.add(sample.key, members)
                packed.count(members)
                if writer.samples == shard_size:
                    writer.end_shard()
                    progress.shard(writer.shards[-1])
            if writer.samples:
                writer.end_shard()
                progress.shard(writer.shards[-1])
        packed.shards = writer.shards
    finally:
        progress.close()
