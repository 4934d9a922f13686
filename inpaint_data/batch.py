"""What a batch is: of decoded pictures on their way to the device, and of latents for a training step.

Shapes: B batch, K mask variants of a picture, C latent channels (2C for moments: mean, then log-variance), H W the
picture, h w latents, N references. One rule for variants: an `ImageBatch` has K masks of each picture, always; a
`Batch` has one mask of each sample, always. K variants of encoded pictures are K batches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypedDict, TypeVar, cast, get_args

import torch
from torch import Tensor

Posterior = Literal["mode", "sample", "moments"]  # how latents come from an autoencoder
POSTERIORS: tuple[Posterior, ...] = get_args(Posterior)
# The pictures that a sample may have beside its image, each encoded for itself -> the key of its latents.
PAIRED: Mapping[str, str] = MappingProxyType(
    {"target": "target_latents", "control": "control_latents", "references": "reference_latents"}
)
PixelsOf = Literal["image", "control"]  # pictures that a batch of latents may keep as they are
PIXELS: tuple[PixelsOf, ...] = get_args(PixelsOf)
SIZES = ("original_size", "resized_size", "crop_top_left", "target_size")


class Carried:
    """The members that a batch carries: `carried[row]` is a mapping of member name to bytes.

    Not a Sequence to Python: Lightning, which walks through those when it moves or converts a batch, would look at each
    byte, 0.7 s for a megabyte.
    """

    def __init__(self, of_samples: Iterable[Mapping[str, Any]]) -> None:
        self._of_samples = list(of_samples)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return self._of_samples[row]

    def __len__(self) -> int:
        return len(self._of_samples)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._of_samples)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Carried | list) and self._of_samples == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        names = sorted({name for members in self for name in members})
        return f"Carried({len(self)} samples of {', '.join(names) or 'nothing'})"


class _Identity(TypedDict, total=False):
    """What both kinds have.

    caption, __key__, __shard__: B strings. carried: of B samples, see `Carried`. original_size, resized_size,
    crop_top_left, target_size: (B, 2) int64, (height, width) or (top, left). flip: (B,) bool, mirrored.
    """

    caption: list[str]
    original_size: Tensor
    resized_size: Tensor
    crop_top_left: Tensor
    target_size: Tensor
    flip: Tensor
    carried: Carried
    __key__: list[str]
    __shard__: list[str]


class ImageBatch(_Identity, total=False):
    """Decoded pictures of one size with their masks, before the offset: what `Encoder` takes.

    image, target, control: (B, 3, H, W) uint8. references: (B, N, 3, H, W) uint8. masks: (B, K, H, W) bool, True =
    repaint. variants: K ints, the numbers that the masks were drawn with; drawn_with: of each sample K ints, where
    those of samples differ. masks_of: which of the `Encoder`'s settings of masks they are for, where it has several.
    captions: B lists of K, where those of a
    sample's masks differ; untold: of each whether it is the scene's, since nothing says its own. generator, edits: B
    lists of K, see `Batch`. areas: B lists of K, how many pixels are masked, so that relative offsets are drawn without
    asking the device. seed: of masks, offsets and noise.
    """

    image: Tensor
    target: Tensor
    control: Tensor
    references: Tensor
    masks: Tensor
    captions: list[list[str]]
    untold: list[list[bool]]
    variants: list[int]
    drawn_with: list[list[int]]
    masks_of: int
    areas: list[list[int]]
    seed: int
    generator: list[list[str]]
    edits: list[list[list[str]]]


class Batch(_Identity, total=False):
    """What a training step gets, live or from a cache, key for key.

    latents: (B, C, h, w) float32, raw; 2C channels with posterior "moments".
    masked_latents: the same, of the picture with its hole filled.
    hole_latents: the same, of what is in the hole, with grey around it; for the recipe that reads them.
    target_latents, control_latents: the same, of the paired target and conditioning pictures, where there are such.
    reference_latents: (B, N, C, h, w), the same, of the references.
    image, control: (B, 3, H, W) uint8, the pictures themselves, for models that read those.
    mask: (B, 1, H, W) at full resolution, after the offset: bool, True = repaint; or, where borders are soft, float32
        in [0, 1], 1 = repaint, every value k / 255.
    offset: (B,) int64, pixels. window: B names, what each mask grew or shrank by.
    variant: (B,) int64, the number that mask and offset were drawn with.
    generator: B names of where masks are from. edits: B lists of words, what was done to each mask afterwards
        (not tuples: a DataLoader makes lists of them).
    """

    latents: Tensor
    masked_latents: Tensor
    hole_latents: Tensor
    target_latents: Tensor
    control_latents: Tensor
    reference_latents: Tensor
    image: Tensor
    control: Tensor
    mask: Tensor
    offset: Tensor
    window: list[str]
    variant: Tensor
    generator: list[str]
    edits: list[list[str]]


AnyBatch = TypeVar("AnyBatch", ImageBatch, Batch)
KEYS = frozenset(Batch.__annotations__) | frozenset(ImageBatch.__annotations__) | frozenset(_Identity.__annotations__)
NOT_BY_SAMPLE = ("variants", "seed")  # entries that hold for the whole batch


def is_batch(item: object) -> bool:
    """Whether an item of a pipeline is a batch, and not a sample: it has the keys of several."""
    return isinstance(item, Mapping) and isinstance(item.get("__key__"), list)


def select(batch: AnyBatch, rows: Sequence[int]) -> AnyBatch:
    """The batch of those samples alone."""
    chosen: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            chosen[name] = value[torch.tensor(rows, dtype=torch.int64, device=value.device)]
        elif isinstance(value, list) and name not in NOT_BY_SAMPLE:
            chosen[name] = [value[row] for row in rows]
        elif isinstance(value, Carried):
            chosen[name] = Carried(value[row] for row in rows)
        else:
            chosen[name] = value
    return cast(AnyBatch, chosen)


def to_device(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """The batch with its tensors on `device`; from pinned memory without waiting. All else stays as it is."""
    return with_tensors(batch, lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))


def pinned(batch: AnyBatch) -> AnyBatch:
    """The batch with its tensors in pinned memory, from which a GPU fetches them by itself."""
    return with_tensors(batch, Tensor.pin_memory)


def with_tensors(batch: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
    """The batch with another tensor in place of each. All else stays as it is."""
    # Entry by entry: a walk into lists would look at every byte of carried members.
    changed = {name: change(value) if isinstance(value, Tensor) else value for name, value in batch.items()}
    kind: Any = type(batch)
    return cast(AnyBatch, kind(changed))
