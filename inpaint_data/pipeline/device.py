"""The last stages: batches cross to the device, and are encoded there."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from inpaint_data.batch import is_batch, pinned, to_device
from inpaint_data.encoding.encoder import Encoder
from inpaint_data.errors import UsageError
from inpaint_data.pictures.examples import Example
from inpaint_data.pipeline.decorator import stage


@stage
def encode(items: Iterable[Any], encoder: Encoder, device: torch.device | str | None = None) -> Iterator[Any]:
    """Encode batches of pictures on the device; batches of a cache only go there.

    Args:
        items: batches. Faults and all else pass through.
        encoder: what encodes.
        device: where; None is where the encoder's autoencoder is.

    Raises:
        UsageError: samples that nobody made batches of.
        UsageError, VaeError, EncodeError: see `Encoder`.
    """
    place = encoder.autoencoder.device if device is None else torch.device(device)
    for item in items:
        if isinstance(item, Example | dict) and not is_batch(item):
            raise UsageError(f"{type(item).__name__} came to encode(), which takes batches; put bucketed() before it")
        if not is_batch(item):
            yield item
            continue
        batch: Any = to_device(item, place)
        yield encoder.encode(batch) if "variants" in batch else batch


@stage
def in_pinned_memory(items: Iterable[Any]) -> Iterator[Any]:
    """Batches in pinned memory where there is a CUDA device, so that they cross to it while it works."""
    has_gpu = torch.cuda.is_available()
    for item in items:
        yield pinned(item) if has_gpu and is_batch(item) else item
