"""What every member of a cached sample is written, read and checked by: the protocol, and what its methods are told.

Shapes: K mask variants, N references, H W the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from inpaint_data.batch import Batch
from inpaint_data.latent_cache.storage import Storage


@dataclass(frozen=True)
class Storing:
    """Settings of a job for its latents."""

    storage: Storage  # of latents
    has_posterior: bool  # latents are moments
    means: frozenset[str] = frozenset()  # keys of those that are kept as the mean alone, if they are moments


@dataclass(frozen=True)
class Expected:
    """The values that every sample of a cache must have, by its settings."""

    variants: int
    references: int
    sizes: frozenset[tuple[int, int]]  # of images and masks
    factor: int  # pixels per latent along each side
    storage: Storage
    has_posterior: bool
    means: frozenset[str]
    offsets: tuple[int, int]
    windows: tuple[str, ...]
    members: frozenset[str]  # those of `MEMBERS` that there are


@dataclass
class Seen:
    """Values found in the members checked so far, of one sample and of those before it."""

    channels: int = 0  # of moments; the first sample sets how many all have, which no setting says
    size: tuple[int, int] = (0, 0)  # of the image of the current sample


class Codec(Protocol):
    """One kind of member: how it is written, read and checked."""

    def takes(self, batch: Batch, storing: Storing) -> bool:
        """True if the samples of this batch have the member."""

    def write(self, batches: Sequence[Batch], row: int, storing: Storing) -> bytes:
        """The bytes for one sample, from the batches of its K variants. Raises SampleError if it cannot be stored."""

    def read(self, data: Any, variant: int, variants: int) -> Any:
        """The content for one variant, of the member's bytes; arrays are views into them where possible."""

    def check(self, data: bytes, expected: Expected, seen: Seen) -> Any:
        """The content of all variants. Raises SampleError with the problem, without the member's name."""
