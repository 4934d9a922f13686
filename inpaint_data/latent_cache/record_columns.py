"""The records of a shard's samples as columns, so that reading a batch parses no JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int32]
CUTS = ("original_size", "resized_size", "crop_top_left")
WORDS = ("window", "generator", "edits")  # of a variant, each a number in the columns and a word in a table


class RecordColumns:
    """What `inpaint.json` says of N samples with K variants, but for the coverages and what the index says already.

    Attributes:
        captions: N texts.
        cuts: (N, 7) int32: height and width of `original_size` and `resized_size`, top and left of `crop_top_left`, and
            `flip`.
        variants: (N, K, 4) int32: offset, and the numbers of window, generator and edits in `words`.
        words: of each of `WORDS` the different ones.
        own_captions: (row, variant) -> the caption of a variant that has one of its own.
        has_posterior, means: of all samples, see `Record`.
    """

    def __init__(
        self,
        captions: list[str],
        cuts: Numbers,
        variants: Numbers,
        words: dict[str, list[Any]],
        own_captions: dict[tuple[int, int], str],
        has_posterior: bool,
        means: list[str],
    ) -> None:
        self.captions, self.cuts, self.variants, self.words = captions, cuts, variants, words
        self.own_captions, self.has_posterior, self.means = own_captions, has_posterior, means

    @classmethod
    def of(cls, records: Sequence[bytes]) -> "RecordColumns | None":
        """From the bytes of each sample's record; None where there are none, or one does not fit into columns."""
        try:
            return cls._of([json.loads(data) for data in records]) if records else None
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None

    @classmethod
    def _of(cls, records: Sequence[dict[str, Any]]) -> "RecordColumns | None":
        first = records[0]
        words: dict[str, dict[str, int]] = {name: {} for name in WORDS}
        cuts: list[list[int]] = []
        variants: list[list[list[int]]] = []
        own: dict[tuple[int, int], str] = {}
        for row, record in enumerate(records):
            cuts.append([*(side for name in CUTS for side in record[name]), record["flip"]])
            variants.append([])
            for number, variant in enumerate(record["variants"]):
                of_words = [words[name].setdefault(json.dumps(variant[name]), len(words[name])) for name in WORDS]
                variants[-1].append([variant["offset"], *of_words])
                if "caption" in variant:
                    own[row, number] = variant["caption"]
        columns = cls(
            [record["caption"] for record in records],
            np.array(cuts, np.int32),
            np.array(variants, np.int32),
            {name: [json.loads(word) for word in words[name]] for name in WORDS},
            own,
            first["has_posterior"],
            first.get("means", []),
        )
        is_whole = all(columns.agrees(row, record) for row, record in enumerate(records))
        return columns if is_whole and not columns._problem(len(records)) else None

    def agrees(self, row: int, record: Mapping[str, Any]) -> bool:
        """Whether a record is the one that the columns have of a sample, as far as they have it."""
        cuts, variants = self.cuts[row].tolist(), self.variants[row].tolist()
        mine: dict[str, Any] = {
            "caption": self.captions[row],
            **{name: cuts[2 * at : 2 * at + 2] for at, name in enumerate(CUTS)},
            "flip": bool(cuts[6]),
            "has_posterior": self.has_posterior,
            **({"means": self.means} if self.means else {}),
            "variants": [
                {"offset": offset, **{name: self.words[name][at] for name, at in zip(WORDS, numbers, strict=True)}}
                | ({"caption": self.own_captions[row, k]} if (row, k) in self.own_captions else {})
                for k, (offset, *numbers) in enumerate(variants)
            ],
        }
        theirs = {name: value for name, value in record.items() if name != "target_size"}
        theirs["variants"] = [
            {name: value for name, value in variant.items() if name != "coverage"} for variant in record["variants"]
        ]
        return mine == theirs

    def to_json(self) -> dict[str, Any]:
        own = [[row, variant, caption] for (row, variant), caption in sorted(self.own_captions.items())]
        return {
            "caption": self.captions,
            "cuts": self.cuts.tolist(),
            "variants": self.variants.tolist(),
            "words": self.words,
            "own_captions": own,
            "has_posterior": self.has_posterior,
            "means": self.means,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], count: int, variants: int) -> "RecordColumns":
        """The columns that `to_json` encoded, of `count` samples.

        Raises:
            ValueError, TypeError, KeyError: they are wrong, as those from a stranger may be.
        """
        columns = cls(
            fields["caption"],
            _numbers(fields["cuts"]),
            _numbers(fields["variants"]),
            fields["words"],
            {(row, variant): caption for row, variant, caption in fields["own_captions"]},
            fields["has_posterior"],
            fields["means"],
        )
        problem = columns._problem(count)
        if not problem and columns.variants.shape[1] != variants:
            problem = f"have {columns.variants.shape[1]} variants, though it says {variants} variants"
        if problem:
            raise ValueError(f"its records {problem}")
        return columns

    def _problem(self, count: int) -> str:
        """What is wrong with the columns, of `count` samples; "" if nothing is."""
        texts = [*self.captions, *self.own_captions.values(), *self.means]
        if not isinstance(self.captions, list) or not all(isinstance(text, str) for text in texts):
            return "have a caption that is not a text"
        if not (len(self.captions) == count and self.cuts.shape == (count, 7)):
            return f"are not those of {count} samples"
        if self.variants.ndim != 3 or self.variants.shape[::2] != (count, 4) or not self.variants.shape[1]:
            return f"do not have the variants of {count} samples"
        if type(self.has_posterior) is not bool or self.cuts.min() < 0 or self.cuts[:, 6].max() > 1:
            return "have numbers that cannot be"
        for at, name in enumerate(WORDS):
            numbers, of_name = self.variants[..., at + 1], self.words[name]
            if numbers.min() < 0 or numbers.max() >= len(of_name) or not all(_is_word(name, word) for word in of_name):
                return f"have a {name} that cannot be"
        if not all(0 <= row < count and 0 <= number < self.variants.shape[1] for row, number in self.own_captions):
            return "have captions of variants that there are not"
        return ""


def _is_word(name: str, word: Any) -> bool:
    if name == "edits":
        return isinstance(word, list) and all(isinstance(each, str) for each in word)
    return isinstance(word, str)


def _numbers(value: Any) -> Numbers:
    """Raises ValueError if it is no array of whole numbers."""
    array = np.array(value)
    if array.dtype.kind != "i" or (array.size and not -(2**31) <= array.min() <= array.max() < 2**31):
        raise ValueError("its records have numbers that cannot be")
    return array.astype(np.int32)
