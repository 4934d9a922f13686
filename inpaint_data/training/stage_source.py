"""The source of a stage: what was given for it, and how it is opened."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from inpaint_data.encoding.encoder import check_paired, chosen_posterior, wants_masked_latents
from inpaint_data.encoding.settings import EncodeSettings
from inpaint_data.encoding.text import Text
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import UsageError
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.latent_cache.text_members import settings_for_cache
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.settings import ExampleSettings, PictureSettings
from inpaint_data.pipeline.decorator import Stage
from inpaint_data.pipeline.indexed import IndexedShards
from inpaint_data.training.cache_check import check_cache
from inpaint_data.training.fresh_masks import FreshMasks, masks_over
from inpaint_data.training.loader import Pass, TrainingSource
from inpaint_data.training.settings import LoadSettings
from inpaint_data.training.sources import (
    EVALUATION_SEED,
    PARAMETERS,
    CacheSource,
    ImageSource,
    OwnSource,
    Source,
    is_named,
    names_a_cache,
    shards_of,
)


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

    Attributes:
        name: of the parameter, for an error.
        is_cache: whether it is a cache; else it is pictures, or samples of the user's own.

    Raises:
        UsageError, CacheError: see `names_a_cache`.
    """

    def __init__(self, stage: str, source: Source, given: Given) -> None:
        self.stage, self.source, self.given, self.name = stage, source, given, PARAMETERS[stage]
        self.is_cache = names_a_cache(self.name, source)

    @property
    def is_named(self) -> bool:
        """Whether it is named by paths or URLs, and not samples themselves."""
        return is_named(self.source)

    @property
    def has_fresh_masks(self) -> bool:
        """Whether its masks are drawn over a cache's; those of evaluation never are."""
        return self.given.loading.fresh_masks and self.stage == "fit"

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

    @cached_property
    def cache(self) -> LatentCache:
        """The cache, opened once."""
        encode, loading, source = self.given.encode, self.given.loading, self.source
        root: Any = source
        return LatentCache(
            root,
            chosen_posterior(encode),
            "draw" if self.stage == "fit" else 0,
            self.seed,
            self._carried(),
            masked_latents=wants_masked_latents(encode) and not self.has_fresh_masks,
            mirror=loading.mirror,
            mirror_bytes=loading.mirror_bytes,
            check=loading.check,
        )

    def _carried(self) -> list[str] | None:
        """The members to read of a cache's samples; None is all, of which fresh masks are made."""
        loading = self.given.loading
        if loading.carried is None or self.has_fresh_masks:
            return None
        return [*dict.fromkeys([*loading.carried, *(loading.text.embeddings or ())])]

    def check(self) -> None:
        """Refuse what cannot be together."""
        if self.has_fresh_masks and not self.is_cache:
            raise UsageError(
                f"fresh_masks: {self.name} {self.source!r} is not a cache; pictures have new masks every epoch anyway",
                ("loading", "fresh_masks"),
            )
        if not self.is_cache:
            ExampleSettings(self.given.pictures, self.given.masks)
            check_paired(self.given.pictures, self.given.encode)
        elif self.given.stages:
            raise UsageError(
                f"stages: {self.name} is a cache, whose samples are made already; give stages to cache_latents, or "
                "leave them out",
                ("stages",),
            )

    def text(self) -> Text:
        """What is done to the text of its batches."""
        settings = self.given.loading.text
        if self.is_cache:
            settings = settings_for_cache(settings, self.cache.first_root, self.cache.settings)
        return Text(settings if self.stage == "fit" else replace(settings, dropout=0.0))

    def shards(self) -> list[str]:
        return shards_of(self.name, self.source)

    def opened(self, world: int, autoencoder: Autoencoder | None) -> TrainingSource:
        """What is loaded from, checked against what was given.

        Args:
            world: how many ranks there are.
            autoencoder: the one that was named, if any.
        """
        loading = self.given.loading
        threads = max(1, loading.num_workers) if loading.workers == "threads" else 1
        if not self.is_cache:
            indexed = IndexedShards(
                self.shards(), self.examples, self.given.stages, loading.mirror, loading.mirror_bytes
            )
            return ImageSource(indexed, None if self.stage == "fit" else 0, threads)
        fresh, given = self.has_fresh_masks, self.given
        check_cache(self.cache, given.pictures, given.masks, given.encode, autoencoder, loading.fingerprint, fresh)
        self.cache.check_ranks(world)
        return FreshMasks(self.cache, self.fresh_masks, loading.seed, threads) if fresh else CacheSource(self.cache)

    def own(self, this: Pass) -> OwnSource:
        """The batches of a pass over samples of the user's own."""
        loading, samples = self.given.loading, self.source
        threads = max(1, loading.num_workers) if loading.workers == "threads" else 0
        if self.stage == "fit" and hasattr(samples, "set_epoch"):
            samples.set_epoch(this.epoch)
        ranks = (this.rank, this.world)
        return OwnSource(samples, self.examples, self.given.stages, this.batch_size, this.epoch, threads, ranks)
