"""InpaintDataModule: the same batch from pictures, encoded live, or from a cache."""

import logging
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from inpaint_data.encoding.device import choose_device
from inpaint_data.encoding.encoder import (
    Encoder,
    autoencoder_of,
    check_resolution,
    chosen_posterior,
    wants_masked_latents,
)
from inpaint_data.encoding.recipes import Recipe, conditioning
from inpaint_data.encoding.settings import EncodeSettings
from inpaint_data.encoding.text import Text
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import UsageError
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.order import check_batch_size
from inpaint_data.pictures.settings import PictureSettings
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.user_stages import check_stages
from inpaint_data.ranks import part_of_run
from inpaint_data.settings import MOST, group_of
from inpaint_data.training.loader import AsDataLoader, EpochLoader, Pass
from inpaint_data.training.resume import Resume, ResumeElsewhere
from inpaint_data.training.settings import LoadSettings
from inpaint_data.training.sources import (
    LOADERS,
    PARAMETERS,
    OwnLoader,
    Source,
    as_source,
)
from inpaint_data.training.stage_mixture import of_stage
from inpaint_data.training.stage_source import Given
from inpaint_data.training.stream_loader import StreamLoader, check_streamed

_log = logging.getLogger(__name__)


class InpaintDataModule(LightningDataModule):
    """Batches for training an inpainting model, from image shards (encoded live on the device) or from a cache.

    Either way a step gets the same `Batch`, key for key. The frozen autoencoder lives here, outside the model and its
    checkpoints; what checkpoints get is the place in the epoch, so that training resumes with the very next batch, also
    on another number of ranks.

    A setting that is left out is the cache's own, or for pictures its default. One that is given beside a cache must be
    what the cache was made with.

    Args:
        source: what to train on: image shards (a brace pattern, a glob, a folder, URLs, or a list of those); the folder
            or URL of a cache, or several of the same settings; or an iterable of samples of your own, such as a
            `wds.WebDataset` or `wds.DataPipeline`, which gives sample dicts or ready batches. Of that an epoch is what
            it gives, from its beginning, also after a resume. A Hugging Face `Dataset` is shuffled, see `from_dataset`.
            Or several of these, mixed: a list of mappings, see `SourceSettings`.
        val_source, test_source: the same for validation and test. They are frozen: variant 0, seed 0, for ever.
        predict_source: the same for `Trainer.predict`, in its order, with variant 0.
        batch_size: samples in a batch on each rank.
        pictures: how pictures are cut, see `PictureSettings`.
        masks: which masks they get, see `MaskSettings`.
        encode: which autoencoder encodes, and for which recipe, see `EncodeSettings`.
        loading: seed, workers, fresh masks, text and local copies, see `LoadSettings`.
        stages: functions of your own between reading and examples, each from an iterator of sample dicts to an
            iterator of sample dicts, such as `wds.select(keep)`; a sample goes through them alone. In YAML, dotted
            paths.

    Raises:
        UsageError: settings that cannot work, at the latest when a dataloader is made, before the first step.
        CacheError: a cache that cannot be read.
    """

    def __init__(
        self,
        source: str | list[str] | Any = None,
        val_source: str | list[str] | Any = None,
        test_source: str | list[str] | Any = None,
        predict_source: str | list[str] | Any = None,
        batch_size: int = 8,
        pictures: dict[str, Any] | PictureSettings | None = None,
        masks: dict[str, Any] | MaskSettings | None = None,
        encode: dict[str, Any] | EncodeSettings | None = None,
        loading: dict[str, Any] | LoadSettings | None = None,
        stages: list[Any] | None = None,
    ) -> None:
        super().__init__()
        sources = dict(zip(PARAMETERS, (source, val_source, test_source, predict_source), strict=True))
        self.loading = group_of(LoadSettings, loading)
        given = {stage: source for stage, source in sources.items() if source is not None}
        self.sources: dict[str, Source] = {
            stage: as_source(PARAMETERS[stage], source, self.loading.seed) for stage, source in given.items()
        }
        if not self.sources:
            raise UsageError("source: give InpaintDataModule image shards or a cache to train on", ("source",))
        if type(batch_size) is not int or not 1 <= batch_size <= MOST:
            raise UsageError(
                f"batch_size: {batch_size!r} is not a positive whole number up to {MOST}; give 1 or more",
                ("batch_size",),
            )
        self.batch_size = batch_size
        self.pictures = group_of(PictureSettings, pictures)
        self.masks = group_of(MaskSettings, masks)
        self.encode = group_of(EncodeSettings, encode)
        self.stages: list[Stage] = check_stages(stages or [])
        given_beside = Given(self.pictures, self.masks, self.encode, self.loading, self.stages)
        self._of_stage = {stage: of_stage(stage, source, given_beside) for stage, source in self.sources.items()}
        self._check()
        Text(self.loading.text)  # whose files are looked at now
        self._texts: dict[str, Text] = {}
        self.encoder: Encoder | None = None
        self.resume = Resume()
        self.epoch: int | None = None  # set it where there is no Trainer; else passes are counted
        self._resumed_epoch = 0  # of the first pass, where there is no Trainer
        self._told = False  # that the environment alone makes it one process of several
        self._loaders: dict[str, EpochLoader | OwnLoader | StreamLoader] = {}
        self._hide_loaders()

    def _hide_loaders(self) -> None:
        """Loaders of stages without a source are as if there were none: Lightning warns of empty ones at every fit."""
        for stage, name in LOADERS.items():
            if stage not in self.sources:
                setattr(self, name, getattr(super(), name))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in LOADERS.values()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hide_loaders()  # a method is pickled by its name, under which the new object has its own

    def _check(self) -> None:
        """Refuse what cannot be together."""
        chosen_posterior(self.encode)  # which refuses an unknown recipe
        for source in self._of_stage.values():
            source.check()
        check_streamed(self.loading, "fit" in self._of_stage and self._of_stage["fit"].is_streamed)

    @property
    def live(self) -> bool:
        """Whether any source is pictures."""
        return not all(part.is_cache for source in self._of_stage.values() for part in source.parts)

    def setup(self, stage: str | None = None) -> None:
        """Load the autoencoder, if anything is to be encoded, and check all sources of a stage before its first batch.

        Raises:
            UsageError, CacheError, ShardError: see the class.
        """
        if stage in PARAMETERS and stage not in self.sources:
            raise UsageError(f"{PARAMETERS[stage]}: none was given, and {stage} needs it; name image shards or a cache")
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        if self.trainer is not None and not any(isinstance(callback, ResumeElsewhere) for callback in callbacks):
            callbacks.insert(0, ResumeElsewhere(self))
        if stage == "fit":
            self.resume = Resume()  # a checkpoint that this fit begins from is loaded afterwards
        self._make_encoder()
        if self.trainer is not None and stage == "fit":
            for needed in self.sources.keys() & {"fit", "validate"}:
                loader = self._loader(needed)
                if isinstance(loader, EpochLoader | StreamLoader):
                    len(loader)  # which refuses fewer batches than ranks

    def _make_encoder(self) -> None:
        train = self._of_stage.get("fit")
        if self.encoder is not None or not (self.live or (train is not None and train.is_fresh)):
            return
        for part in (part for source in self._of_stage.values() for part in source.parts):
            if part.is_named and not part.is_cache:
                _ = part.shards  # which says that a path is wrong, before anything else is asked for
        masks, encode = ([self.masks], self.encode) if train is None else (train.encoder_masks, train.encode)
        autoencoder = self.autoencoder if self.live or wants_masked_latents(encode) else None
        if self.live:
            check_resolution(self.pictures, self.autoencoder)
        self.encoder = Encoder(masks, encode, autoencoder, self.loading.seed)

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The one that is named, loaded once for all stages; a UsageError where none is."""
        strategy = None if self.trainer is None else self.trainer.strategy
        device = choose_device("auto") if strategy is None else strategy.root_device
        return autoencoder_of(self.encode, device)

    def _named_autoencoder(self) -> Autoencoder | None:
        return self.autoencoder if self.encode.vae is not None else None

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that was named, for the autoencoder of the batches.

        Raises:
            UsageError: none was named, or `setup` was not called yet.
        """
        if self.encode.recipe is None:
            raise UsageError("recipe: none was given to InpaintDataModule; name a row of RECIPES")
        return conditioning(self.encode.recipe, self.vae_config)

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        """Of the autoencoder that made the latents: diffusers' config, as `conditioning` takes it."""
        if self.encoder is not None and self.encoder.transform.has_vae:
            return dict(self.encoder.autoencoder.config)
        parts = [part for stage in sorted(self._of_stage) for part in self._of_stage[stage].parts]
        cached = next((part for part in parts if part.is_cache), None)
        if cached is None:
            raise UsageError("call setup() first: the autoencoder is not loaded yet")
        return dict(cached.cache.settings.vae.config)

    def train_dataloader(self) -> Any:
        return self._loader("fit")

    def val_dataloader(self) -> Any:
        return self._loader("validate")

    def test_dataloader(self) -> Any:
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        return self._loader("predict")

    def _loader(self, stage: str) -> Any:
        """The batches of a stage."""
        source = self._of_stage[stage]
        self._texts[stage] = self._texts.get(stage) or source.text()
        if stage not in self._loaders:
            next_pass, finish = partial(self.next_pass, stage), partial(self._with_text, stage)
            self._loaders[stage] = source.loader(next_pass, finish, self._ranks()[1], self._named_autoencoder)
        loader = self._loaders[stage]
        return AsDataLoader(loader) if self.trainer is None else loader

    def next_pass(self, stage: str) -> Pass:
        """How the next pass of a stage is to be, as things are now."""
        check_batch_size(self.batch_size)
        train = stage == "fit"
        epoch, resume = (self._epoch(), self.resume) if train else (0, Resume())
        taken = resume.of_epoch(epoch), resume.of_stream(epoch)
        return Pass(epoch, self.batch_size, *self._ranks(), self.loading.seed, train, *taken)

    def _with_text(self, stage: str, batch: Any, epoch: int | Sequence[int]) -> Any:
        return self._texts[stage](batch, self.loading.seed, epoch)

    def _ranks(self) -> tuple[int, int]:
        """This rank and how many there are: by the Trainer, by torch.distributed, or as torchrun or Slurm says."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        part = part_of_run()
        if part.world > 1 and not self._told:
            self._told = True
            _log.warning(
                "%s, as RANK and WORLD_SIZE or Slurm's variables in the environment say: each gets its share of the "
                "batches; unset them if this process trains alone",
                part,
            )
        return part.rank, part.world

    def _epoch(self) -> int:
        """Which pass over the training data it is."""
        if self.trainer is not None:
            # Whoever overfits wants the same batches in every epoch.
            return 0 if getattr(self.trainer, "overfit_batches", 0) else self.trainer.current_epoch
        if self.epoch is not None:
            return self.epoch
        return self._resumed_epoch + self._passes()

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, for a checkpoint."""
        loader = self._loaders.get("fit")
        if not isinstance(loader, EpochLoader | StreamLoader) or loader.current is None:
            return {}
        steps = loader.handed_out
        if self.trainer is not None:
            # Lightning repeats a batch that was in hand; what it counts as processed has been learnt from.
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
            steps = progress.processed - loader.skipped
        return loader.place(self.resume, steps)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resume = Resume.load(state_dict)
        self._resumed_epoch = self.resume.epoch - self._passes()

    def _passes(self) -> int:
        """How many passes over the training data were begun."""
        return self._loaders["fit"].passes if "fit" in self._loaders else 0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002 - Lightning's signature
        """Encode a batch of pictures on the device it was moved to; a batch from a cache is ready already."""
        if batch is None or "variants" not in batch:
            return batch
        if self.encoder is None:
            raise UsageError("call setup() before the first batch")
        encoded = self.encoder.encode(batch)
        # As Lightning has converted what comes from a cache, before this hook.
        return encoded if self.trainer is None else self.trainer.precision_plugin.convert_input(encoded)
