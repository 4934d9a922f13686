"""The source of a stage: what was given for it, and how it is opened."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from inpaint_data.batch import PAIRED
from inpaint_data.encoding.encoder import (
    check_paired,
    chosen_posterior,
    wanted_pixels,
    wants_hole_latents,
    wants_masked_latents,
)
from inpaint_data.encoding.settings import EncodeSettings
from inpaint_data.encoding.text import Text, TextSettings
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import UsageError
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.latent_cache.text_members import settings_for_cache
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import ExampleSettings, PictureSettings
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.streamed import StreamedPart
from inpaint_data.training.cache_check import check_cache, encode_of
from inpaint_data.training.fresh_masks import FreshMasks, masks_over
from inpaint_data.training.image_shards import ImageShards
from inpaint_data.training.loader import EpochLoader, Pass, TrainingSource
from inpaint_data.training.settings import LoadSettings
from inpaint_data.training.sources import (
    EVALUATION_SEED,
    PARAMETERS,
    CacheSource,
    ImageSource,
    OwnLoader,
    OwnSource,
    Source,
    is_named,
    names_a_cache,
)
from inpaint_data.training.stream_loader import StreamLoader, stream_loader


@dataclass(frozen=True)
class Given:
    """What was given beside the sources, for all of them."""

    pictures: PictureSettings
    masks: MaskSettings
    encode: EncodeSettings
    loading: LoadSettings
    stages: Sequence[Stage]


class StageSource:
    """The source of a stage.

    Args:
        stage: as Lightning calls it.
        source: what was given for it.
        given: what was given beside it.
        name: of the source in an error, where it is one of several; left out, the parameter's.

    Attributes:
        parts: itself, the only one.
        is_cache: whether it is a cache; else it is pictures, or samples of the user's own.
        is_mixed: whether it is one of several.

    Raises:
        UsageError, CacheError: see `names_a_cache`.
    """

    def __init__(self, stage: str, source: Source, given: Given, name: str = "") -> None:
        self.stage, self.source, self.given, self.name = stage, source, given, name or PARAMETERS[stage]
        self.is_cache, self.is_mixed = names_a_cache(self.name, source), bool(name)

    @property
    def parts(self) -> list["StageSource"]:
        return [self]

    @property
    def is_named(self) -> bool:
        """Whether it is named by paths or URLs, and not samples themselves."""
        return is_named(self.source)

    @property
    def is_fresh(self) -> bool:
        """Whether it is a cache, and masks are drawn over its own; in evaluation they never are."""
        return self.given.loading.fresh_masks and self.stage == "fit" and self.is_cache

    @property
    def is_streamed(self) -> bool:
        """Whether its shards come one after another; evaluation is always of all samples."""
        is_asked = self.stage == "fit" and self.given.loading.epoch_batches is not None
        return is_asked and not self.is_cache and self.is_named

    @property
    def seed(self) -> int:
        return EVALUATION_SEED if self.stage in ("validate", "test") else self.given.loading.seed

    @property
    def examples(self) -> ExampleSettings:
        """What decides the pixels of pictures."""
        return ExampleSettings(self.given.pictures, self.given.masks, self.seed)

    @cached_property
    def fresh_masks(self) -> MaskSettings:
        """Those of the cache, and over them what was given."""
        return masks_over(self.cache.settings.masks, self.given.masks)

    @property
    def encoder_masks(self) -> list[MaskSettings]:
        """The settings of masks that an `Encoder` needs."""
        return [self.fresh_masks if self.is_fresh else self.given.masks]

    @cached_property
    def encode(self) -> EncodeSettings:
        """What batches are to have."""
        return encode_of(self.cache, self.given.encode) if self.is_fresh else self.given.encode

    @property
    def keys(self) -> frozenset[str]:
        """Of the latents and the pictures that its batches have."""
        cached = self.cache.keys if self.is_cache else frozenset(PAIRED[name] for name in self.given.pictures.paired)
        if self.is_cache and not self.is_fresh:
            return cached
        masked = {"masked_latents"} if wants_masked_latents(self.encode) else set()
        hole = {"hole_latents"} if wants_hole_latents(self.encode) else set()
        return frozenset({"latents", *masked, *hole, *wanted_pixels(self.encode), *(cached & set(PAIRED.values()))})

    @cached_property
    def cache(self) -> LatentCache:
        """The cache, opened once."""
        encode, loading = self.given.encode, self.given.loading
        root: Any = self.source
        mirror, mirror_bytes = loading.copies
        return LatentCache(
            root,
            chosen_posterior(encode),
            "draw" if self.stage == "fit" else 0,
            self.seed,
            self._carried(),
            masked_latents=wants_masked_latents(encode) and not self.is_fresh,
            mirror=mirror,
            mirror_bytes=mirror_bytes,
            check=loading.check,
        )

    @cached_property
    def shards(self) -> ImageShards:
        """Its image shards."""
        return ImageShards(self.name, self.source, self.given.loading, self.stage == "fit", self.is_mixed)

    def _carried(self) -> list[str] | None:
        """The members to read of a cache's samples; None is all, of which fresh masks are made."""
        loading = self.given.loading
        if loading.carried is None or self.is_fresh:
            return None
        return [*dict.fromkeys([*loading.carried, *(loading.text.embeddings or ())])]

    def check(self) -> None:
        """Refuse what cannot be together."""
        if self.given.loading.fresh_masks and self.stage == "fit" and not self.is_cache:
            raise UsageError(
                f"fresh_masks: {self.name} {self.source!r} is not a cache; pictures have new masks every epoch anyway",
                ("loading", "fresh_masks"),
            )
        self.check_beside()

    def check_beside(self) -> None:
        """Refuse what does not go with its kind."""
        if not self.is_cache:
            ExampleSettings(self.given.pictures, self.given.masks)
            check_paired(self.given.pictures, self.given.encode)
        elif self.given.stages:
            raise UsageError(
                f"stages: {self.name} is a cache, whose samples are made already; give stages to cache_latents, or "
                "leave them out",
                ("stages",),
            )

    @property
    def text_settings(self) -> TextSettings:
        """Those that were given, or else the cache's own."""
        settings = self.given.loading.text
        return settings_for_cache(settings, self.cache.first_root, self.cache.settings) if self.is_cache else settings

    @property
    def text_model(self) -> Any:
        """What made the text embeddings of its own; None where it has none, or others were named."""
        named = self.given.loading.text.embeddings is not None
        return self.cache.settings.text if self.is_cache and not named else None

    def text(self) -> Text:
        """What is done to the text of its batches."""
        settings = self.text_settings
        return Text(settings if self.stage == "fit" else replace(settings, dropout=0.0))

    def loader(
        self,
        next_pass: Callable[[], Pass],
        finish: Callable[[Any, Any], Any],
        world: int,
        autoencoder: Callable[[], Autoencoder | None],
    ) -> EpochLoader | OwnLoader | StreamLoader:
        """The loader of its batches.

        Args:
            next_pass: how the next pass is to be.
            finish: what is done to each batch, given its epoch, or that of each sample.
            world: how many ranks there are.
            autoencoder: gives the one that was named, if any.
        """
        loading = self.given.loading
        if not self.is_named:
            return OwnLoader(self.name, self.own, next_pass, finish, loading.processes)
        if self.is_streamed or (not self.is_cache and self.shards.has_counts_alone):
            return stream_loader([self.streamed()], self.given.stages, loading, next_pass, finish)
        return EpochLoader(self.opened(world, autoencoder), next_pass, finish, loading.processes)

    def streamed(self, weight: float = 1.0, masks_of: int = 0) -> StreamedPart:
        """Its shards, to come one after another; see `StreamedPart`."""
        shards = self.shards
        return StreamedPart(shards.paths, self.examples, weight, masks_of, self.name, shards.counts)

    def opened(self, world: int, autoencoder: Callable[[], Autoencoder | None], masks_of: int = 0) -> TrainingSource:
        """What is loaded from, checked against what was given.

        Args:
            world, autoencoder: see `loader`.
            masks_of: which of the `Encoder`'s settings of masks are its own.
        """
        loading = self.given.loading
        threads = max(1, loading.num_workers) if loading.workers == "threads" else 1
        if not self.is_cache:
            shards = self.shards.indexed(self.examples, self.given.stages)
            return ImageSource([shards], threads, masks_of, [self.name])
        given, fresh = self.given, self.is_fresh
        check_cache(self.cache, given.pictures, given.masks, given.encode, autoencoder(), loading.fingerprint, fresh)
        self.cache.check_ranks(world)
        if not fresh:
            return CacheSource(self.cache)
        return FreshMasks(self.cache, self.fresh_masks, loading.seed, threads, masks_of)

    def own(self, this: Pass) -> OwnSource:
        """The batches of a pass over samples of the user's own."""
        loading, samples = self.given.loading, self.source
        threads = max(1, loading.num_workers) if loading.workers == "threads" else 0
        if self.stage == "fit" and hasattr(samples, "set_epoch"):
            samples.set_epoch(this.epoch)
        ranks = (this.rank, this.world)
        return OwnSource(samples, self.examples, self.given.stages, this.batch_size, this.epoch, threads, ranks)
