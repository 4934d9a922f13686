"""All shards of a cache as columns: one row for each sample, found without a look at any other."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import CacheError
from inpaint_data.latent_cache.format import Quarantined, Sidecar, shards_sha256
from inpaint_data.latent_cache.record_columns import WORDS, RecordColumns

Rows = npt.NDArray[Any]  # of `row_type`
MOST_TEXT = 2**32  # bytes of a shard's keys and captions, as numbers of 32 bits


def row_type(members: int, variants: int) -> np.dtype[Any]:
    """What is known of a sample: the places of its members, see `Place`, its record, and where its texts are.

    `text` is where its key begins, the caption of each variant a start behind that and a length.
    """
    return np.dtype(
        [
            ("places", "<i8", (members, 3)),
            ("text", "<i8"),
            ("key", "<u4"),
            ("captions", "<u4", (variants, 2)),
            ("cuts", "<i4", (7,)),
            ("variants", "<i4", (variants, 4)),
        ]
    )


class Broken(ValueError):
    """What an index has is not what was written into it."""


@dataclass
class Header:
    """What is known of the shards, and what all samples share. Lists are of the shards, in their order.

    Attributes:
        fingerprint: of the cache.
        variants: K of the columns.
        shards: names of the tars, those without samples too; sidecars the hash of each one's sidecar.
        tar_sizes, tar_sha256: of the tars.
        samples: how many each has; ends of their rows and of their texts, and the checksum of both.
        in_columns: whether the records of its samples are in the columns.
        members: names, of all shards; members_of the numbers of those that a shard has.
        sizes: (height, width) of each bucket, in order; bucket_counts how many samples it has.
        words: see `RecordColumns`, as has_posterior and means.
    """

    fingerprint: str
    variants: int
    shards: list[str]
    sidecars: list[str]
    tar_sizes: list[int]
    tar_sha256: list[str]
    samples: list[int]
    text_ends: list[int]
    crc32: list[int]
    in_columns: list[bool]
    members: list[str]
    members_of: list[list[int]]
    sizes: list[list[int]]
    bucket_counts: list[int]
    words: dict[str, list[Any]]
    has_posterior: bool
    means: list[str]

    @cached_property
    def shards_sha256(self) -> str:
        return shards_sha256(dict(zip(self.shards, self.sidecars, strict=True)))


class Merged:
    """The columns of a cache.

    Attributes:
        header: what is known of its shards.
        rows: (N,) of `row_type`; those of a shard beside each other.
        buckets: (N,) int32, of each sample.
        text: keys and captions, as UTF-8.
        starts, ends: (S,) first row of each shard, and the one behind its last.
        sizes: (S, 2) the (height, width) of each bucket.
        mapped_from: the file that they are mapped from; None where they are in memory.
    """

    def __init__(self, header: Header, rows: Rows, buckets: npt.NDArray[np.int32], text: Any, left_out: Any) -> None:
        self.header, self.rows, self.buckets, self.text, self._left_out = header, rows, buckets, text, left_out
        self.ends = np.cumsum([0, *header.samples])[1:]
        self.starts = self.ends - np.array(header.samples, np.int64)
        self.sizes = np.array(header.sizes, np.int64).reshape(-1, 2)
        self._trusted = np.zeros(len(header.shards), bool)
        self.mapped_from: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        if self.mapped_from is None:
            return vars(self)
        return {"mapped_from": self.mapped_from, "header": self.header}  # another process maps it too

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["mapped_from"] is not None:
            from inpaint_data.latent_cache.merged_file import read_index  # which knows this module

            index = read_index(state["mapped_from"])
            if index is None or index.merged.header != state["header"]:
                raise CacheError(f"{state['mapped_from']}: the cache was changed after it was opened; open it again")
            state = vars(index.merged)
        vars(self).update(state)

    def __len__(self) -> int:
        return len(self.rows)

    def all_left_out(self) -> list[list[Any]]:
        """[shard, whether on purpose, the fields of its `Quarantined`] of each sample that is not in the cache."""
        found: list[list[Any]] = self._left_out() if callable(self._left_out) else self._left_out
        return found

    def left_out(self, on_purpose: bool) -> list[tuple[str, Quarantined]]:
        """(shard, entry) of the samples that were left out."""
        return [(shard, Quarantined(**fields)) for shard, why, fields in self.all_left_out() if why == on_purpose]

    def extent(self, shard: int) -> tuple[int, int, int, int]:
        """First row and end of a shard's, first byte and end of its texts."""
        end, text_end = int(self.ends[shard]), self.header.text_ends[shard]
        return end - self.header.samples[shard], end, self.header.text_ends[shard - 1] if shard else 0, text_end

    def trust(self) -> None:
        """Take all as it is, having made it."""
        self._trusted[:] = True

    def check(self, shards: Sequence[int]) -> None:
        """Compare the rows of some shards with their checksums, once.

        Raises:
            Broken: they are not what was written, or say what cannot be.
        """
        for shard in shards:
            if not self._trusted[shard]:
                self._check(shard)
                self._trusted[shard] = True

    def _check(self, shard: int) -> None:
        start, end, text_start, text_end = self.extent(shard)
        rows, header = self.rows[start:end], self.header
        if self._crc32(shard) != header.crc32[shard]:
            raise Broken(f"the rows of {header.shards[shard]} do not have their checksum")
        offsets, sizes = rows["places"][..., 0], rows["places"][..., 1]
        there = offsets >= 0
        fits = np.where(there, (sizes >= 0) & (sizes <= header.tar_sizes[shard] - offsets), (offsets == -1))
        texts = (rows["text"] >= text_start) & (rows["text"] + rows["key"] <= text_end)
        captions = rows["text"][:, None] + rows["captions"][..., 0] + rows["captions"][..., 1] <= text_end
        words = [
            (numbers >= 0) & (numbers < max(1, len(header.words[name])))
            for name, numbers in zip(WORDS, np.moveaxis(rows["variants"][..., 1:], -1, 0), strict=True)
        ]
        if not (fits.all() and texts.all() and captions.all() and all(each.all() for each in words)):
            raise Broken(f"the rows of {header.shards[shard]} say what cannot be")

    def _crc32(self, shard: int) -> int:
        start, end, text_start, text_end = self.extent(shard)
        rows = np.ascontiguousarray(self.rows[start:end])
        return zlib.crc32(self.text[text_start:text_end], zlib.crc32(rows.view(np.uint8).data))

    def note_checksums(self) -> None:
        """Write the checksums of all shards into the header."""
        self.header.crc32 = [self._crc32(shard) for shard in range(len(self.header.shards))]

    def keys(self, rows: Rows) -> list[str]:
        """The keys of some rows."""
        text = self.text
        return [
            str(text[start : start + length], "utf-8", "surrogatepass")
            for start, length in zip(rows["text"].tolist(), rows["key"].tolist(), strict=True)
        ]

    def captions(self, rows: Rows, variants: npt.NDArray[Any]) -> list[str]:
        """The caption of each row's variant."""
        chosen = rows["captions"][np.arange(len(rows)), variants].astype(np.int64)
        starts = (rows["text"] + chosen[:, 0]).tolist()
        text = self.text
        return [
            str(text[start : start + length], "utf-8", "surrogatepass")
            for start, length in zip(starts, chosen[:, 1].tolist(), strict=True)
        ]

    def places(self, rows: Rows, name: str) -> npt.NDArray[np.int64]:
        """(B, 3), the `Place` of a member in each row."""
        places: npt.NDArray[np.int64] = rows["places"][:, self.header.members.index(name)]
        return places


def merge(sidecars: Sequence[Sidecar], fingerprint: str) -> Merged:
    """The columns of a cache's sidecars, in their order."""
    first = next((sidecar for sidecar in sidecars if sidecar.keys), None)
    variants = first.variants if first else 1
    members = sorted({name for sidecar in sidecars for name in sidecar.index.members})
    sides = np.concatenate([np.zeros((0, 2), np.int64), *(sidecar.index.target_sizes for sidecar in sidecars)])
    sizes, inverse = np.unique(sides, axis=0, return_inverse=True)
    buckets: npt.NDArray[np.int32] = inverse.reshape(-1).astype(np.int32)
    some = first.records if first else None
    merging = _Merging(members, variants, len(buckets), some)
    for sidecar in sidecars:
        merging.add(sidecar)
    header = Header(
        fingerprint,
        variants,
        [sidecar.shard for sidecar in sidecars],
        [sidecar.sha256 for sidecar in sidecars],
        [sidecar.output["size"] for sidecar in sidecars],
        [sidecar.output["sha256"] for sidecar in sidecars],
        [len(sidecar.keys) for sidecar in sidecars],
        merging.text_ends,
        [],
        merging.in_columns,
        members,
        [[members.index(name) for name in sorted(sidecar.index.members)] for sidecar in sidecars],
        sizes.tolist(),
        np.bincount(buckets, minlength=len(sizes)).tolist(),
        merging.words,
        bool(some and some.has_posterior),
        some.means if some else [],
    )
    merged = Merged(header, merging.rows, buckets, b"".join(merging.texts), list(_left_out(sidecars)))
    merged.trust()
    return merged


def _left_out(sidecars: Sequence[Sidecar]) -> Iterator[list[Any]]:
    for sidecar in sidecars:
        yield from ([sidecar.shard, False, vars(entry)] for entry in sidecar.quarantined)
        yield from ([sidecar.shard, True, vars(entry)] for entry in sidecar.filtered)


class _Merging:
    """The rows and texts of a cache, a sidecar at a time."""

    def __init__(self, members: list[str], variants: int, samples: int, first: RecordColumns | None) -> None:
        self.rows: Rows = np.zeros(samples, row_type(len(members), variants))
        self.texts: list[bytes] = []
        self.text_ends: list[int] = []
        self.in_columns: list[bool] = []
        self.words: dict[str, list[Any]] = {name: [] for name in WORDS}
        self._numbers: dict[str, dict[str, int]] = {name: {} for name in WORDS}
        self._members, self._variants, self._first, self._count = members, variants, first, 0

    def add(self, sidecar: Sidecar) -> None:
        index = sidecar.index
        rows = self.rows[self._count : self._count + len(index.keys)]
        self._count += len(rows)
        rows["places"] = -1
        for name, places in index.places.items():
            rows["places"][:, self._members.index(name)] = places
        records = sidecar.records if self._fits(sidecar) else None
        self.in_columns.append(records is not None)
        self._add_texts(rows, index.keys, records)
        if records is not None:
            rows["cuts"] = records.cuts
            rows["variants"][..., 0] = records.variants[..., 0]
            for at, name in enumerate(WORDS, 1):
                of_all = np.array([self._number(name, word) for word in records.words[name]], np.int32)
                rows["variants"][..., at] = of_all[records.variants[..., at]]

    def _fits(self, sidecar: Sidecar) -> bool:
        """Whether its records can be in the columns beside those of the first shard."""
        records, first = sidecar.records, self._first
        if records is None or first is None or sidecar.variants != self._variants:
            return False
        texts = (*sidecar.keys, *records.captions, *records.own_captions.values())
        is_small = 4 * sum(map(len, texts)) < MOST_TEXT
        return is_small and (records.has_posterior, records.means) == (first.has_posterior, first.means)

    def _add_texts(self, rows: Rows, keys: Sequence[str], records: RecordColumns | None) -> None:
        captions = records.captions if records is not None else [""] * len(keys)
        parts = list(map(_utf8, chain.from_iterable(zip(keys, captions, strict=True))))
        lengths = np.array(list(map(len, parts)), np.int64)
        start = self.text_ends[-1] if self.text_ends else 0
        starts = start + np.cumsum(lengths) - lengths
        rows["text"], rows["key"] = starts[::2], lengths[::2]
        rows["captions"][..., 0], rows["captions"][..., 1] = lengths[::2, None], lengths[1::2, None]
        end = start + int(lengths.sum())
        for (row, variant), caption in (records.own_captions if records is not None else {}).items():
            parts.append(_utf8(caption))
            rows["captions"][row, variant] = end - int(rows["text"][row]), len(parts[-1])
            end += len(parts[-1])
        self.texts += parts
        self.text_ends.append(end)

    def _number(self, name: str, word: Any) -> int:
        numbers = self._numbers[name]
        if (key := repr(word)) not in numbers:
            numbers[key] = len(numbers)
            self.words[name].append(word)
        return numbers[key]


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
