"""Where every random choice comes from: a pure function of (seed, sample key, variant) and what it is for.

Never of worker, rank, batch or order, so any process that meets a sample makes the same choice.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def _number(seed: int, key: str, variant: int, purpose: str) -> int:
    text = f"{seed}\0{key}\0{variant}\0{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest(), "little")


def generator_for(seed: int, key: str, variant: int, purpose: str) -> np.random.Generator:
    """The generator of one choice. Different purposes draw independently: a change in one leaves the others."""
    return np.random.Generator(np.random.PCG64(_number(seed, key, variant, purpose)))


def noise_for(seed: int, key: str, variant: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 of `shape` on the CPU, the same whatever device it is used on."""
    generator = torch.Generator().manual_seed(_number(seed, key, variant, purpose) % 2**63)
    # Said, since Lightning changes torch's default dtype for a while.
    return torch.randn(shape, generator=generator, dtype=torch.float32)
