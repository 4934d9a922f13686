"""InpaintDataModule: the same batch from pictures, encoded live, or from a cache."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from inpaint_data.errors import SampleError, UsageError
from inpaint_data.latent_cache.reader import LatentCache
from inpaint_data.samples import Example, ImageBatch, SampleSettings, collate, prepare
from inpaint_data.seeding import generator_for
from inpaint_data.shards import Fault, Sample, expand_shards, read_shard
from inpaint_data.transform import Batch, Fill, InpaintTransform, Posterior
from inpaint_data.vae import Autoencoder, load_vae

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class ShardEnd:
    """Follows the last batch of a shard: what was in it and what did not come through."""

    shard: str
    samples_in: int = 0
    faults: list[Fault] = field(default_factory=list)
    decode_seconds: float = 0.0


class ImageBatches:
    """Decoded batches of shards, prepared by threads while the device works on earlier ones.

    Threads, not processes: the decoders let go of Python's lock, and no picture is copied between processes.
    Order and contents of the batches do not depend on the number of threads.

    Args:
        shards: paths or URLs, already expanded.
        settings: what decides the pixels.
        batch_size: samples in a batch; the last one of a shard may have fewer.
        threads: how many decode at a time.
        variants: the mask variants of every sample, or None: the one whose number is the epoch.
        shuffle: order of shards, and of samples within a window, drawn from (seed, epoch); batches cross shards.
        epoch: asked at the start of each pass.
    """

    WINDOW = 256  # encoded samples held back to be shuffled

    def __init__(
        self,
        shards: Sequence[str],
        settings: SampleSettings,
        batch_size: int,
        threads: int,
        variants: Sequence[int] | None,
        shuffle: bool = False,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.shards, self.settings, self.batch_size, self.threads = list(shards), settings, batch_size, max(1, threads)
        self.variants, self.shuffle, self.epoch = variants, shuffle, epoch
        self.bytes_read = 0  # of all shards so far

    def __iter__(self) -> Iterator[ImageBatch]:
        for event in self.events():
            if not isinstance(event, ShardEnd):
                yield event
                continue
            for fault in event.faults:
                log.warning("%s, sample %r is left out: %s", fault.shard, fault.key, fault.reason)

    def events(self) -> Iterator[ImageBatch | ShardEnd]:
        """The batches with a `ShardEnd` behind each shard."""
        epoch = self.epoch()
        variants = [epoch] if self.variants is None else list(self.variants)
        return _ahead(self._batches(epoch, variants), depth=2)

    def _batches(self, epoch: int, variants: list[int]) -> Iterator[ImageBatch | ShardEnd]:
        examples: list[Example] = []
        for item in self._examples(epoch, variants):
            if isinstance(item, Example):
                examples.append(item)
                if len(examples) < self.batch_size:
                    continue
            if examples and (isinstance(item, Example) or not self.shuffle):
                yield collate(examples, variants)
                examples = []
            if isinstance(item, ShardEnd):
                yield item
        if examples:
            yield collate(examples, variants)

    def _examples(self, epoch: int, variants: list[int]) -> Iterator[Example | ShardEnd]:
        with ThreadPoolExecutor(self.threads) as pool:
            pending: deque[Future[tuple[Example | Fault, float]] | ShardEnd] = deque()
            ends: dict[str, ShardEnd] = {}

            def next_done() -> Iterator[Example | ShardEnd]:
                first = pending.popleft()
                if isinstance(first, ShardEnd):
                    yield first
                    return
                result, seconds = first.result()
                shard = ends[result.shard]
                shard.decode_seconds += seconds
                if isinstance(result, Fault):
                    shard.faults.append(result)
                else:
                    yield result

            for item in self._read(epoch, ends):
                if isinstance(item, Sample):
                    pending.append(pool.submit(_prepare, item, self.settings, variants))
                else:
                    pending.append(item)
                while len(pending) > 2 * self.threads:
                    yield from next_done()
            while pending:
                yield from next_done()

    def _read(self, epoch: int, ends: dict[str, ShardEnd]) -> Iterator[Sample | ShardEnd]:
        shards, window, held = self.shards, self.WINDOW if self.shuffle else 0, []
        rng = generator_for(self.settings.seed, "", epoch, "order")
        if self.shuffle:
            shards = [shards[index] for index in rng.permutation(len(shards))]
        finished = []
        for shard in shards:
            end = ends[shard] = ShardEnd(shard)
            for item in read_shard(shard):
                if isinstance(item, Fault):
                    end.faults.append(item)
                    end.samples_in += item.key is not None
                    continue
                end.samples_in += 1
                self.bytes_read += sum(map(len, item.members.values()))
                held.append(item)
                if len(held) > window:
                    yield held.pop(int(rng.integers(len(held))) if self.shuffle else 0)
            finished.append(end)
            if not self.shuffle:
                yield finished.pop()
        while held:
            yield held.pop(int(rng.integers(len(held))))
        yield from finished


def _prepare(sample: Sample, settings: SampleSettings, variants: list[int]) -> tuple[Example | Fault, float]:
    started = time.perf_counter()
    try:
        result: Example | Fault = prepare(sample, settings, variants)
    except SampleError as error:
        result = Fault(sample.shard, sample.key, str(error), None, None)
    return result, time.perf_counter() - started


def _ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Run `items` in a thread of its own, up to `depth` ahead of whoever iterates; its errors surface there."""
    done, stopped = object(), threading.Event()
    queue: Queue[Any] = Queue(depth)

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((done, None))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that iterates
            put((done, error))

    thread = threading.Thread(target=run, name="inpaint_data-decode", daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


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


def _as_it_is(batch: Batch) -> Batch:
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
                raise UsageError(f"{name}: {value} is not a positive number")
        self.settings = SampleSettings(resolution, crop, upscale, masks, seed, carry_image)  # type: ignore[arg-type]
        self.cache, self.vae, self.dtype = cache, vae, dtype
        self.batch_size, self.variants, self.num_workers = batch_size, variants, num_workers
        self.mask_offset, self.fill, self.posterior = mask_offset, fill, posterior
        self._specs = {"fit": shards, "validate": val_shards, "predict": predict_shards or shards}
        self.shards = {stage: None if spec is None else expand_shards(spec) for stage, spec in self._specs.items()}
        self.transform: InpaintTransform | None = None
        if val_shards is None:
            # Lightning warns of an empty loader at every fit; a missing one simply means no validation.
            self.val_dataloader = None  # type: ignore[method-assign, assignment]

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - Lightning's signature
        """Load the autoencoder and check what can be checked before the first batch."""
        if self.trainer is not None and self.trainer.world_size > 1 and any(self.shards.values()):
            raise UsageError("image shards on several devices would give ranks unequal epochs; cache them first")
        if self.transform is not None or not any(self.shards.values()):
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
        raise UsageError(f"resolution: {resolution} is smaller than the VAE's downscale factor {factor}")
    if resolution % factor:
        lower = resolution // factor * factor
        raise UsageError(
            f"resolution: {resolution} is no multiple of the VAE's downscale factor {factor}; use {lower} or {lower + factor}"
        )
