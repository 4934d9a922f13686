"""New masks for the pictures that a cache carries, every epoch: its latents stay, its masks do not."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

from inpaint_data.batch import PAIRED, PIXELS, SIZES, Batch, Carried, ImageBatch, select
from inpaint_data.errors import CacheError, FilteredError, SampleError, UsageError
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.latent_cache.settings import CacheSettings
from inpaint_data.masks.mixture import MaskMixture
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures.examples import Example, collate, prepare_again
from inpaint_data.pictures.formats import Decoding
from inpaint_data.pictures.geometry import Geometry
from inpaint_data.pictures.settings import ExampleSettings, PictureSettings
from inpaint_data.shards.reading import Sample
from inpaint_data.training.mixture import Planned, Rows
from inpaint_data.training.sources import CacheSource

FROM_CACHE = ("latents", *PAIRED.values(), *PIXELS, "caption", *SIZES, "flip", "carried", "__key__", "__shard__")


def masks_over(cached: MaskSettings | None, changed: MaskSettings) -> MaskSettings:
    """The masks that a cache was made with, and over them those that were changed.

    The fill is not taken over: it is the recipe's, or else the preset's.
    """
    if cached is None:
        return changed
    changes = dict(changed.given)
    if "mixture" not in changes and changes.get("source", "mixture") != "mixture":
        # Its limits and edits stay; its weights would have no say.
        brought = changes["source"] in ("sample", "alpha")
        changes["mixture"] = MaskMixture() if brought else replace(cached.mixture, weights=MaskMixture().weights)
    try:
        return cached.but(**{"fill": None, **changes})
    except UsageError as error:
        raise UsageError(str(error), ("masks", *error.place)) from None


class FreshMasks:
    """The samples of a cache, to be masked anew: batches for `Encoder` that have their `latents` already.

    Args:
        cache: made with carry_image "original", or "crop" where masks are drawn and not the sample's own.
        masks: where masks come from. Sizes and crops are those that the cache recorded.
        seed: of the masks.
        threads: how many decode at a time.
        masks_of: which of the `Encoder`'s settings of masks these are.

    Raises:
        UsageError: the cache does not carry what the masks or the picture are made of.
    """

    def __init__(self, cache: LatentCache, masks: MaskSettings, seed: int, threads: int, masks_of: int = 0) -> None:
        settings: CacheSettings = cache.settings
        carry = settings.carry_image
        needs_files = masks.drawn_from is None or masks.draws_objects
        if carry == "none" or (needs_files and carry == "crop"):
            reason = (
                f"masks: {masks.source} needs the original files" if needs_files else "fresh masks need the pictures"
            )
            raise UsageError(
                f"{cache.root}: {reason}, but the cache was made with carry_image: {carry}; "
                f"make it with carry_image: {'original' if needs_files else 'crop'}"
            )
        if masks.captions:
            raise UsageError(
                f"{cache.root}: fresh masks have the captions that were cached, and masks.captions are to follow the "
                "masks; leave captions out, or train from images"
            )
        self.cache, self.carry, self.threads, self.masks_of = cache, carry, threads, masks_of
        self.buckets, self._cached = cache.buckets, CacheSource(cache)
        self._cut_by = settings.examples or ExampleSettings()
        cut_by = self._cut_by.pictures
        pictures = PictureSettings(image=cut_by.image if carry == "original" else None, caption=cut_by.caption)
        self.settings = ExampleSettings(pictures, masks, seed)
        # A crop is a PNG of the job's own, its colours converted already.
        self._decoding = Decoding() if carry == "crop" else self._cut_by.pictures.decoding

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def sizes(self) -> Rows:
        """(N, 2), height and width of every row."""
        return self.cache.sizes

    def planned(self, plan: Sequence[Planned], batch_size: int) -> Iterator[ImageBatch | None]:  # noqa: ARG002
        """Batches as `collate` makes them, with `latents`, and those of paired pictures where the cache has them.

        None where filters leave nothing of one.
        """
        # Here, in the process and the thread that reads: a pool does not survive a fork.
        with ThreadPoolExecutor(max(1, self.threads), "inpaint_data-decode") as pool:
            for planned in plan:
                cached = self._cached.batch(planned)
                numbers = planned.numbers.tolist()
                futures = [pool.submit(self._prepare, cached, row, number) for row, number in enumerate(numbers)]
                examples = [future.result() for future in futures]
                used = [row for row, example in enumerate(examples) if example is not None]
                kept = [example for example in examples if example is not None]
                yield self._batch(cached if len(used) == len(planned) else select(cached, used), kept) if kept else None

    def _batch(self, cached: Batch, examples: Sequence[Example]) -> ImageBatch:
        entries: dict[str, Any] = {name: value for name, value in cached.items() if name in FROM_CACHE}
        if self.carry == "crop":
            entries["carried"] = Carried(
                {name: data for name, data in members.items() if name != "crop.png"} for members in cached["carried"]
            )
        made = collate(examples)
        made.pop("captions", None)
        made.pop("untold", None)
        if self.masks_of:
            made["masks_of"] = self.masks_of
        return cast(ImageBatch, made | entries)

    def _prepare(self, cached: Batch, row: int, number: int) -> Example | None:
        """The sample with new masks; None where the cache's filters leave these out, as live training does."""
        key, shard, carried = cached["__key__"][row], cached["__shard__"][row], cached["carried"][row]
        sizes = {name: tuple(cached[name][row].tolist()) for name in SIZES}  # type: ignore[literal-required]
        if self.carry == "crop":
            whole = sizes["target_size"]
            geometry, members = Geometry(whole, whole, (0, 0), whole), {"png": carried["crop.png"]}
        else:
            geometry, members = Geometry(**sizes, flip=bool(cached["flip"][row])), dict(carried)
        try:
            example = prepare_again(
                Sample(shard, key, members), self.settings, [number], geometry, self._cut_by, self._decoding
            )
            self._cut_by.pictures.filters.check_masks(example.masks)
            return example
        except FilteredError:
            return None
        except SampleError as error:
            raise CacheError(f"{self.cache.root}: {shard}, sample {key!r}: {error}") from None
