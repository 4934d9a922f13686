"""From a shard's sample to the arrays of one training example, and from examples to a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inpaint_data.errors import FilteredError, SampleError
from inpaint_data.masks.generators import BoolArray
from inpaint_data.pictures.geometry import Geometry, Size, plan, plan_around
from inpaint_data.pictures.images import decode_alpha, decode_image, decode_mask, encode_png
from inpaint_data.pictures.object_masks import MEMBER, find_objects
from inpaint_data.pictures.settings import Carry, SampleSettings
from inpaint_data.pictures.views import View, Views
from inpaint_data.seeding import generator_for
from inpaint_data.shards.reading import IMAGE_EXTENSIONS, Fault, Sample, image_member, shard_stem

T = TypeVar("T")
TARGETS = tuple(f"target.{extension}" for extension in IMAGE_EXTENSIONS)


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
    `crop_top_left` and `target_size` (B, 2) int64 are (height, width) or (top, left); `flip` (B,) bool.
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
    flip: Tensor
    carried: list[dict[str, bytes]]
    __key__: list[str]
    __shard__: list[str]


def prepare(
    sample: Sample, settings: SampleSettings, variants: Sequence[int], views: Sequence[int] | None = None
) -> list[Example | Fault]:
    """Decode a sample once, and cut and mask its views; K = len(variants) masks of each from (seed, its key, variant).

    Args:
        sample: the sample.
        settings: what decides the pixels.
        variants: numbers of the mask variants.
        views: numbers of the views; None for all that the picture gives.

    Returns:
        An example of each view, or why there is none: of the whole sample, or of a view. With `views` None, each view
        is accounted for.
    """
    try:
        settings.views.check_key(sample.key)
        parts = _Parts.of(sample, settings)
        settings.filters.check_picture(parts.size, parts.caption)
        planned = settings.views.of(parts.size)
    except SampleError as error:
        return [_fault(sample.shard, sample.key, error)]
    made: list[Example | Fault] = []
    if views is None:
        made += _too_small(sample, settings.views, parts.size, planned)
    for view in planned:
        if views is None or view.number in views:
            key = settings.views.key(sample.key, view.number)
            try:
                made.append(parts.view(key, settings, view, variants))
            except SampleError as error:
                made.append(_fault(sample.shard, key, error))
    return made


def _too_small(sample: Sample, views: Views, size: Size, planned: Sequence[View]) -> list[Fault]:
    """The views that a picture is too small for, though not for all, count as left out on purpose."""
    missing = sorted(set(range(views.count)) - {view.number for view in planned})
    what = f"resolution: image is {size[0]} high and {size[1]} wide, too small for"
    return [
        Fault(sample.shard, views.key(sample.key, number), f"{what} {views.resolution_of(number)}", None, None, True)
        for number in missing
    ]


def prepare_again(
    view: Sample, settings: SampleSettings, variants: Sequence[int], geometry: Geometry, cut_by: SampleSettings
) -> Example:
    """A view, whose key and geometry are known, with other masks.

    Args:
        view: the members of its sample, under its own key.
        settings: of the masks.
        variants: numbers of the mask variants.
        geometry: of the view.
        cut_by: the settings that it was cut by.

    Raises:
        SampleError: the sample cannot be used; the message is the reason and the mend.
    """
    parts = _Parts.of(view, settings)
    if cut_by.views.crop_of(view.key) == "mask":
        parts = parts.around(view.key, cut_by.seed)
    return parts.example(view.key, settings, geometry, variants)


def _fault(shard: str, key: str, error: SampleError) -> Fault:
    return Fault(shard, key, str(error), None, None, filtered=isinstance(error, FilteredError))


@dataclass(frozen=True)
class _Parts:
    """What all views of a sample are made of, at the picture's own size."""

    sample: Sample
    name: str  # of the image
    image: npt.NDArray[np.uint8]
    caption: str
    mask: BoolArray | None  # where all views and variants have the same
    objects: Sequence[Callable[[], BoolArray]]
    target_name: str | None
    target: npt.NDArray[np.uint8] | None

    @classmethod
    def of(cls, sample: Sample, settings: SampleSettings) -> "_Parts":
        name = image_member(sample)
        data = sample.members[name]
        image = _named(name, decode_image, data)
        size = (image.shape[0], image.shape[1])
        mask = _given_mask(sample, data, size, settings.masks) if settings.drawn_from is None else None
        objects = find_objects(sample.members, size) if settings.draws_objects else []
        target_name = _target_member(sample) if settings.target else None
        target = None if target_name is None else _target(sample, target_name, size)
        return cls(sample, name, image, _caption(sample), mask, objects, target_name, target)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    def view(self, key: str, settings: SampleSettings, view: View, variants: Sequence[int]) -> Example:
        if view.crop == "mask":
            parts = self.around(key, settings.seed)
            mask = parts.objects[0]() if parts.mask is None else parts.mask
            settings.filters.check_box(mask)
            geometry = plan_around(mask, view.target, settings.mask_padding, view.flip, settings.upscale)
        else:
            parts, crop = self, cast(Literal["center", "random"], view.crop)
            geometry = plan(self.size, view.target, crop, view.flip, generator_for(settings.seed, key, 0, "crop"))
        example = parts.example(key, settings, geometry, variants)
        settings.filters.check_masks(example.masks)
        return example

    def around(self, key: str, seed: int) -> "_Parts":
        """With the one object that crop "mask" is around, which alone is masked then; an empty one only if all are."""
        if not self.objects:
            return self
        for chosen in generator_for(seed, key, 0, "crop").permutation(len(self.objects)).tolist():
            if self.objects[chosen]().any():
                break
        return replace(self, objects=[self.objects[chosen]])

    def example(self, key: str, settings: SampleSettings, geometry: Geometry, variants: Sequence[int]) -> Example:
        cut = geometry.apply(self.image)
        masks, generators = self._masks(key, settings, geometry, variants)
        return Example(
            key=key,
            shard=self.sample.shard,
            image=cut,
            masks=masks,
            generators=generators,
            geometry=geometry,
            caption=self.caption,
            carried=_carried(self.sample, (self.name, self.target_name), cut, settings.carry_image),
            target=None if self.target is None else geometry.apply(self.target),
        )

    def _masks(
        self, key: str, settings: SampleSettings, geometry: Geometry, variants: Sequence[int]
    ) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
        if self.mask is not None:
            mask = geometry.apply_to_mask(self.mask)
            return np.repeat(mask[None], len(variants), 0), (settings.masks,) * len(variants)
        mixture = settings.drawn_from
        assert mixture is not None
        height, width = geometry.target_size
        objects: Any = [lambda make=make: geometry.apply_to_mask(make()) for make in self.objects]
        drawn = [
            mixture.draw(height, width, generator_for(settings.seed, key, variant, "mask"), objects)
            for variant in variants
        ]
        return np.stack([mask for mask, _ in drawn]), tuple(name for _, name in drawn)


def _target_member(sample: Sample) -> str:
    found = [name for name in sample.members if name in TARGETS]
    if len(found) != 1:
        what = f"several targets: {', '.join(found)}; keep one" if found else "no target; add target.jpg"
        raise SampleError(f"{what}, or set target: false")
    return found[0]


def _target(sample: Sample, name: str, size: Size) -> npt.NDArray[np.uint8]:
    picture = _named(name, decode_image, sample.members[name])
    if picture.shape[:2] != size:
        (height, width), (own_height, own_width) = size, picture.shape[:2]
        raise SampleError(
            f"{name} is {own_height} high and {own_width} wide, but image is {height} high and {width} wide; "
            "give targets the image's size"
        )
    return picture


def _given_mask(sample: Sample, image_data: bytes, size: Size, masks: str) -> BoolArray:
    given = _mask_member(sample) if masks == "sample" else _mask_from_alpha(image_data)
    if given.shape != size:
        (mask_h, mask_w), (height, width) = given.shape, size
        turned = " as its EXIF orientation turns it" if given.shape == size[::-1] else ""
        raise SampleError(
            f"mask is {mask_h} high and {mask_w} wide, but image is {height} high and {width} wide{turned}; "
            "give masks the image's size"
        )
    return given


def _mask_member(sample: Sample) -> npt.NDArray[np.bool_]:
    if "mask.png" not in sample.members:
        objects = any(MEMBER.fullmatch(name) or name == "json" for name in sample.members)
        raise SampleError(
            f"no mask: the sample has {', '.join(sorted(sample.members))}; add {sample.key}.mask.png, "
            f"or {'take its objects with masks: object' if objects else 'draw masks with masks: mixture'}"
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
    """What a cache holds beside its own members: all others but, unless asked for, pictures and masks."""
    if carry == "original":
        return dict(sample.members)
    carried = {
        name: data for name, data in sample.members.items() if name not in pictures and not MEMBER.fullmatch(name)
    }
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
        "flip": torch.tensor([e.geometry.flip for e in examples], dtype=torch.bool),
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
