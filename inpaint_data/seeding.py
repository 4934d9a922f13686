"""Where every random choice comes from: a pure function of (seed, sample, variant) and what it is for.

Never of worker, rank, batch or order, so any process that meets a sample makes the same choice.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def sample_id(shard: str, key: str) -> str:
    """What a sample is drawn by: its key and its shard's name, since keys often start again in every shard.

    Args:
        shard: the name of the shard, with or without `.tar` and not where it lies; "" for samples that have none.
        key: the sample's key there.
    """
    stem = shard.removesuffix(".tar")
    return f"{stem}\0{key}" if stem else key


def _number(seed: int, sample: str, variant: int, purpose: str) -> int:
    text = f"{seed}\0{sample}\0{variant}\0{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest(), "little")


def generator_for(seed: int, sample: str, variant: int, purpose: str) -> np.random.Generator:
    """The generator of one choice of a sample, named by its `sample_id`.

    Different purposes draw independently: a change in one leaves the others.
    """
    return np.random.Generator(np.random.PCG64(_number(seed, sample, variant, purpose)))


def noise_for(seed: int, sample: str, variant: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 of `shape` on the CPU, the same whatever device it is used on.

    Torch's generator takes 32 bits of a seed, so that of 100,000 samples one pair may have the same noise.
    """
    generator = torch.Generator().manual_seed(_number(seed, sample, variant, purpose) % 2**63)
    # Said, since Lightning changes torch's default dtype for a while.
    return torch.randn(shape, generator=generator, dtype=torch.float32)
