"""Number types that latents are stored in: what NumPy has for each, and back.

bfloat16, which NumPy does not have, is stored as the uint16 of its bits; `(array.astype("u4") << 16).view("f4")` are
its values. int8 is stored with one float32 scale for each channel, by which it is multiplied.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

Storage = Literal["float16", "bfloat16", "float32", "int8"]
STORED: Mapping[Storage, np.dtype[Any]] = MappingProxyType(
    {name: np.dtype("uint16" if name == "bfloat16" else name) for name in get_args(Storage)}
)
MOST = 127  # of int8, whose range is even on both sides
Floats = npt.NDArray[np.floating[Any]]


def storage_of(dtype: np.dtype[Any]) -> Storage | None:
    """The storage that has arrays of that dtype; None where none has."""
    return next((name for name, stored in STORED.items() if stored == dtype), None)


def scales_of(array: Floats) -> npt.NDArray[np.float32]:
    """(..., C, h, w) -> (..., C, 1, 1): what a step of int8 is in each channel."""
    largest: npt.NDArray[np.float32] = np.abs(array).max((-2, -1), keepdims=True).astype(np.float32)
    scales: npt.NDArray[np.float32] = np.where(largest > 0, largest / MOST, np.float32(1)).astype(np.float32)
    return scales


def to_storage(array: Floats, storage: Storage) -> npt.NDArray[Any]:
    """Float32 (..., C, h, w) as it is stored; what is too large becomes infinity in float16."""
    if storage == "int8":
        steps: npt.NDArray[Any] = np.rint(array / scales_of(array)).astype(np.int8)
        return steps
    if storage == "bfloat16":
        bits: npt.NDArray[Any] = torch.from_numpy(array).to(torch.bfloat16).view(torch.int16).numpy()
        return bits.view(np.uint16)
    with np.errstate(over="ignore"):
        stored: npt.NDArray[Any] = array.astype(STORED[storage])
    return stored


def from_storage(array: npt.NDArray[Any], scales: Floats | None = None) -> Floats:
    """Float values of what is stored; of float16 and float32 the array itself."""
    if array.dtype == STORED["bfloat16"]:
        return (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype == STORED["int8"]:
        if scales is None:
            raise ValueError("int8 without its scales")
        return array * scales
    return array
