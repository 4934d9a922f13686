"""Several sources that training mixes, each with settings of its own."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from inpaint_data.encoding.settings import EncodeSettings
from inpaint_data.encoding.text import Text
from inpaint_data.encoding.vae import Autoencoder
from inpaint_data.errors import UsageError
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.settings import MOST, group_of
from inpaint_data.training.fresh_masks import masks_over
from inpaint_data.training.loader import EpochLoader, Pass
from inpaint_data.training.mixed_source import MixedSource
from inpaint_data.training.mixture import Mixture, repeats_of
from inpaint_data.training.settings import SourceSettings
from inpaint_data.training.sources import PARAMETERS, is_named
from inpaint_data.training.stage_source import Given, StageSource
from inpaint_data.training.stream_loader import StreamLoader, stream_loader

_log = logging.getLogger(__name__)


class StageMixture:
    """The sources that training mixes.

    Args:
        entries: each a path, a mapping of `SourceSettings`, or these.
        given: what was given beside them, for all.

    Attributes:
        parts: each as if it were the only one.

    Raises:
        UsageError: an entry that cannot be used, in one line that says which.
    """

    stage, name = "fit", "source"

    def __init__(self, entries: Sequence[Any], given: Given) -> None:
        self.given = given
        self.entries = [_entry(number, entry) for number, entry in enumerate(entries)]
        self.parts = [self._part(number, entry) for number, entry in enumerate(self.entries)]

    def _part(self, number: int, entry: SourceSettings) -> StageSource:
        name, given = f"{self.name}[{number}]", self.given
        if entry.captions is not None:
            given = replace(given, pictures=given.pictures.but(caption=entry.captions))
        if entry.masks is not None:
            # Fill is the only one that `masks_over` does not keep.
            fill = given.masks.fill if entry.masks.fill is None else entry.masks.fill
            try:
                given = replace(given, masks=masks_over(given.masks, entry.masks).but(fill=fill))
            except UsageError as error:
                raise UsageError(f"{name}: {error}", (self.name, str(number), *error.place)) from None
        part = StageSource(self.stage, entry.source, given, name)
        for setting in ("masks", "captions"):
            if part.is_cache and getattr(entry, setting) is not None and not (setting == "masks" and part.is_fresh):
                fix = " or set loading: {fresh_masks: true}" if setting == "masks" else ""
                raise UsageError(
                    f"{name}: {setting}: are those of the cache, where they were made; leave them out{fix}",
                    (self.name, str(number), setting),
                )
        return part

    @property
    def is_streamed(self) -> bool:
        """Whether the shards of its sources come one after another."""
        return all(part.is_streamed for part in self.parts)

    @property
    def is_fresh(self) -> bool:
        """Whether masks are drawn over any cache's."""
        return any(part.is_fresh for part in self.parts)

    @cached_property
    def encode(self) -> EncodeSettings:
        """What batches are to have.

        Raises:
            UsageError: fresh masks over caches that do not have the same.
        """
        parts = [part for part in self.parts if part.is_fresh] or self.parts
        for part in parts[1:]:
            if part.encode != parts[0].encode:
                raise UsageError(
                    f"{part.name}: its batches would have other latents than those of {parts[0].name}; name a recipe "
                    "(encode: {recipe: ...}), or make both caches alike"
                )
        return parts[0].encode

    @cached_property
    def encoder_masks(self) -> list[MaskSettings]:
        """The settings of masks that an `Encoder` needs, the first those of evaluation."""
        found = [self.given.masks]
        for part in self.parts:
            (masks,) = part.encoder_masks
            if all(_encoded_as(masks) != _encoded_as(other) for other in found):
                found.append(masks)
        return found

    def _masks_of(self, part: StageSource) -> int:
        """Which of `encoder_masks` are a source's."""
        (masks,) = part.encoder_masks
        return [_encoded_as(other) for other in self.encoder_masks].index(_encoded_as(masks))

    def check(self) -> None:
        """Refuse what cannot be together."""
        loading = self.given.loading
        if loading.fresh_masks and not self.is_fresh:
            raise UsageError(
                "fresh_masks: no source is a cache; pictures have new masks every epoch anyway",
                ("loading", "fresh_masks"),
            )
        if "exhausted" in loading.given and all(entry.weight is None for entry in self.entries):
            raise UsageError(
                "exhausted: is for sources with weights, and none has one; leave it out", ("loading", "exhausted")
            )
        for part in self.parts:
            part.check_beside()
        if loading.epoch_batches is not None:
            self._check_streamed()

    def _check_streamed(self) -> None:
        """Refuse caches, and what needs to know how many samples there are, which nobody counts."""
        for part in self.parts:
            if part.is_cache:
                raise UsageError(
                    f"epoch_batches: is for image shards that come one after another, and {part.name} is a cache; "
                    "leave it out",
                    ("loading", "epoch_batches"),
                )
        if "exhausted" in self.given.loading.given:
            raise UsageError(
                "exhausted: an epoch is of epoch_batches, and a source that is exhausted begins again; leave it out",
                ("loading", "exhausted"),
            )
        for number, entry in enumerate(self.entries):
            if "repeats" in entry.given:
                raise UsageError(
                    f"source[{number}]: repeats: nobody counts the samples of shards that come one after another; give "
                    "a weight, or leave epoch_batches out",
                    (self.name, str(number), "repeats"),
                )
        if len(self.entries) > 1 and all(entry.weight is None for entry in self.entries):
            raise UsageError(
                "source: has no weight, and nobody counts the samples of shards that come one after another; give "
                "each entry a weight",
                (self.name,),
            )

    def text(self) -> Text:
        """What is done to the text of its batches.

        Raises:
            UsageError: their text embeddings are not the same.
        """
        first = self.parts[0]
        for part in self.parts[1:]:
            ours, theirs = part.text_settings, first.text_settings
            if list(ours.embeddings or ()) != list(theirs.embeddings or ()) or part.text_model != first.text_model:
                raise UsageError(
                    f"{part.name}: has other text embeddings than {first.name}; make both with one text encoder, or "
                    "set loading: {text: {embeddings: [...]}} to those that both have"
                )
        return first.text()

    def loader(
        self,
        next_pass: Callable[[], Pass],
        finish: Callable[[Any, Any], Any],
        world: int,
        autoencoder: Callable[[], Autoencoder | None],
    ) -> EpochLoader | StreamLoader:
        """The loader of its batches, see `StageSource.loader`."""
        if self.is_streamed:
            streams = [
                part.streamed(1.0 if entry.weight is None else entry.weight, self._masks_of(part))
                for part, entry in zip(self.parts, self.entries, strict=True)
            ]
            return stream_loader(streams, self.given.stages, self.given.loading, next_pass, finish)
        sources = [part.opened(world, autoencoder, self._masks_of(part)) for part in self.parts]
        self._check_alike()
        source, entries, loading = MixedSource(sources), self.entries, self.given.loading
        lengths = [len(source) for source in sources]
        weights, ends = [entry.weight for entry in entries], loading.exhausted == "end"
        repeats = repeats_of(lengths, weights, [entry.repeats for entry in entries], ends)
        for part, length, times in zip(self.parts, lengths, repeats, strict=True):
            if times > MOST:
                raise UsageError(
                    f"{part.name}: its {length} samples would come {float(times):.3g} times each in an epoch; give it "
                    "a smaller weight, or set loading: {exhausted: end}"
                )
            _log.info("%s: %d samples, each %.4g times an epoch", part.name, length, float(times))
        mixture = Mixture(source.parts, source.buckets, repeats)
        return EpochLoader(source, next_pass, finish, loading.processes, mixture)

    def _check_alike(self) -> None:
        """Raises UsageError unless all batches have the same keys, and latents of one autoencoder."""
        first = self.parts[0]
        for part in self.parts[1:]:
            if odd := sorted(part.keys ^ first.keys):
                has, lacks = (part, first) if odd[0] in part.keys else (first, part)
                raise UsageError(
                    f"{lacks.name}: its batches have no {odd[0]}, which those of {has.name} have; make both alike"
                )
        caches = [part for part in self.parts if part.is_cache]
        for part in caches[1:]:
            ours, theirs = part.cache.settings.vae, caches[0].cache.settings.vae
            if (ours.kind, ours.weights_sha256, ours.config) != (theirs.kind, theirs.weights_sha256, theirs.config):
                raise UsageError(
                    f"{part.name}: its latents are of another autoencoder than those of {caches[0].name}; make both "
                    "with one"
                )


def _entry(number: int, entry: Any) -> SourceSettings:
    if isinstance(entry, SourceSettings):
        return entry
    if is_named(entry):
        return SourceSettings(source=entry)
    try:
        settings: SourceSettings = group_of(SourceSettings, entry)
    except UsageError as error:
        what = str(error) if error.place[1:] else str(error).removeprefix("source: ")
        raise UsageError(f"source[{number}]: {what}", ("source", str(number), *error.place[1:])) from None
    return settings


def _encoded_as(masks: MaskSettings) -> tuple[Any, ...]:
    """What decides how a mask comes to latents, once it is drawn."""
    return masks.offset, masks.fill, masks.preset, masks.chosen_soft


def is_mixture(source: Any) -> bool:
    """Whether a source is several with settings of their own, or one of these."""
    if isinstance(source, list | tuple):
        return any(map(_is_entry, source))
    return _is_entry(source)


def _is_entry(item: Any) -> bool:
    """Whether it is one of a mixture, and no sample; so is what has a setting of theirs, or nothing of a sample."""
    if not isinstance(item, Mapping):
        return isinstance(item, SourceSettings)
    is_sample = "__key__" in item or any(isinstance(value, bytes) for value in item.values())
    return not is_sample


def of_stage(stage: str, source: Any, given: Given) -> StageSource | StageMixture:
    """The source of a stage, or the mixture.

    Raises:
        UsageError: a mixture for another stage than training; or see `StageSource` and `StageMixture`.
    """
    if not is_mixture(source):
        return StageSource(stage, source, given)
    if stage != "fit":
        name = PARAMETERS[stage]
        raise UsageError(
            f"{name}: is of all its samples, each once, without weights, repeats or settings of its own; name paths",
            (name,),
        )
    return StageMixture(source if isinstance(source, list | tuple) else [source], given)
