"""The masks that a caching job would make, without its autoencoder."""

from collections.abc import Sequence
from typing import Any, cast

import torch

from inpaint_data.encoding.transform import Batch
from inpaint_data.pictures.examples import Example, collate
from inpaint_data.training.datamodule import InpaintDataModule


class MaskPreview:
    """Puts examples through what decides a job's masks.

    Args:
        settings: those of `cache_latents` that `InpaintDataModule` takes too; what is left out is the default.

    Attributes:
        settings: what decides an example.
        variants: the mask variants of every sample.

    Raises:
        UsageError: settings that cannot work.
    """

    def __init__(self, **settings: Any) -> None:
        module = InpaintDataModule(predict_source="", **settings)
        self.settings, self.variants = module.settings, range(module.variants)
        self._transform = module.mask_transform()

    def __call__(self, example: Example, variants: Sequence[int]) -> Batch:
        """The batch of this one sample, whose masks are those of `variants`: all of it but the latents."""
        drawn = collate([example], variants, self.settings.seed)
        # Latents that are there are not encoded: these are none.
        given = {name: value for name, value in drawn.items() if name not in ("image", "target")}
        made = self._transform(given | {"latents": torch.empty(1, 0, 0, 0)})
        return cast(Batch, {name: value for name, value in made.items() if name != "latents"})
