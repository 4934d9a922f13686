"""The device that a job or a command computes on."""

import math

import torch

from inpaint_data.errors import UsageError
from inpaint_data.ranks import own_gpu

PIXELS_AT_A_TIME = 2**22  # 16 pictures of 512 x 512
# What the errors say that have no type of their own.
NO_MEMORY = (
    "can't allocate memory",  # PyTorch's allocator for the CPU
    "could not create a primitive",  # oneDNN
    "could not create a memory",
    "out of memory",  # MPS, and CUDA's own calls
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "bad_alloc",
    "can't start new thread",
)


def choose_device(name: str) -> torch.device:
    """The device of that name, usable now.

    Args:
        name: "auto" (the GPU of this process's place on its machine where there is one, else the CPU), "cpu", "cuda",
            "cuda:1", "mps", or another that torch knows. "cuda" without a number is that of the process too.

    Raises:
        UsageError: torch knows no such device, or this machine has none.
    """
    if name.lower() == "auto":
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = kind.type if kind is not None else "cpu"
    name = {"gpu": "cuda", "cpu:0": "cpu"}.get(name.lower(), name.lower())
    if name == "cuda":
        name = f"cuda:{own_gpu(torch.cuda.device_count())}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError: each kind of device has its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"device: {name!r} cannot be used ({reason}); try auto or cpu", place=("job", "device")
        ) from None
    return device


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 by itself, and so faster than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def batch_size_for(device: torch.device, pixels: int) -> int:
    """How many pictures of so many pixels are encoded at a time: a power of two.

    On a GPU as many as it takes to be at its best, see docs/performance.md; on a CPU two, since what a larger batch
    works on does not fit into its cache.
    """
    if device.type == "cpu":
        return 2
    return 1 << max(0, math.floor(math.log2(PIXELS_AT_A_TIME / pixels)))


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error says that this machine or its device has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)


def free_memory(device: torch.device) -> None:
    """Hand back what torch keeps of a device's memory for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
