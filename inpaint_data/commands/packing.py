"""Packing: a folder of images to shards."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from inpaint_data.commands.pack_output import Output
from inpaint_data.commands.pack_report import SHOWN, Packed, PackProgress
from inpaint_data.commands.pack_samples import Collected, PackSample, rows_of, samples_of
from inpaint_data.errors import SampleError, UsageError
from inpaint_data.folders.files import IMAGES, LeftOut, first_of, shard_prefix, walk
from inpaint_data.folders.pairing import pair_folder
from inpaint_data.folders.parquet import ParquetRows, parquet_files
from inpaint_data.shards.stores import local_path

OnBad = Literal["quarantine", "raise"]


def pack(
    folder: str,
    out: str,
    shard_size: int = 1000,
    *,
    layout: str = "auto",
    masks_from: str | None = None,
    targets_from: str | None = None,
    captions_from: str | None = None,
    on_bad: OnBad = "quarantine",
    prefix: str | None = None,
    append: bool = False,
    dry_run: bool = False,
    columns: str | None = None,
) -> Packed:
    """Pack the images of a folder and its subfolders, with their masks and captions, into `out/PREFIX-000000.tar` ….

    Which files belong together: docs/layouts.md; of parquet tables that hold the images, what is in one row. Bytes are
    packed as they are, by the order of the keys, so the same folder gives the same shards. What cannot be packed is
    left out and listed, also in `out/PREFIX-left_out.txt`; a sample whose mask or target cannot be is left out whole,
    for it would be another sample.

    Args:
        folder: the folder of the images, or a parquet table that holds them.
        out: the folder or the URL for the shards.
        shard_size: samples in each.
        layout: how the folder is laid out.
        masks_from: the folder of the masks, or a pattern of their names beside their images, such as '*_hole.png'.
        targets_from: the same for targets.
        captions_from: the table with the captions, or the column of a table.
        on_bad: "raise" refuses a folder with a file that should be packed and cannot be; nothing is written then.
        prefix: what shards are called; None for the folder's name.
        append: add what is not in the shards of that name yet, as new shards; those that are there stay as they are.
        dry_run: write nothing, read no image, and tell what would be packed.
        columns: of parquet tables: which column holds what, "image=photo,mask=seg,caption=en".

    Raises:
        UsageError: an argument, or a folder that has two readings.
        SampleError: nothing could be packed, or with `on_bad` "raise" not all; its `summary` is the `Packed`.
        ShardError: the store of `out` cannot be written to.
    """
    if shard_size < 1:
        raise UsageError(f"shard_size is {shard_size}; give at least 1")
    if on_bad not in get_args(OnBad):
        raise UsageError(f"on_bad: {on_bad!r} is not one of {', '.join(get_args(OnBad))}")
    root = local_path(folder)
    output = Output(out, _prefix(root, prefix))
    existing = output.existing()
    if existing and not append and not dry_run:
        raise UsageError(
            f"{out} already has shards ({re.split('[/]', existing[0])[-1]}); add what is new with --append, choose "
            "another --prefix or another folder, or delete them"
        )
    tables = parquet_files(root, output.folder)
    if tables and first_of(root, ["tar"]):
        raise UsageError(
            f"{root} has tars beside its tables, as img2dataset writes them; they are shards: cache --shards"
        )
    packed = Packed(layout="parquet" if tables else layout, dry_run=dry_run, is_appended=append)
    samples: Collected
    if tables:
        if append or layout != "auto" or masks_from or targets_from or captions_from:
            raise UsageError(
                f"{root} has its pictures in parquet; they are told with --columns alone, and not appended"
            )
        samples = rows_of(ParquetRows(tables, columns), packed)
    elif columns:
        raise UsageError(f"columns: {root} is not parquet; columns of captions are told with --captions_from")
    else:
        _check_out(root, output)
        pairing = pair_folder(root, layout, masks_from, targets_from, captions_from, without=output.folder)
        samples = samples_of(root, pairing, packed)
    if append and existing:
        samples = list(_new(samples, output, existing, packed))
    if dry_run:
        _count(samples, packed)
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
    output.write_text(f"{output.prefix}-left_out.txt", packed.left_out_text())
    return packed


def _check_out(root: Path, output: Output) -> None:
    """Refuse a folder for the shards whose pictures would not be packed, or would hide behind the shards."""
    out = output.folder
    if out is None or not out.is_dir() or not root.is_dir():
        return
    if out.samefile(root):
        raise UsageError(f"out: {out} is the folder of the images; give shards a folder of their own")
    if root.resolve() in out.resolve().parents:
        pictures = [file.name for file in walk(out).files if file.extension in IMAGES]
        if pictures:
            raise UsageError(
                f"out: {out} is in {root} and has pictures ({pictures[0]}), which would not be packed; give shards a "
                "folder of their own"
            )


def _count(samples: Collected, packed: Packed) -> None:
    """What a dry run tells; of tables only as many rows are read as are shown."""
    packed.images = len(samples)
    for sample in samples if isinstance(samples, list) else islice(samples, SHOWN):
        if isinstance(samples, list):
            packed.count_members(sample.members)
        if len(packed.examples) < SHOWN:
            packed.examples.append((sample.key, sample.listed()))


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
    error.summary = packed
    return error


def _digest(members: Mapping[str, bytes]) -> bytes:
    """What tells the contents of a sample from all others."""
    lines = (f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in sorted(members.items()))
    return hashlib.sha256("\n".join(lines).encode()).digest()


def _new(samples: Collected, output: Output, existing: list[str], packed: Packed) -> Iterator[PackSample]:
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


def _write(samples: Collected, output: Output, existing: list[str], shard_size: int, packed: Packed) -> None:
    if not len(samples):
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
                packed.count(sample.key, members)
                if writer.samples == shard_size:
                    writer.end_shard()
                    progress.shard(writer.shards[-1])
            if writer.samples:
                writer.end_shard()
                progress.shard(writer.shards[-1])
        packed.shards = writer.shards
    finally:
        progress.close()
