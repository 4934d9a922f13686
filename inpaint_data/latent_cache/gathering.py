"""A batch of an opened cache: what is in the columns from there, and all else from the tars."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from inpaint_data.latent_cache.assembling import Described, Drawing, Parts, assembled
from inpaint_data.latent_cache.contents import Content
from inpaint_data.latent_cache.index import NOWHERE, Place
from inpaint_data.latent_cache.members import MEMBERS, masks_member
from inpaint_data.latent_cache.merged import Header, Rows
from inpaint_data.latent_cache.opened_cache import OpenedCache
from inpaint_data.latent_cache.record import RECORD
from inpaint_data.latent_cache.record_columns import WORDS
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


def gathered(cache: OpenedCache, numbers: npt.NDArray[np.int64], wanted: Wanted, drawing: Drawing) -> dict[str, Any]:
    """The entries of a `Batch` of the samples of those numbers, which have one size.

    Raises:
        CacheError, ShardError, OSError: a sample cannot be read, or is damaged.
    """
    ends = cache.merged.ends
    shards = np.searchsorted(ends, numbers, side="right")
    rows = cache.rows(numbers, np.unique(shards).tolist())
    merged, header = cache.merged, cache.merged.header
    within = (numbers - ends[shards] + np.array(header.samples)[shards]).tolist()
    files = [cache.files[shard] for shard in shards.tolist()]
    names, keys = [header.shards[shard] for shard in shards.tolist()], merged.keys(rows)
    variants = _variants(wanted.variant, names, keys, header.variants, drawing)
    in_columns = all(header.in_columns[shard] for shard in set(shards.tolist()))
    needed = [*wanted.arrays, masks_member(header.members), RECORD]
    carried = {variant: sorted(wanted.carried_names(variant)) for variant in set(variants)}
    places = _places(header, rows, {*needed, *(name for of_one in carried.values() for name in of_one)})
    members: list[dict[str, Content]] = []
    for file, row, variant, of_row in zip(files, within, variants, places, strict=True):
        assert file is not None  # or it would have no samples
        chosen = {name: of_row[name] for name in (*needed, *carried[variant]) if name in of_row}
        members.append(file.members(row, chosen))
    if in_columns:
        described = _described(header, cache, rows, variants, numbers)
    else:
        records = [of_one[RECORD].whole() for of_one in members]
        described = Described.of(
            [MEMBERS[RECORD].read(data, variant, 0) for data, variant in zip(records, variants, strict=True)]
        )
    in_all = [name for name in needed if all(name in of_one for of_one in members)]
    parts = Parts(
        keys,
        names,
        variants,
        [header.variants] * len(keys),
        described,
        {name: [of_one[name] for of_one in members] for name in in_all},
        [_carried(of_one, variant, wanted) for of_one, variant in zip(members, variants, strict=True)],
    )
    return assembled(parts, drawing)


def _variants(variant: Variant, shards: Sequence[str], keys: Sequence[str], count: int, drawing: Drawing) -> list[int]:
    if variant != "draw":
        return [variant] * len(keys)
    if count == 1:
        return [0] * len(keys)
    ids = list(map(sample_id, shards, keys))
    return draws_for(drawing.seed, ids, drawing.epoch, "variant", count)


def _places(header: Header, rows: Rows, names: Collection[str]) -> list[dict[str, Place]]:
    """Of each sample the places of the members that it has of those named."""
    columns = [(name, header.members.index(name)) for name in names if name in header.members]
    table = rows["places"].tolist()
    return [
        {name: Place(*of_row[column]) for name, column in columns if of_row[column][0] != NOWHERE.offset}
        for of_row in table
    ]


def _described(
    header: Header, cache: OpenedCache, rows: Rows, variants: Sequence[int], numbers: npt.NDArray[np.int64]
) -> Described:
    chosen = np.asarray(variants)
    drawn = rows["variants"][np.arange(len(rows)), chosen]
    window, generator, edits = (
        [header.words[name][number] for number in drawn[:, at].tolist()] for at, name in enumerate(WORDS, 1)
    )
    sizes = np.array(header.sizes, np.int64)
    return Described(
        cache.merged.captions(rows, chosen),
        rows["cuts"],
        sizes[cache.merged.buckets[numbers]],
        drawn[:, 0],
        window,
        generator,
        [list(words) for words in edits],
        header.has_posterior,
        frozenset(header.means),
    )


def _carried(members: Mapping[str, Content], variant: int, wanted: Wanted) -> dict[str, Any]:
    """The members that a sample carries, decoded."""
    if not wanted.carried:
        return {}
    held = carried_of(members.keys() - MEMBERS.keys(), variant)
    values: dict[str, Any] = {name: members[member].whole() for name, member in held.items()}
    if wanted.decoders is not None:
        return {name: wanted.decoders[name](data) for name, data in values.items()}
    return values
