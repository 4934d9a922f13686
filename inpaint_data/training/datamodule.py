"""InpaintDataModule: the same batch from pictures, encoded live, or from a cache."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
from lightning.pytorch import LightningDataModule

from inpaint_data.encoding.fills import Fill
from inpaint_data.encoding.presets import Preset, preset_of
from inpaint_data.encoding.recipes import RECIPES, Recipe, Settings, conditioning
from inpaint_data.encoding.text import Text, TextSettings
from inpaint_data.encoding.transform import InpaintTransform, Posterior
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.encoding.vae_loading import load_vae
from inpaint_data.errors import UsageError
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.masks.mixture import MaskMixture
from inpaint_data.masks.offsets import Offset, offset_from
from inpaint_data.masks.soft_border import SoftBorder, check_soft
from inpaint_data.order import Consumed
from inpaint_data.pictures.filters import Filters
from inpaint_data.pictures.settings import SampleSettings
from inpaint_data.pipeline.image_batches import ImageBatches
from inpaint_data.pipeline.image_shards import ImageShards
from inpaint_data.shards.reading import expand_shards
from inpaint_data.shards.tar import is_url
from inpaint_data.training.cache_check import OF_SAMPLES, check_cache
from inpaint_data.training.fresh_masks import FreshMasks
from inpaint_data.training.loader import EpochLoader, Source
from inpaint_data.training.resume import Resume, ResumeElsewhere

OF_MASKS = (
    "masks",
    "mixture",
    "mask_offset",
    "fill",
    "preset",
    "soft",
    "variants",
)  # what fresh masks need not have from the cache
SOURCES = {"fit": "source", "validate": "val_source", "test": "test_source", "predict": "predict_source"}
MOST = 2**16  # samples of a batch, variants of a sample
EVALUATION_SEED = 0  # of validation and test, whatever the seed of training: their losses stay comparable


class InpaintDataModule(LightningDataModule):
    """Batches for training an inpainting model, from image shards (encoded live on the device) or from a cache.

    Either way a step gets the same `Batch`, key for key. The frozen autoencoder lives here, outside the model and its
    checkpoints; what checkpoints get is the place in the epoch, so that training goes on with the very next batch, also
    on another number of ranks.

    A setting that is left out (None) is the cache's own, or for pictures the default that is named. One that is given
    beside a cache must be what the cache was made with.

    Args:
        source: what to train on: image shards (a brace pattern, a glob, a folder, URLs, or a list of those), or the
            folder or URL of a cache.
        val_source, test_source: the same for validation and test. They are frozen: variant 0, seed 0, for ever.
        predict_source: the same for `Trainer.predict`.
        vae: a name for `load_vae`, or an `Autoencoder`; "demo" where pictures are to be encoded.
        recipe: the name of a row in `RECIPES` that the batches are to feed. Checked; decides fill, posterior and
            whether there are `masked_latents`, where these are left out.
        batch_size: samples in a batch on each rank.
        fresh_masks: from a cache that carries its pictures, new masks and offsets every epoch; only the masked picture
            is encoded live, and not even that for recipes that only blend.
        resolution (512), crop ("center"), upscale (False), max_aspect (1), bucket_step (64), mask_padding (32),
            filters, masks ("sample"), mixture, target (False), carry_image: see `SampleSettings`.
        mask_offset, fill, preset, soft, posterior, masked_latents: see `InpaintTransform`.
        variants: mask variants of a sample in predict (1). Training draws one variant every epoch.
        text: carried text embeddings and caption dropout.
        seed: of the order, and in training of masks, offsets and noise.
        dtype: of the autoencoder: "float32", "bfloat16" or "float16".
        num_workers: threads that decode.
        fingerprint: refuse a cache whose fingerprint does not begin with this.
        mirror, mirror_bytes: where copies of remote shards go, see `LatentCache`.

    Raises:
        UsageError: settings that cannot work, at the latest when a dataloader is made, before the first step.
        CacheError: a cache that cannot be read.
    """

    def __init__(
        self,
        source: str | list[str] | None = None,
        val_source: str | list[str] | None = None,
        test_source: str | list[str] | None = None,
        predict_source: str | list[str] | None = None,
        vae: str | Autoencoder | None = None,
        recipe: str | None = None,
        batch_size: int = 8,
        fresh_masks: bool = False,
        resolution: int | list[int] | None = None,
        crop: str | list[str] | None = None,
        upscale: bool | None = None,
        max_aspect: float | None = None,
        bucket_step: int | None = None,
        mask_padding: int | None = None,
        filters: Filters | None = None,
        masks: str | None = None,
        mixture: MaskMixture | None = None,
        mask_offset: Offset | None = None,
        fill: Fill | None = None,
        preset: str | Preset | None = None,
        soft: SoftBorder | None = None,
        posterior: Posterior | None = None,
        masked_latents: bool | None = None,
        variants: int | None = None,
        target: bool | None = None,
        text: TextSettings = TextSettings(),  # noqa: B008 - frozen
        seed: int = 0,
        carry_image: str = "none",
        dtype: str | None = None,
        num_workers: int = 2,
        fingerprint: str | None = None,
        mirror: str | None = None,
        mirror_bytes: int = 100 * 10**9,
    ) -> None:
        super().__init__()
        given = {"fit": source, "validate": val_source, "test": test_source, "predict": predict_source}
        self.specs = {stage: spec for stage, spec in given.items() if spec is not None}
        if not self.specs:
            raise UsageError("source: give InpaintDataModule image shards or a cache to train on")
        for name, value in (("batch_size", batch_size), ("variants", 1 if variants is None else variants)):
            if type(value) is not int or not 1 <= value <= MOST:
                raise UsageError(f"{name}: {value!r} is not a positive whole number up to {MOST}; give 1 or more")
        for name, value in (("num_workers", num_workers), ("mirror_bytes", mirror_bytes)):
            if type(value) is not int or value < 0:
                raise UsageError(f"{name}: {value!r} cannot be; give a whole number, 0 or more")
        check_soft(soft)
        if preset is not None:
            preset = preset_of(preset)
        row = None if recipe is None else _row(recipe)
        self.recipe_name, self.vae, self.dtype, self.fresh_masks = recipe, vae, dtype, fresh_masks
        self.asked = {
            "resolution": resolution, "crop": crop, "upscale": upscale, "masks": masks, "mixture": mixture,
            "max_aspect": max_aspect, "bucket_step": bucket_step, "mask_padding": mask_padding, "filters": filters,
            "mask_offset": mask_offset, "fill": fill, "preset": preset, "soft": soft, "variants": variants,
            "target": target, "dtype": dtype, "fingerprint": fingerprint,
        }  # fmt: skip
        chosen: Any = {name: self.asked[name] for name in ("mixture", *OF_SAMPLES) if self.asked[name] is not None}
        self.settings = SampleSettings(**chosen, seed=seed, carry_image=carry_image)  # type: ignore[arg-type]
        if mixture is not None and not (masks is None and _any_cache(given)):
            _check_drawn(masks or "sample", mixture)
        self.batch_size, self.variants, self.num_workers = batch_size, variants or 1, num_workers
        if row and "masked" in row.parts and masked_latents is False:
            raise UsageError(f"masked_latents: false, but recipe {recipe} feeds them to the model; leave it out")
        if row and posterior == "moments":
            raise UsageError(f"posterior: moments, but recipe {recipe} feeds latents; use mode or sample")
        if fresh_masks and not (source is not None and is_cache(source)):
            raise UsageError(f"fresh_masks: source {source!r} is no cache; pictures have new masks every epoch anyway")
        self.posterior: Posterior = posterior or (row.posterior if row else "mode")
        self.masked_latents = ("masked" in row.parts if row else True) if masked_latents is None else masked_latents
        if soft is not None and carry_image == "original":
            raise UsageError(
                "carry_image: original with soft: the cache's masks would be called mask.png, as the samples' own are; "
                "use carry_image: crop or none"
            )
        self.mask_offset, self.preset, self.soft = mask_offset, preset, soft
        self.fill: Fill | None = fill or (row.fill if row else None)
        self.text = {True: Text(text), False: Text(replace(text, dropout=0.0))}  # by whether it is for training
        self.mirror: Any = {"mirror": mirror, "mirror_bytes": mirror_bytes}
        self.transform: InpaintTransform | None = None
        self._loaded: Autoencoder | None = None
        self.resume = Resume()
        self.epoch = 0  # where there is no Trainer to ask
        self._loaders: dict[str, EpochLoader] = {}
        for stage, method in (("validate", "val"), ("test", "test"), ("predict", "predict"), ("fit", "train")):
            if stage not in self.specs:
                # Lightning warns of an empty loader at every fit; a missing one simply means no validation.
                setattr(self, f"{method}_dataloader", None)

    def setup(self, stage: str | None = None) -> None:
        """Load the autoencoder, if anything is to be encoded, and check all sources of a stage before its first batch.

        Raises:
            UsageError, CacheError, ShardError: see the class.
        """
        if stage in SOURCES and stage not in self.specs:
            raise UsageError(f"{SOURCES[stage]}: none was given, and {stage} needs it; name image shards or a cache")
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        if self.trainer is not None and not any(isinstance(each, ResumeElsewhere) for each in callbacks):
            callbacks.insert(0, ResumeElsewhere(self))
        self._make_transform()
        if self.trainer is not None and stage == "fit":
            for each in ("fit", "validate"):
                if each in self.specs:
                    self._loader(each)

    def _make_transform(self) -> None:
        live = any(not is_cache(spec) for spec in self.specs.values())
        if self.transform is not None or not (live or self.fresh_masks):
            return
        offset, preset, soft = self.mask_offset, self.preset, self.soft
        if self.fresh_masks:
            made = self._cache(str(self.specs["fit"])).settings
            if offset is None and "mask_offset" in made:
                offset = offset_from(made["mask_offset"])
            if preset is None and "growth" in made:
                preset = Preset(made["growth"], made["threshold"], made["fill"], None)
            if soft is None and isinstance(made.get("soft"), dict):
                soft = SoftBorder(**made["soft"])
        vae = None
        if live or self.masked_latents:
            vae = self._autoencoder("demo" if self.vae is None else self.vae)
            if live:
                check_resolution(self.settings, vae)
            if self.recipe_name:
                conditioning(self.recipe_name, vae.config)
        self.transform = InpaintTransform(
            vae, offset, self.fill, self.posterior, self.settings.seed, preset or "was", self.masked_latents, soft
        )
        row = _row(self.recipe_name) if self.recipe_name else None
        if row and self.masked_latents and row.fill not in (None, self.transform.fill):
            raise UsageError(
                f"fill: {self.transform.fill}, but recipe {self.recipe_name} wants {row.fill}; leave it out"
            )

    def mask_transform(self) -> InpaintTransform:
        """What makes the masks of pictures, without an autoencoder and so without latents."""
        seed, preset = self.settings.seed, self.preset or "was"
        return InpaintTransform(None, self.mask_offset, None, self.posterior, seed, preset, False, self.soft)

    @property
    def recipe(self) -> Recipe:
        """The recipe that was named, for the autoencoder of the batches.

        Raises:
            UsageError: none was named, or `setup` was not called yet.
        """
        if self.recipe_name is None:
            raise UsageError("recipe: none was given to InpaintDataModule; name a row of RECIPES")
        return conditioning(self.recipe_name, self.vae_config)

    @property
    def vae_config(self) -> dict[str, Any]:
        """Of the autoencoder that made the latents: diffusers' config, as `conditioning` takes it."""
        if self.transform is not None and self.transform.has_vae:
            return dict(self.transform.vae.config)
        caches = [spec for spec in self.specs.values() if is_cache(spec)]
        if not caches:
            raise UsageError("call setup() first: the autoencoder is not loaded yet")
        return dict(self._cache(str(caches[0])).settings["vae"]["config"])

    def image_batches(self, shards: Sequence[str]) -> ImageBatches:
        """Batches of pictures, not yet encoded, shard after shard, as a job takes them."""
        return ImageBatches(shards, self.settings, self.batch_size, self.num_workers, range(self.variants))

    def train_dataloader(self) -> EpochLoader:
        return self._loader("fit")

    def val_dataloader(self) -> EpochLoader:
        return self._loader("validate")

    def test_dataloader(self) -> EpochLoader:
        return self._loader("test")

    def predict_dataloader(self) -> EpochLoader:
        return self._loader("predict")

    def _loader(self, stage: str) -> EpochLoader:
        if stage not in self._loaders:
            train = stage == "fit"
            text = self.text[train]
            trainer = self.trainer
            self._loaders[stage] = EpochLoader(
                self._source(stage),
                self.batch_size,
                self.settings.seed,
                train,
                self._epoch if train else lambda: 0,
                (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size),
                (lambda epoch: self.resume.of_epoch(epoch)) if train else lambda _: (),
                lambda batch, epoch: text(batch, self.settings.seed, epoch),
            )
        return self._loaders[stage]

    def _source(self, stage: str) -> Source:
        spec = self.specs[stage]
        frozen = stage in ("validate", "test")
        settings = replace(self.settings, seed=EVALUATION_SEED) if frozen else self.settings
        if not is_cache(spec):
            variants = {"fit": None, "predict": range(self.variants)}.get(stage, [0])
            return ImageShards(_shards(SOURCES[stage], spec), settings, variants, self.num_workers, **self.mirror)
        fresh = self.fresh_masks and stage == "fit"
        cache = self._cache(str(spec), None if stage == "fit" else 0, settings.seed, fresh)
        asked = self.asked | (dict.fromkeys(OF_MASKS) if fresh else {})
        vae = None if self.vae is None else self._autoencoder(self.vae)
        if fresh and self.transform is not None and self.transform.has_vae:
            vae = self.transform.vae
        check_cache(cache, asked, vae, self.recipe_name, self.masked_latents and not fresh)
        if not fresh:
            return cache
        masks: Any = self.asked["masks"] or cache.settings["samples"]["masks"]
        mixture: Any = self.asked["mixture"]
        if mixture is None:
            mixture = MaskMixture(**cache.settings["samples"].get("mixture", {}))
        else:
            _check_drawn(masks, mixture)
        settings = SampleSettings(masks=masks, mixture=mixture, seed=self.settings.seed)
        return FreshMasks(cache, settings, self.num_workers)

    def _autoencoder(self, name: str | Autoencoder) -> Autoencoder:
        """Loaded once for all stages."""
        if self._loaded is None:
            self._loaded = load_vae(name, self.dtype or "float32") if isinstance(name, str) else name
        return self._loaded

    def _cache(self, root: str, variant: int | None = 0, seed: int = 0, fresh: bool = False) -> LatentCache:
        masked = self.masked_latents and not fresh
        return LatentCache(root, self.posterior, variant, seed, None, masked, **self.mirror)

    def _epoch(self) -> int:
        return self.epoch if self.trainer is None else self.trainer.current_epoch

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, for a checkpoint."""
        loader = self._loaders.get("fit")
        if loader is None:
            return {}
        steps = loader.handed_out
        if self.trainer is not None:
            # Lightning repeats a batch that was in hand; what it counts as processed has been learnt from.
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
            steps = progress.processed - (len(loader) - loader.left(self._epoch()))
        return self.resume.state(self._epoch(), Consumed(self.batch_size, steps * loader.world))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resume = Resume.load(state_dict)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002 - Lightning's signature
        """Encode a batch of pictures on the device it was moved to; a batch from a cache is ready already."""
        if batch is None or "variants" not in batch:
            return batch
        if self.transform is None:
            raise UsageError("call setup() before the first batch")
        return self.transform(batch)


def _row(recipe: str) -> Settings:
    if recipe not in RECIPES:
        raise UsageError(f"recipe: {recipe!r} is unknown; choose from {', '.join(RECIPES)}")
    return RECIPES[recipe]


def _check_drawn(masks: str, mixture: MaskMixture) -> None:
    """Raises UsageError where a mixture, or its weights, would have no say."""
    if masks in ("sample", "alpha") and mixture != MaskMixture():
        raise UsageError(
            f"mixture: one is given, but masks is {masks}, which does not draw from it; set masks: mixture"
        )
    if masks != "mixture" and mixture.weights != MaskMixture().weights:
        raise UsageError(
            f"mixture: it has weights {dict(mixture.weights)}, but masks is {masks}, which draws nothing else; "
            "set masks: mixture, or leave weights out"
        )


def _shards(name: str, spec: str | list[str]) -> list[str]:
    try:
        return expand_shards(spec)
    except UsageError as error:
        raise UsageError(f"{name}: {str(error).removeprefix('shards: ')}, or name a cache") from None


def _any_cache(specs: Mapping[str, Any]) -> bool:
    return any(spec is not None and is_cache(spec) for spec in specs.values())


def is_cache(spec: str | list[str]) -> bool:
    """Whether a source is a cache: a folder or URL with a `cache.json`, or with what looks like its sidecars."""
    if not isinstance(spec, str | Path):
        return False
    if is_url(str(spec)):
        files, path = fsspec.core.url_to_fs(str(spec))
        return bool(files.exists(f"{path.rstrip('/')}/cache.json"))
    folder = Path(spec)
    beside = (path.with_suffix(".json") for path in folder.glob("*.tar")) if folder.is_dir() else ()
    return (folder / "cache.json").is_file() or any(path.is_file() for path in beside)


def check_resolution(settings: SampleSettings, vae: Autoencoder) -> None:
    """Raises UsageError unless the autoencoder's downscale factor divides the sides of all views."""
    factor = vae.factor
    name, sides = "resolution", settings.views.resolutions
    if settings.max_aspect > 1:
        name, sides = "bucket_step", (settings.bucket_step,)
    for side in sides:
        if side < factor:
            raise UsageError(
                f"{name}: {side} is smaller than the VAE's downscale factor {factor}; use a multiple of {factor}"
            )
        if side % factor:
            lower = side // factor * factor
            raise UsageError(
                f"{name}: {side} is no multiple of the VAE's downscale factor {factor}; use {lower} or {lower + factor}"
            )
