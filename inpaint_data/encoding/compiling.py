"""The compiled encoder: what `torch.compile` makes of it, and what it is told on a GPU.

Stable Diffusion's encoder on an H100, bfloat16, 512 px: eager 165 images a second, compiled 315, and 360 to 371 with
the two operations below put in other words, see docs/performance.md. They add up in float32 as the originals do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

SIZES = 64  # of pictures, each compiled for itself, which takes up to half a minute; further ones are not
WIDE = 256  # channels of a head, above which attention has no fast kernel
MOST_TOKENS = 16384  # 1024 x 1024 pixels, whose scores are 1 GiB a picture


def compiled(encode: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """The function compiled for each size of pictures, (B, 3, H, W) or (B, 3, 1, H, W), and for any B."""

    def on_gpu(pixels: Tensor) -> Any:
        # Channels innermost, as the matrix units take them: for one size of batch torch would see to it by itself.
        innermost = torch.channels_last if pixels.ndim == 4 else torch.channels_last_3d
        with InOtherWords():
            return encode(pixels.contiguous(memory_format=innermost))

    plain = torch.compile(encode, dynamic=False)
    fast = torch.compile(on_gpu, dynamic=False)

    def run(pixels: Tensor) -> Any:
        pixels = pixels.view_as(pixels)  # what is marked is not the caller's
        if len(pixels) > 1:  # a batch of one is another program, as torch has it
            torch._dynamo.mark_dynamic(pixels, 0)  # the last batch of a shard is smaller
        with torch._dynamo.config.patch(recompile_limit=2 * SIZES):
            return fast(pixels) if pixels.device.type == "cuda" else plain(pixels)

    return run


class InOtherWords(TorchFunctionMode):
    """Group norm and wide attention in words that compile to better programs for a GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.group_norm:
            return group_norm(*args, **kwargs)
        if func is functional.scaled_dot_product_attention and _is_wide(args, kwargs):
            return attention(*args[:3], **kwargs)
        return func(*args, **kwargs)


def group_norm(
    images: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """torch's group_norm of (B, C, ...), channel by channel first: where channels lie innermost, a group is a few bytes
    of each pixel, and to add those up alone reads all others with them."""
    batch, channels = images.shape[:2]
    variances, means = torch.var_mean(images.float(), dim=tuple(range(2, images.ndim)), correction=0)
    means, variances = (each.reshape(batch, num_groups, -1) for each in (means, variances))
    mean = means.mean(-1, keepdim=True)
    variance = (variances + (means - mean).square()).mean(-1, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    scale = scale.expand_as(means) if weight is None else scale * weight.float().reshape(1, num_groups, -1)
    shift = -mean * scale if bias is None else bias.float().reshape(1, num_groups, -1) - mean * scale
    scale, shift = (each.reshape(batch, channels, *[1] * (images.ndim - 2)) for each in (scale, shift))
    return (images.float() * scale + shift).to(images.dtype)


def _is_wide(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether it is an autoencoder's attention: one head as wide as its layer, and no mask."""
    if len(args) != 3 or any(kwargs.get(name) for name in ("is_causal", "dropout_p", "enable_gqa")):
        return False
    query = args[0]
    half = query.dtype in (torch.float16, torch.bfloat16)
    plain = kwargs.get("attn_mask") is None and query.ndim == 4 and half and HAS_WIDE_PRODUCT
    return plain and query.shape[-1] > WIDE and query.shape[-2] <= MOST_TOKENS


_PRODUCTS: Any = torch.ops.aten.bmm
HAS_WIDE_PRODUCT = "dtype" in _PRODUCTS.overloads()  # of halves, added up and given in float32


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, **_: Any) -> Tensor:
    """Attention (B, heads, N, width) in half precision, its scores in float32, as two matrix products."""
    shape, width = query.shape, query.shape[-1]
    query, key, value = (each.reshape(-1, *each.shape[-2:]) for each in (query, key, value))
    scores = torch.bmm(query, key.transpose(1, 2), out_dtype=torch.float32)
    weights = torch.softmax(scores * (1 / math.sqrt(width) if scale is None else scale), dim=-1)
    return torch.bmm(weights.to(value.dtype), value).reshape(shape)
