"""The record of a cached sample, `inpaint.json`: what was drawn, and how the image was cut."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from inpaint_data.batch import SIZES, Batch
from inpaint_data.errors import SampleError
from inpaint_data.latent_cache.codec import Expected, Seen, Storing
from inpaint_data.latent_cache.encodings import json_bytes
from inpaint_data.masks.soft_border import to_levels

RECORD = "inpaint.json"
FIELDS = {"caption", *SIZES, "flip", "has_posterior", "variants"}
FIELDS_OF_VARIANT = {"offset", "window", "generator", "edits", "coverage"}


class Record:
    """What was drawn and how the image was cut, as JSON."""

    def takes(self, batch: Batch, storing: Storing) -> bool:  # noqa: ARG002 - of the protocol
        return True

    def write(self, batches: Sequence[Batch], row: int, storing: Storing) -> bytes:
        first: Any = batches[0]
        means = sorted(storing.means & first.keys()) if storing.has_posterior else []
        return json_bytes(
            ({"means": means} if means else {})
            | {
                "caption": first["caption"][row],
                **{name: first[name][row].tolist() for name in SIZES},
                "flip": bool(first["flip"][row]),
                "has_posterior": storing.has_posterior,
                "variants": [
                    {
                        "offset": int(batch["offset"][row]),
                        "window": batch["window"][row],
                        "generator": batch["generator"][row],
                        "edits": list(batch["edits"][row]),
                        "coverage": coverage_of(_levels(batch["mask"][row, 0])),
                    }
                    | ({} if batch["caption"][row] == first["caption"][row] else {"caption": batch["caption"][row]})
                    for batch in batches
                ],
            }
        )

    def read(self, data: bytes, variant: int, variants: int) -> dict[str, Any]:  # noqa: ARG002 - of the protocol
        record = json.loads(data)
        records = record.pop("variants")
        return {**record, **records[variant], "count": len(records)}

    def check(self, data: bytes, expected: Expected, seen: Seen) -> dict[str, Any]:
        try:
            record = json.loads(data)
            as_written = json_bytes(record)
        except (ValueError, RecursionError) as error:
            raise SampleError(f"not JSON ({error})") from None
        means = expected.means if expected.has_posterior else frozenset[str]()
        _check_fields(record, FIELDS | ({"means"} if means else set()), "it")
        if means and record["means"] != sorted(means):
            raise SampleError(f"its means are {record['means']}, the cache's {sorted(means)}")
        if not isinstance(record["caption"], str):
            raise SampleError("its caption is not a text")
        for name, least in (("original_size", 1), ("resized_size", 1), ("crop_top_left", 0)):
            if not _is_pair(record[name], least):
                raise SampleError(f"its {name} is {record[name]}, not two whole numbers of at least {least}")
        size, sizes = record["target_size"], expected.sizes
        if not _is_pair(size, 1) or tuple(size) not in sizes:
            known = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
            raise SampleError(f"its target_size is {size}, the cache has {known}")
        seen.size = (size[0], size[1])
        for name in ("flip", "has_posterior"):
            if type(record[name]) is not bool:
                raise SampleError(f"its {name} is {record[name]}, neither true nor false")
        if record["has_posterior"] != expected.has_posterior:
            raise SampleError(f"its has_posterior is {record['has_posterior']}, the cache's {expected.has_posterior}")
        self._check_variants(record["variants"], expected)
        if as_written != data:
            raise SampleError("is not laid out as the cache writes JSON")
        return dict(record)

    @staticmethod
    def _check_variants(variants: Any, expected: Expected) -> None:
        if not isinstance(variants, list) or len(variants) != expected.variants:
            raise SampleError(f"does not have the cache's {expected.variants} variants")
        low, high = expected.offsets
        for number, variant in enumerate(variants):
            own = {"caption"} if number and isinstance(variant, dict) and "caption" in variant else set[str]()
            _check_fields(variant, FIELDS_OF_VARIANT | own, f"variant {number}")
            if not isinstance(variant.get("caption", ""), str):
                raise SampleError(f"variant {number} has a caption that is not a text")
            offset, edits = variant["offset"], variant["edits"]
            if type(offset) is not int or not low <= offset <= high:
                raise SampleError(f"variant {number} has offset {offset}, outside the cache's {low}...{high}")
            if variant["window"] not in expected.windows:
                known = ", ".join(expected.windows)
                raise SampleError(
                    f"variant {number} has window {variant['window']!r}, which is not among the cache's {known}"
                )
            if not isinstance(variant["generator"], str) or not variant["generator"]:
                raise SampleError(f"variant {number} does not name its generator")
            if not isinstance(edits, list) or not all(isinstance(word, str) for word in edits):
                raise SampleError(f"variant {number} has edits {edits}, which is not a list of words")
            if type(variant["coverage"]) is not float:
                raise SampleError(f"variant {number} has coverage {variant['coverage']}, which is not a fraction")


def coverage_of(mask: npt.NDArray[Any]) -> float:
    """The mean of a mask, bool or uint8 levels, with 1 = repaint: for a hard mask the share that is repainted."""
    return round(float(mask.mean()) / (1 if mask.dtype == np.bool_ else 255), 6)


def _levels(mask: Tensor) -> npt.NDArray[Any]:
    """(H, W) bool, or uint8 levels if soft."""
    return to_levels(mask).numpy() if mask.is_floating_point() else mask.numpy()


def _check_fields(value: Any, fields: set[str], name: str) -> None:
    if not isinstance(value, dict):
        raise SampleError(f"{name} is not a JSON object")
    if value.keys() != fields:
        raise SampleError(f"{name} has the fields {', '.join(sorted(value))}, not {', '.join(sorted(fields))}")


def _is_pair(value: Any, least: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side >= least for side in value)
