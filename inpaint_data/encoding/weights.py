"""Weights of a module by their values."""

import hashlib

import torch
from torch import nn


def weights_sha256(module: nn.Module) -> str:
    """A hash in hex of all weights and buffers, the same wherever they are and however they lie in memory."""
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, since numpy has no bfloat16; in the order of the indexes, not of the memory.
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
