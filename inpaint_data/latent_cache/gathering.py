"""A batch of an opened cache: what is in the columns from there, and all else from the tars."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from inpaint_data.latent_cache.assembling import Described, Drawing, Parts, assembled
from inpaint_data.latent_cache.contents import Content, Held, InFiles
from inpaint_data.latent_cache.index import Place
from inpaint_data.latent_cache.members import MEMBERS, masks_member
from inpaint_data.latent_cache.merged import Header, Merged, Rows
from inpaint_data.latent_cache.opened_cache import OpenedCache
from inpaint_data.latent_cache.record import RECORD
from inpaint_data.latent_cache.record_columns import WORDS
from inpaint_data.latent_cache.shard_files import OPEN_FILES, ShardFile
from inpaint_data.latent_cache.variants import carried_of, is_of_variant, of_variant
from inpaint_data.seeding import draws_for, sample_id

Decoder = Callable[[bytes], Any]
Variant = int | Literal["draw"]


@dataclass(frozen=True)
class Wanted:
    """What a batch shall have of its samples.

    Args:
        arrays: the members of latents and pictures.
        carried: all members that any sample carries.
        decoders: of those that are wanted; None for all, as bytes.
        variant: which of the masks.
    """

    arrays: Sequence[str]
    carried: Collection[str]
    decoders: Mapping[str, Decoder] | None
    variant: Variant

    def carried_names(self, variant: int) -> set[str]:
        """The members to read of what samples carry."""
        if not self.carried:
            return set()
        wanted = self.carried if self.decoders is None else self.decoders.keys()
        own = {of_variant(variant, name) for name in wanted}
        return ({name for name in wanted if not is_of_variant(name)} | own) & set(self.carried)


@dataclass(frozen=True)
class _Chosen:
    """The samples of a batch: their rows, and of each its tar, its row there and the variant that is read."""

    rows: Rows
    files: list[ShardFile]
    within: list[int]
    variants: list[int]


def gathered(cache: OpenedCache, numbers: npt.NDArray[np.int64], wanted: Wanted, drawing: Drawing) -> dict[str, Any]:
    """The entries of a `Batch` of the samples of those numbers, which have one size.

    Raises:
        CacheError, ShardError, OSError: a sample cannot be read, or is damaged.
    """
    shards = np.searchsorted(cache.merged.ends, numbers, side="right")
    those = sorted(set(shards.tolist()))
    rows = cache.rows(numbers, those)
    merged, header = cache.merged, cache.merged.header
    files, of_shards = {shard: cache.file_of(shard) for shard in those}, shards.tolist()
    within = (numbers - merged.starts[shards]).tolist()
    shard_names, keys = [header.shards[shard] for shard in of_shards], merged.keys(rows)
    variants = _variants(wanted.variant, shard_names, keys, header.variants, drawing)
    chosen = _Chosen(rows, [files[shard] for shard in of_shards], within, variants)
    needed = [*wanted.arrays, masks_member(header.members), RECORD]
    of_variants = {variant: wanted.carried_names(variant) for variant in set(variants)}
    with cache.lock:  # so that what is open stays open
        contents = _contents(header, chosen, needed, of_variants)
        each = list(enumerate(variants))
        if all(header.in_columns[shard] for shard in those):
            described = _described(merged, chosen, numbers)
        else:
            record = contents[RECORD]
            described = Described.of([_record(record.whole(at), variant) for at, variant in each])
        parts = Parts(
            keys=keys,
            shards=shard_names,
            variants=variants,
            counts=[header.variants] * len(keys),
            described=described,
            contents={name: contents[name] for name in needed if name in contents and min(contents[name].sizes) >= 0},
            carried=[
                _carried(contents, at, variant, names, wanted.decoders) if (names := of_variants[variant]) else {}
                for at, variant in each
            ],
        )
        return assembled(parts, drawing)


def _contents(
    header: Header, chosen: _Chosen, needed: Sequence[str], of_variants: Mapping[int, set[str]]
) -> dict[str, Content]:
    """Where the bytes of members are; a size of -1 is of one that a sample does not have.

    Args:
        needed: members of all samples.
        of_variants: what samples carry, by the variant that is read of them.
    """
    names = [*needed, *set[str]().union(*of_variants.values())]
    places = chosen.rows["places"]
    columns = {name: places[:, header.members.index(name)] for name in names if name in header.members}
    different = list(dict.fromkeys(chosen.files))
    if len(different) < OPEN_FILES:
        numbers = {file: file.open() for file in different}
        files = [number for file in chosen.files if (number := numbers[file]) is not None]
        if len(files) == len(chosen.files) and all(map(ShardFile.has_read, chosen.files, chosen.within)):
            return {
                name: InFiles(files, column[:, 0].tolist(), column[:, 1].tolist()) for name, column in columns.items()
            }
    tables = {name: column.tolist() for name, column in columns.items()}
    members = []
    for at, (file, row, variant) in enumerate(zip(chosen.files, chosen.within, chosen.variants, strict=True)):
        its = [name for name in (*needed, *of_variants[variant]) if name in tables and tables[name][at][0] >= 0]
        members.append(file.members(row, {name: Place(*tables[name][at]) for name in its}))
    return {name: Held([of_one.get(name) for of_one in members]) for name in columns}


def _record(data: bytes, variant: int) -> dict[str, Any]:
    record: dict[str, Any] = MEMBERS[RECORD].read(data, variant, 0)
    return record


def _variants(variant: Variant, shards: Sequence[str], keys: Sequence[str], count: int, drawing: Drawing) -> list[int]:
    if variant != "draw":
        return [variant] * len(keys)
    if count == 1:
        return [0] * len(keys)
    ids = list(map(sample_id, shards, keys))
    return draws_for(drawing.seed, ids, drawing.epoch, "variant", count)


def _described(merged: Merged, chosen: _Chosen, numbers: npt.NDArray[np.int64]) -> Described:
    header, rows, variants = merged.header, chosen.rows, np.asarray(chosen.variants)
    drawn = rows["variants"][np.arange(len(rows)), variants]
    window, generator, edits = (
        [header.words[name][number] for number in drawn[:, at].tolist()] for at, name in enumerate(WORDS, 1)
    )
    return Described(
        caption=merged.captions(rows, variants),
        cuts=rows["cuts"],
        target_size=merged.sizes[merged.buckets[numbers]],
        offset=drawn[:, 0],
        window=window,
        generator=generator,
        edits=[list(words) for words in edits],
        has_posterior=header.has_posterior,
        means=frozenset(header.means),
    )


def _carried(
    contents: Mapping[str, Content],
    sample: int,
    variant: int,
    names: Collection[str],
    decoders: Mapping[str, Decoder] | None,
) -> dict[str, Any]:
    """The members that a sample carries of those named, decoded."""
    there = [name for name in names if contents[name].sizes[sample] >= 0]
    if not there:
        return {}
    held = carried_of(there, variant)
    values: dict[str, Any] = {name: contents[member].whole(sample) for name, member in held.items()}
    if decoders is not None:
        return {name: decoders[name](data) for name, data in values.items()}
    return values
