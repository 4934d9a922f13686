"""InpaintDataModule: the same batch from pictures, encoded live, or from a cache."""

from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from inpaint_data.errors import UsageError
from inpaint_data.image_batches import ImageBatches
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.samples import SampleSettings
from inpaint_data.seeding import generator_for
from inpaint_data.shards import expand_shards
from inpaint_data.transform import Fill, InpaintTransform, Posterior
from inpaint_data.vae import Autoencoder
from inpaint_data.vae_loading import load_vae


class EpochSampler(Sampler[int]):
    """A permutation of the cache for each epoch, drawn from (seed, epoch); tells the cache which epoch it is."""

    def __init__(self, cache: LatentCache) -> None:
        self.cache = cache

    def set_epoch(self, epoch: int) -> None:
        self.cache.epoch = epoch

    def __len__(self) -> int:
        return len(self.cache)

    def __iter__(self) -> Iterator[int]:
        rng = generator_for(self.cache.seed, "", self.cache.epoch, "order")
        return iter(rng.permutation(len(self.cache)).tolist())


def _as_it_is(batch: Any) -> Any:
    return batch


class InpaintDataModule(LightningDataModule):
    """Batches for training an inpainting model, from image shards (encoded live on the device) or from a cache.

    Give either `shards` or `cache`. Either way a step gets the same `Batch`, key for key. The frozen autoencoder
    lives here, outside the model and its checkpoints.

    Args:
        shards: image shards to train on: a brace pattern, a glob, a folder, or a list of those.
        cache: a folder made by `inpaint-data cache` to train on instead.
        val_shards: image shards for validation; their masks and offsets are those of variant 0 for ever.
        predict_shards: image shards for `Trainer.predict`; defaults to `shards`.
        vae: a name for `load_vae`, or an `Autoencoder`. Not needed with a cache.
        batch_size: samples in a batch.
        resolution, crop, upscale, masks, seed, carry_image: see `SampleSettings`.
        mask_offset, fill, posterior: see `InpaintTransform`.
        variants: mask variants of a sample in predict and validation. Training draws one new variant every epoch.
        dtype: of the autoencoder: "float32", "bfloat16" or "float16".
        num_workers: threads that decode.

    Raises:
        UsageError: settings that cannot work, at the latest in `setup`, before the first step.
    """

    def __init__(
        self,
        shards: str | list[str] | None = None,
        cache: str | None = None,
        val_shards: str | list[str] | None = None,
        predict_shards: str | list[str] | None = None,
        vae: str | Autoencoder = "demo",
        batch_size: int = 8,
        resolution: int = 512,
        crop: str = "center",
        upscale: bool = False,
        masks: str = "sample",
        mask_offset: int | tuple[int, int] = 6,
        fill: Fill = "grey",
        posterior: Posterior = "mode",
        variants: int = 1,
        seed: int = 0,
        carry_image: str = "none",
        dtype: str = "float32",
        num_workers: int = 2,
    ) -> None:
        super().__init__()
        if (shards is None) == (cache is None) and predict_shards is None:
            raise UsageError("give InpaintDataModule either shards or cache to train on")
        for name, value in (("batch_size", batch_size), ("variants", variants)):
            if value < 1:
                raise UsageError(f"{name}: {value} is not a positive number; give 1 or more")
        if num_workers < 0:
            raise UsageError(f"num_workers: {num_workers} threads cannot be; give 0 or more")
        self.settings = SampleSettings(resolution, crop, upscale, masks, seed, carry_image)  # type: ignore[arg-type]
        self.cache, self.vae, self.dtype = cache, vae, dtype
        self.batch_size, self.variants, self.num_workers = batch_size, variants, num_workers
        self.mask_offset, self.fill, self.posterior = mask_offset, fill, posterior
        specs = {
            "fit": shards,
            "validate": val_shards,
            "predict": shards if predict_shards is None else predict_shards,
        }
        self.shards = {stage: None if spec is None else expand_shards(spec) for stage, spec in specs.items()}
        self.transform: InpaintTransform | None = None
        if val_shards is None:
            # Lightning warns of an empty loader at every fit; a missing one simply means no validation.
            self.val_dataloader = None  # type: ignore[method-assign, assignment]

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - Lightning's signature
        """Load the autoencoder and check what can be checked before the first batch."""
        has_shards = any(shards is not None for shards in self.shards.values())
        if self.trainer is not None and self.trainer.world_size > 1 and has_shards:
            raise UsageError("image shards on several devices would give ranks unequal epochs; cache them first")
        if self.transform is not None or not has_shards:
            return
        vae = load_vae(self.vae, self.dtype) if isinstance(self.vae, str) else self.vae
        check_resolution(self.settings.resolution, vae)
        self.transform = InpaintTransform(vae, self.mask_offset, self.fill, self.posterior, self.settings.seed)

    def image_batches(self, shards: Sequence[str], *, train: bool = False) -> ImageBatches:
        """Batches of pictures, not yet encoded: those of `shards`, in order unless they are for training."""
        variants = None if train else range(self.variants)
        return ImageBatches(
            shards, self.settings, self.batch_size, self.num_workers, variants, shuffle=train, epoch=self._epoch
        )

    def _epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch

    def train_dataloader(self) -> Any:
        if self.cache is not None:
            cache = LatentCache(self.cache, self.posterior, seed=self.settings.seed)
            return DataLoader(cache, self.batch_size, sampler=EpochSampler(cache), collate_fn=_as_it_is)
        return self._loader("fit", train=True)

    def val_dataloader(self) -> Any:
        return self._loader("validate")

    def predict_dataloader(self) -> Any:
        return self._loader("predict")

    def _loader(self, stage: str, *, train: bool = False) -> ImageBatches:
        shards = self.shards[stage]
        if shards is None:
            raise UsageError(f"InpaintDataModule has no image shards for this stage; give it {stage}_shards")
        return self.image_batches(shards, train=train)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002 - Lightning's signature
        """Encode a batch of pictures on the device it was moved to; a batch from a cache is ready already."""
        if "image" not in batch:
            return batch
        if self.transform is None:
            raise UsageError("call setup() before the first batch")
        return self.transform(batch)


def check_resolution(resolution: int, vae: Autoencoder) -> None:
    """Raises UsageError unless the autoencoder's downscale factor divides the resolution."""
    factor = vae.factor
    if resolution < factor:
        raise UsageError(
            f"resolution: {resolution} is smaller than the VAE's downscale factor {factor}; use a multiple of {factor}"
        )
    if resolution % factor:
        lower = resolution // factor * factor
        raise UsageError(
            f"resolution: {resolution} is no multiple of the VAE's downscale factor {factor}; "
            f"use {lower} or {lower + factor}"
        )
