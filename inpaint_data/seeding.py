"""Where every random choice comes from: a pure function of (seed, sample, variant) and what it is for.

Never of worker, rank, batch or order, so any process that meets a sample makes the same choice.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def sample_id(shard: str, key: str) -> str:
    """What a sample is drawn by: its key and its shard's name, since keys often start again in every shard.

    Args:
        shard: the name of the shard, with or without `.tar` and not where it lies; "" for samples that have none.
        key: the sample's key there.
    """
    stem = shard.removesuffix(".tar")
    return f"{stem}\0{key}" if stem else key


def number_for(seed: int, sample: str, variant: int, purpose: str) -> int:
    """128 bits that everything of one choice of a sample is drawn from."""
    text = f"{seed}\0{sample}\0{variant}\0{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest(), "little")


def generator_for(seed: int, sample: str, variant: int, purpose: str) -> np.random.Generator:
    """The generator of one choice of a sample, named by its `sample_id`.

    Different purposes draw independently: a change in one leaves the others.
    """
    return np.random.Generator(np.random.PCG64(number_for(seed, sample, variant, purpose)))


def draws_for(seed: int, samples: Sequence[str], variant: int, purpose: str, count: int) -> list[int]:
    """`generator_for(…).integers(count)` of each of several samples, of which each costs more than a sample's read.

    NumPy's SeedSequence is computed for all at once, and the first number of its PCG64 with Python's.
    """
    if not 1 < count < 2**32:
        return [int(generator_for(seed, sample, variant, purpose).integers(count)) for sample in samples]
    numbers = [number_for(seed, sample, variant, purpose) for sample in samples]
    drawn = []
    for number, words in zip(numbers, _states(numbers), strict=True):
        high, low, sequence_high, sequence_low = words
        step = ((sequence_high << 64 | sequence_low) << 1 | 1) & _MASK128
        state = ((step + (high << 64 | low)) * _PCG + step) & _MASK128
        state = (state * _PCG + step) & _MASK128
        mixed, turned = (state >> 64 ^ state) & _MASK64, state >> 122
        scaled = ((mixed >> turned | mixed << (64 - turned)) & _MASK32) * count
        if scaled & _MASK32 < count:  # where another number might have to be drawn, which is hardly ever
            scaled = int(np.random.Generator(np.random.PCG64(number)).integers(count)) << 32
        drawn.append(scaled >> 32)
    return drawn


_MASK32, _MASK64, _MASK128 = 2**32 - 1, 2**64 - 1, 2**128 - 1
_PCG = 0x2360ED051FC65DA44385DF649FCCF645


def _powers(first: int, factor: int, count: int) -> npt.NDArray[np.uint32]:
    return np.array([first * pow(factor, power, 2**32) % 2**32 for power in range(count)], np.uint32)[:, None]


_A, _B = _powers(0x43B0D7E5, 0x931E8875, 17), _powers(0x8B51F9DD, 0x58F38DED, 9)
_LEFT, _RIGHT, _SHIFT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715), np.uint32(16)


def _states(numbers: Sequence[int]) -> list[list[int]]:
    """What `np.random.SeedSequence(number).generate_state(4, np.uint64)` gives for each."""
    words = np.frombuffer(b"".join(number.to_bytes(16, "little") for number in numbers), "<u4")
    pool = _mixed(words.reshape(-1, 4).T, _A[:4], _A[1:5])
    for source in range(4):
        others, at = [word for word in range(4) if word != source], 4 + 3 * source
        hashed = _mixed(pool[source], _A[at : at + 3], _A[at + 1 : at + 4])
        mixed = _LEFT * pool[others] - _RIGHT * hashed
        pool[others] = mixed ^ mixed >> _SHIFT
    state = _mixed(np.concatenate([pool, pool]), _B[:8], _B[1:9])
    halves: list[list[int]] = np.ascontiguousarray(state.T).view("<u8").tolist()
    return halves


def _mixed(
    words: npt.NDArray[np.uint32], before: npt.NDArray[np.uint32], after: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]:
    mixed: npt.NDArray[np.uint32] = (words ^ before) * after
    mixed ^= mixed >> _SHIFT
    return mixed
