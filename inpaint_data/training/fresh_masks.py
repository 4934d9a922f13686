"""New masks every epoch for the pictures of a cache: their latents are there already."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from torch.utils.data import Dataset

from inpaint_data.encoding.transform import Batch
from inpaint_data.errors import CacheError, SampleError, UsageError
from inpaint_data.latent_cache.format import SIZES
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.pictures.examples import Example, ImageBatch, collate, prepare_again
from inpaint_data.pictures.geometry import Geometry
from inpaint_data.pictures.settings import SampleSettings, settings_of
from inpaint_data.shards.reading import Sample

FROM_CACHE = ("latents", "target_latents", "caption", *SIZES, "flip", "carried", "__key__", "__shard__")


class FreshMasks(Dataset[ImageBatch]):
    """The samples of a cache, to be masked anew: batches for `InpaintTransform` that have their `latents` already.

    Args:
        cache: made with `carry_image` "original", or "crop" where masks are drawn and not the sample's own.
        settings: where masks come from, and the seed. Sizes and crops are those that the cache recorded.
        threads: how many decode at a time.

    Attributes:
        epoch: set it before each epoch; it is the number of the mask variant.

    Raises:
        UsageError: the cache does not carry what the masks or the picture are made of.
    """

    def __init__(self, cache: LatentCache, settings: SampleSettings, threads: int) -> None:
        carry = cache.settings["samples"]["carry_image"]
        own = settings.drawn_from is None or settings.draws_objects
        if carry == "none" or (own and carry == "crop"):
            what = f"masks: {settings.masks} needs the original files" if own else "fresh masks need the pictures"
            raise UsageError(
                f"{cache.root}: {what}, but the cache was made with carry_image: {carry}; "
                f"make it with carry_image: {'original' if own else 'crop'}"
                + (", without soft, which is then given here" if own and cache.settings.get("soft") else "")
            )
        self.cache, self.settings, self.carry, self.epoch = cache, settings, carry, 0
        self.buckets = cache.buckets
        self._cut_by = settings_of(cache.settings["samples"])
        self._pool = ThreadPoolExecutor(max(1, threads), "inpaint_data-decode")

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, index: int) -> ImageBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> ImageBatch:
        """The batch as `collate` makes it, with `latents`, and `target_latents` where the cache has them."""
        self.cache.epoch = self.epoch
        cached = self.cache.__getitems__(indices)
        examples = list(self._pool.map(lambda row: self._prepare(cached, row), range(len(indices))))
        drawn: dict[str, Any] = dict(collate(examples, [self.epoch], self.settings.seed))
        kept = {name: value for name, value in cached.items() if name in FROM_CACHE}
        if self.carry == "crop":
            kept["carried"] = [
                {name: data for name, data in members.items() if name != "crop.png"} for members in cached["carried"]
            ]
        return cast(ImageBatch, drawn | kept)

    def _prepare(self, cached: Batch, row: int) -> Example:
        key, shard, carried = cached["__key__"][row], cached["__shard__"][row], cached["carried"][row]
        sizes = {name: tuple(cached[name][row].tolist()) for name in SIZES}  # type: ignore[literal-required]
        if self.carry == "crop":
            whole = sizes["target_size"]
            geometry, members = Geometry(whole, whole, (0, 0), whole), {"png": carried["crop.png"]}
        else:
            geometry, members = Geometry(**sizes, flip=bool(cached["flip"][row])), carried
        try:
            return prepare_again(Sample(shard, key, members), self.settings, [self.epoch], geometry, self._cut_by)
        except SampleError as error:
            raise CacheError(f"{self.cache.root}: {shard}, sample {key!r}: {error}") from None
