"""The device that a job or a command computes on."""

import os

import torch

from inpaint_data.errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device of that name, usable now.

    Args:
        name: "auto" (the GPU of this process's LOCAL_RANK where there is one, else the CPU), "cpu", "cuda", "cuda:1",
            "mps", or another that torch knows. "cuda" without a number is that of LOCAL_RANK too.

    Raises:
        UsageError: torch knows no such device, or this machine has none.
    """
    local_rank = os.environ.get("LOCAL_RANK", "0")
    if name == "auto":
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = kind.type if kind is not None else "cpu"
    name = {"gpu": "cuda", "cpu:0": "cpu"}.get(name, name)
    if name == "cuda" and local_rank.isdecimal():
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError: each kind of device has its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"device: {name!r} cannot be used ({reason}); try auto or cpu", place=("job", "device")
        ) from None
    return device
