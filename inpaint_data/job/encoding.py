"""Encoding of a job's batches on its device, and the way there and back, with several batches under way.

On a GPU nobody waits in between: a batch crosses on a stream of its own while the one before is encoded, and its
latents come back on a third one. They are looked at when they are here: a batch with NaN or infinity in it is encoded
again the slow way, which retries in single precision and names samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from inpaint_data.batch import Batch, Carried, ImageBatch, select, to_device, with_tensors
from inpaint_data.encoding.device import free_memory, is_out_of_memory
from inpaint_data.encoding.vae import cause
from inpaint_data.errors import CacheError, EncodeError, UsageError
from inpaint_data.job.work import Work
from inpaint_data.latent_cache.text_members import text_members
from inpaint_data.latent_cache.variants import of_variant
from inpaint_data.shards.reading import Fault

UNDER_WAY = 2  # batches on a GPU: one that is encoded, and one that waits there so that it never stands still
Encoded = tuple[list[Batch], list[Fault]]  # a batch for each variant, on the CPU, and what cannot be encoded


@dataclass
class Encoding:
    """A batch on its way: `encoded` where it is under way on the device, else it waits for its turn."""

    batch: ImageBatch
    encoded: list[Batch] | None = None  # in pinned memory, as soon as it has `arrived`
    finite: list[Tensor] = field(default_factory=list)  # likewise
    arrived: torch.cuda.Event | None = None

    @property
    def shard(self) -> str:
        return self.batch["__shard__"][0]

    @property
    def images(self) -> int:
        return len(self.batch["__key__"])


class OnDevice:
    """The batches of a job on its device.

    Attributes:
        depth: how many may be under way before the first one is waited for.
        under_way: how many there are.
    """

    def __init__(self, work: Work) -> None:
        self._work, self.under_way = work, 0
        self._has_streams = work.device.type == "cuda"
        self.depth = UNDER_WAY if self._has_streams else 0
        # After a batch with NaN in it the next one is looked at first: half precision overflows often, or never.
        self._is_careful = False
        if self._has_streams:
            self._way_in: Any = torch.cuda.Stream(work.device)  # type: ignore[no-untyped-call]
            self._way_out: Any = torch.cuda.Stream(work.device)  # type: ignore[no-untyped-call]

    def begin(self, batch: ImageBatch) -> Encoding:
        """Send a batch to the device, and do not wait.

        Raises:
            UsageError, VaeError: see `InpaintTransform`.
        """
        self.under_way += 1
        encoding = Encoding(batch)
        if self._has_streams and not self._is_careful:
            try:
                self._launch(encoding)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                encoding = Encoding(batch)  # its turn comes when those before it have made room
        return encoding

    def _launch(self, encoding: Encoding) -> None:
        computing = torch.cuda.current_stream(self._work.device)
        with torch.cuda.stream(self._way_in):
            rows = _pictures_to(encoding.batch, self._work.device)
        computing.wait_stream(self._way_in)
        for tensor in rows.values():
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                tensor.record_stream(computing)  # whose memory is not given away before it was read
        unchecked: list[Tensor] = []
        encoded = self._work.encoder.variants(rows, unchecked)
        if self._work.text is not None:
            encoded[0]["carried"] = _with_text(rows, self._work.text)
        self._way_out.wait_stream(computing)
        with torch.cuda.stream(self._way_out):
            bring = _Bringing(self._way_out)
            encoding.encoded = [with_tensors(batch, bring) for batch in encoded]
            encoding.finite = list(map(bring, unchecked))
            encoding.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            encoding.arrived.record(self._way_out)

    def finish(self, encoding: Encoding) -> list[Encoded]:
        """Wait for a batch; of one that does not fit into memory, its parts.

        Raises:
            CacheError: one sample alone does not fit.
            UsageError, VaeError: see `InpaintTransform`.
        """
        self.under_way -= 1
        if encoding.arrived is not None and encoding.encoded is not None:
            encoding.arrived.synchronize()
            if all(bool(flags.all()) for flags in encoding.finite):
                return [(encoding.encoded, [])]
            encoding.encoded = None
        retries = self._work.encoder.autoencoder.retries
        parts = list(encode(self._work, encoding.batch))
        self._is_careful = self._work.encoder.autoencoder.retries > retries or any(faults for _, faults in parts)
        return parts


class _Bringing:
    """Brings tensors to pinned memory without waiting, each once: variants share what does not depend on the mask."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._brought: dict[int, tuple[Tensor, Tensor]] = {}  # with its source, lest another one gets its number

    def __call__(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor
        if id(tensor) not in self._brought:
            here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            here.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._stream)
            self._brought[id(tensor)] = tensor, here
        return self._brought[id(tensor)][1]


def _pictures_to(batch: ImageBatch, device: torch.device) -> ImageBatch:
    """The batch with its pictures and masks on the device; the numbers of samples stay here, where they are written."""
    pictures: Any = {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.ndim > 2}
    moved: Any = batch | to_device(pictures, device)
    return cast(ImageBatch, moved)


def encode(work: Work, batch: ImageBatch) -> Iterator[Encoded]:
    """Encode a batch on the device and bring it to the CPU; samples whose latents stay NaN become faults.

    A batch that does not fit into memory is encoded in halves, and halves of these.

    Yields:
        A batch for each variant, and the faults; of each part.

    Raises:
        CacheError: one sample alone does not fit.
    """
    try:
        encoded = _encode(work, batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        encoded, problem = None, cause(error)  # the error itself would keep what is in memory
    if encoded is not None:
        yield encoded
        return
    free_memory(work.device)
    count = len(batch["__key__"])
    if count == 1:
        height, width = batch["image"].shape[-2:]
        raise CacheError(
            f"{batch['__shard__'][0]}, sample {batch['__key__'][0]!r}: out of memory ({problem}) with this one sample "
            f"of {height} x {width} pixels, after batch_size {work.batch_size} was halved down to 1; free memory, "
            "or use another device, a smaller resolution or dtype bfloat16; finished shards are kept"
        )
    for rows in (range(count // 2), range(count // 2, count)):
        yield from encode(work, select(batch, rows))


def _encode(work: Work, batch: ImageBatch) -> Encoded:
    faults: list[Fault] = []
    rows = to_device(batch, work.device)
    while True:
        try:
            encoded = work.encoder.variants(rows)
            break
        except EncodeError as error:
            bad = set(error.indexes)
            keys = rows["__key__"]
            reason = "the VAE gives NaN or infinity for it, in float32 too; look at the image"
            faults += [Fault(rows["__shard__"][index], keys[index], reason, None, None) for index in sorted(bad)]
            rows = select(rows, [index for index in range(len(keys)) if index not in bad])
    batches = [to_device(variant, torch.device("cpu")) for variant in encoded]
    if work.text is not None:
        batches[0]["carried"] = _with_text(rows, work.text)
    return batches, faults


def _with_text(rows: ImageBatch, encoder: Any) -> Carried:
    """What the samples carry, and the embeddings of their captions.

    Raises:
        UsageError: a sample brings such members already.
    """
    carried = []
    for row, members in enumerate(rows["carried"]):
        captions = rows["captions"][row] if "captions" in rows else [rows["caption"][row]]
        picture = rows["image"][row] if encoder.needs_picture else None
        new = text_members(encoder.encode(captions[0], picture))
        for number, caption in enumerate(captions):
            if caption != captions[0]:
                own = text_members(encoder.encode(caption, picture))
                new |= {of_variant(number, name): data for name, data in own.items()}
        if existing := sorted(new.keys() & members.keys()):
            raise UsageError(
                f"{rows['__shard__'][row]}, sample {rows['__key__'][row]!r}: has a {existing[0]}; leave text_model "
                "out, or give shards without it"
            )
        carried.append({**members, **new})
    return Carried(carried)
