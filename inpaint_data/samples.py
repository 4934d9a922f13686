"""From a shard's sample to the arrays of one training example, and from examples to a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inpaint_data.errors import SampleError, UsageError
from inpaint_data.geometry import Crop, Geometry, plan
from inpaint_data.images import decode_alpha, decode_image, decode_mask, encode_png
from inpaint_data.mask_generators import GENERATORS, BoolArray
from inpaint_data.masks import OBJECT, MaskMixture
from inpaint_data.object_masks import find_objects
from inpaint_data.seeding import generator_for
from inpaint_data.shards import IMAGE_EXTENSIONS, Sample, image_member, shard_stem

T = TypeVar("T")
Carry = Literal["none", "original", "crop"]
TARGETS = tuple(f"target.{extension}" for extension in IMAGE_EXTENSIONS)
MASK_SOURCES = ("sample", "alpha", "mixture", *GENERATORS, OBJECT)


@dataclass(frozen=True)
class SampleSettings:
    """What decides the pixels of an example: all of it is in a cache's fingerprint.

    Args:
        resolution: side of the square, in pixels.
        crop: cut from the "center", or from a "random" place that depends on (seed, key).
        upscale: enlarge pictures that are smaller than `resolution` instead of refusing them.
        masks: "sample" (the member `mask.png`, white = repaint), "alpha" (repaint where the picture is more
            transparent than not), "object" (one of the masks that `object_masks.py` finds in the sample), a
            generator's name, or "mixture" (drawn from `mixture`).
        seed: of every random choice.
        carry_image: what becomes of the picture in a cache: "none", "original" (its bytes) or "crop" (a PNG).
        target: each sample has a second picture, `target.jpg` (or png, webp), of the same size: what the masked
            region shall become (remove, replace, relight). It is cut like the first one.
    """

    resolution: int = 512
    crop: Crop = "center"
    upscale: bool = False
    masks: str = "sample"
    seed: int = 0
    carry_image: Carry = "none"
    target: bool = False
    mixture: MaskMixture = field(default_factory=MaskMixture)

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise UsageError(f"resolution: {self.resolution} is not a positive number of pixels; try 512")
        for name, value, choices in (
            ("crop", self.crop, ("center", "random")),
            ("masks", self.masks, MASK_SOURCES),
            ("carry_image", self.carry_image, ("none", "original", "crop")),
        ):
            if value not in choices:
                raise UsageError(f"{name}: {value!r} is unknown; choose from {', '.join(choices)}")


@dataclass(frozen=True)
class Example:
    """One sample, ready for a batch."""

    key: str
    shard: str
    image: npt.NDArray[np.uint8]  # (H, W, 3)
    masks: npt.NDArray[np.bool_]  # (K, H, W), True = repaint, before the offset
    generators: tuple[str, ...]  # where each of the K masks is from
    geometry: Geometry
    caption: str
    carried: dict[str, bytes]
    target: npt.NDArray[np.uint8] | None = None  # (H, W, 3)


class ImageBatch(TypedDict, total=False):
    """What `collate` makes and `InpaintTransform` takes.

    `image` and, where samples have one, `target` (B, 3, H, W) uint8; `mask` (B, K, H, W) bool before the offset;
    `variants` the K variant numbers and `seed` what masks are drawn with. `original_size`, `resized_size`,
    `crop_top_left` and `target_size` (B, 2) int64 are (height, width) or (top, left).
    """

    image: Tensor
    target: Tensor
    mask: Tensor
    variants: list[int]
    seed: int
    caption: list[str]
    generator: list[tuple[str, ...]]
    original_size: Tensor
    resized_size: Tensor
    crop_top_left: Tensor
    target_size: Tensor
    carried: list[dict[str, bytes]]
    __key__: list[str]
    __shard__: list[str]


def prepare(
    sample: Sample, settings: SampleSettings, variants: Sequence[int], geometry: Geometry | None = None
) -> Example:
    """Decode, cut and mask one sample; its K = len(variants) masks are drawn from (seed, key, variant).

    Where `geometry` is given, the picture is cut by it and not by the settings.

    Raises:
        SampleError: the sample cannot be used; the message is the reason and the mend.
    """
    name = image_member(sample)
    data = sample.members[name]
    image = _named(name, decode_image, data)
    if geometry is None:
        rng = generator_for(settings.seed, sample.key, 0, "crop")
        size = (image.shape[0], image.shape[1])
        geometry = plan(size, settings.resolution, settings.crop, rng, settings.upscale)
    cut = geometry.apply(image)
    masks, generators = _masks(sample, data, settings, geometry, variants)
    target_name = _target_member(sample) if settings.target else None
    return Example(
        key=sample.key,
        shard=sample.shard,
        image=cut,
        masks=masks,
        generators=generators,
        geometry=geometry,
        caption=_caption(sample),
        carried=_carried(sample, (name, target_name, "mask.png"), cut, settings.carry_image),
        target=None if target_name is None else _target(sample, target_name, geometry),
    )


def _target_member(sample: Sample) -> str:
    found = [name for name in sample.members if name in TARGETS]
    if len(found) != 1:
        what = f"several targets: {', '.join(found)}; keep one" if found else "no target; add target.jpg"
        raise SampleError(f"{what}, or set target: false")
    return found[0]


def _target(sample: Sample, name: str, geometry: Geometry) -> npt.NDArray[np.uint8]:
    picture = _named(name, decode_image, sample.members[name])
    if picture.shape[:2] != geometry.original_size:
        (height, width), (own_height, own_width) = geometry.original_size, picture.shape[:2]
        raise SampleError(
            f"{name} is {own_height} high and {own_width} wide, but image is {height} high and {width} wide; "
            "give targets the image's size"
        )
    return geometry.apply(picture)


def _masks(
    sample: Sample, image_data: bytes, settings: SampleSettings, geometry: Geometry, variants: Sequence[int]
) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
    if settings.masks in ("sample", "alpha"):
        given = _mask_member(sample) if settings.masks == "sample" else _mask_from_alpha(image_data)
        if given.shape != geometry.original_size:
            (mask_h, mask_w), (height, width) = given.shape, geometry.original_size
            turned = " as its EXIF orientation turns it" if given.shape == geometry.original_size[::-1] else ""
            raise SampleError(
                f"mask is {mask_h} high and {mask_w} wide, but image is {height} high and {width} wide{turned}; "
                "give masks the image's size"
            )
        mask = geometry.apply_to_mask(given)
        return np.repeat(mask[None], len(variants), 0), (settings.masks,) * len(variants)

    mixture = settings.mixture
    if settings.masks != "mixture":
        mixture = replace(mixture, weights={settings.masks: 1.0})
    height, width = geometry.target_size
    objects = _objects(sample, geometry) if mixture.weights.get(OBJECT) else []
    drawn = [
        mixture.draw(height, width, generator_for(settings.seed, sample.key, variant, "mask"), objects)
        for variant in variants
    ]
    return np.stack([mask for mask, _ in drawn]), tuple(name for _, name in drawn)


def _objects(sample: Sample, geometry: Geometry) -> list[Callable[[], BoolArray]]:
    found = find_objects(sample.members, geometry.original_size)
    return [lambda make=make: geometry.apply_to_mask(make()) for make in found]  # type: ignore[misc]


def _mask_member(sample: Sample) -> npt.NDArray[np.bool_]:
    if "mask.png" not in sample.members:
        raise SampleError(
            f"no mask: the sample has {', '.join(sorted(sample.members))}; add {sample.key}.mask.png, "
            "or draw masks with masks: mixture"
        )
    return _named("mask.png", decode_mask, sample.members["mask.png"])


def _named(member: str, decode: Callable[[bytes], T], data: bytes) -> T:
    """Decode, and say in the error which member it was."""
    try:
        return decode(data)
    except SampleError as error:
        raise SampleError(f"{member}: {error}") from None


def _mask_from_alpha(image_data: bytes) -> npt.NDArray[np.bool_]:
    alpha = decode_alpha(image_data)
    if alpha is None:
        raise SampleError("no mask: the image has no alpha channel; use masks: sample or masks: mixture")
    return alpha < 128


def _caption(sample: Sample) -> str:
    try:
        return sample.members.get("txt", b"").decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleError(
            f"txt: the caption is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def _carried(
    sample: Sample, pictures: tuple[str | None, ...], cut: npt.NDArray[np.uint8], carry: Carry
) -> dict[str, bytes]:
    if carry == "original":
        return dict(sample.members)
    carried = {name: data for name, data in sample.members.items() if name not in pictures}
    if carry == "crop":
        if "crop.png" in carried:
            raise SampleError("it has a member crop.png already; rename it, or set carry_image to none or original")
        carried["crop.png"] = encode_png(cut)
    return carried


def collate(examples: Sequence[Example], variants: Sequence[int], seed: int) -> ImageBatch:
    """Stack examples of one size. B is their number, K that of the variants."""

    def pairs(values: list[tuple[int, int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).reshape(-1, 2)

    batch: dict[str, Any] = {
        "image": torch.from_numpy(np.stack([e.image for e in examples])).permute(0, 3, 1, 2),
        "mask": torch.from_numpy(np.stack([e.masks for e in examples])),
        "variants": list(variants),
        "seed": seed,
        "caption": [e.caption for e in examples],
        "generator": [e.generators for e in examples],
        "original_size": pairs([e.geometry.original_size for e in examples]),
        "resized_size": pairs([e.geometry.resized_size for e in examples]),
        "crop_top_left": pairs([e.geometry.crop_top_left for e in examples]),
        "target_size": pairs([e.geometry.target_size for e in examples]),
        "carried": [e.carried for e in examples],
        "__key__": [e.key for e in examples],
        "__shard__": [f"{shard_stem(e.shard)}.tar" for e in examples],
    }
    if targets := [e.target for e in examples if e.target is not None]:
        batch["target"] = torch.from_numpy(np.stack(targets)).permute(0, 3, 1, 2)
    return cast(ImageBatch, batch)


def select(batch: ImageBatch, rows: Sequence[int]) -> ImageBatch:
    """The batch of those samples alone."""
    chosen: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            chosen[name] = value[torch.tensor(rows, dtype=torch.int64, device=value.device)]
        elif isinstance(value, list) and name != "variants":
            chosen[name] = [value[row] for row in rows]
        else:
            chosen[name] = value
    return cast(ImageBatch, chosen)
