"""Training examples: the arrays that are made of a sample, and the batch that is made of examples."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inpaint_data.batch import Carried, ImageBatch
from inpaint_data.errors import FilteredError, InpaintDataError, SampleError
from inpaint_data.masks.drawn import BoolArray
from inpaint_data.masks.edits import Origin
from inpaint_data.masks.mixture import OBJECT
from inpaint_data.masks.settings import BACKGROUND, MaskSettings
from inpaint_data.pictures.brought import (
    REFERENCES,
    decoded,
    image_of,
    mask_of,
    paired_picture,
    reference_members,
    references_of,
)
from inpaint_data.pictures.captions import caption_of
from inpaint_data.pictures.formats import Decoding
from inpaint_data.pictures.geometry import Geometry, Resize, Size, fitted, plan, plan_around
from inpaint_data.pictures.images import Uint8Array, decode_image, encode_png, image_size, in_planes, stated_orientation
from inpaint_data.pictures.mask_files import MaskReading, in_order, mask_pattern
from inpaint_data.pictures.object_masks import ObjectMask, find_objects
from inpaint_data.pictures.settings import Carry, ExampleSettings, PictureSettings
from inpaint_data.pictures.views import View, Views
from inpaint_data.seeding import generator_for, sample_id
from inpaint_data.shards.naming import shard_stem
from inpaint_data.shards.reading import Fault, Sample
from inpaint_data.shown import shortened

FIRST = 0  # the variant that cuts what a cache holds


@dataclass(frozen=True)
class Example:
    """One view of a sample with its K masks, ready for a batch."""

    key: str
    shard: str
    image: npt.NDArray[np.uint8]  # (H, W, 3)
    masks: npt.NDArray[np.bool_]  # (K, H, W), True = repaint, before the offset
    origins: tuple[Origin, ...]  # where each of the K masks is from
    variants: tuple[int, ...]  # the numbers that they were drawn with
    seed: int
    geometry: Geometry
    caption: str
    captions: tuple[str, ...]  # of each mask
    untold: tuple[bool, ...]  # of each mask, whether it should have a caption of its own, and nothing says one
    carried: dict[str, bytes]
    paired: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)  # name -> (H, W, 3), references (N, H, W, 3)

    @property
    def size(self) -> Size:
        return self.geometry.target_size


def prepare(
    sample: Sample, settings: ExampleSettings, variants: Sequence[int], views: Mapping[int, Size] | None = None
) -> list[Example | Fault]:
    """Decode a sample once, and cut and mask its views; K = len(variants) masks of each from (seed, sample, variant).

    All K masks share one cut, which the first variant decides: the first of a cache, the epoch's where it is live.

    Args:
        sample: the sample.
        settings: all that decides the pixels.
        variants: numbers of the mask variants.
        views: numbers of the views, and the size that each must have; None for all that the image gives.

    Returns:
        An example of each view, or a Fault that says why there is none: of the whole sample, or of a view. With `views`
        None, each view is accounted for.
    """
    try:
        with _only_sample_errors():
            settings.pictures.views.check_key(sample.key)
            parts = _Parts.of(sample, settings, settings.pictures.decoding, settings.pictures)
            settings.pictures.filters.check_image(parts.size, parts.caption)
            planned = settings.pictures.views.of(parts.size)
    except SampleError as error:
        return [_fault(sample.shard, sample.key, error)]
    results: list[Example | Fault] = []
    if views is None:
        results += _too_small(sample, settings.pictures.views, parts.size, planned)
    else:
        results += _not_as_promised(sample, settings.pictures.views, parts.size, planned, views)
    for view in planned:
        if views is None or views.get(view.number) == view.target:
            key = settings.pictures.views.key(sample.key, view.number)
            try:
                with _only_sample_errors():
                    results.append(parts.view(key, settings, view, variants))
            except SampleError as error:
                results.append(_fault(sample.shard, key, error))
    return results


def _too_small(sample: Sample, views: Views, size: Size, planned: Sequence[View]) -> list[Fault]:
    """A Fault for each view that the image is too small for, though not for all: left out on purpose."""
    missing = sorted(set(range(views.count)) - {view.number for view in planned})
    return [
        Fault(
            sample.shard,
            views.key(sample.key, number),
            f"resolution: image is {size[0]} high and {size[1]} wide, too small for {views.resolution_of(number)}",
            offset=None,
            end=None,
            on_purpose=True,
        )
        for number in missing
    ]


def _not_as_promised(
    sample: Sample, views: Views, size: Size, planned: Sequence[View], promised: Mapping[int, Size]
) -> list[Fault]:
    """A Fault for each promised view that the decoded image does not give: another size would be another batch."""
    given = {view.number: view.target for view in planned}
    return [
        Fault(
            sample.shard,
            views.key(sample.key, number),
            f"image is {size[0]} high and {size[1]} wide, but when training began its header promised a view of "
            f"{target[0]}x{target[1]}: it is wrong, or the shard was replaced; save the image again, or start again",
            offset=None,
            end=None,
        )
        for number, target in promised.items()
        if given.get(number) != target
    ]


def prepare_again(
    view: Sample,
    settings: ExampleSettings,
    variants: Sequence[int],
    geometry: Geometry,
    cut_by: ExampleSettings,
    decoding: Decoding,
) -> Example:
    """A view, whose key and geometry are known, with other masks.

    Args:
        view: the members of its sample, under its own key.
        settings: of the masks.
        variants: numbers of the mask variants.
        geometry: of the view.
        cut_by: the settings that it was cut by.
        decoding: how its members are decoded.

    Raises:
        SampleError: the sample cannot be used; the message is the reason and the fix.
    """
    with _only_sample_errors():
        parts = _Parts.of(view, settings, decoding, cut_by.pictures)
        if cut_by.pictures.views.crop_of(view.key) == "mask":
            parts = parts.around(view.key, cut_by.seed, FIRST)
        return parts.example(view.key, settings, geometry, variants)


@contextmanager
def _only_sample_errors() -> Iterator[None]:
    """The one place that knows that a stranger's bytes make decoders raise anything: it becomes a SampleError.

    A sample that needs more memory than there is would else end the job at every start.
    """
    try:
        yield
    except InpaintDataError:
        raise
    except MemoryError as error:
        raise SampleError("it needs more memory than there is; make its image or its masks smaller") from error
    except Exception as error:
        raise SampleError(
            f"it cannot be decoded ({type(error).__name__}: {shortened(str(error))}); look at it"
        ) from error


def _fault(shard: str, key: str, error: SampleError) -> Fault:
    return Fault(shard, key, str(error), None, None, on_purpose=isinstance(error, FilteredError))


@dataclass(frozen=True)
class _Parts:
    """The decoded parts of a sample that all its views are cut from, at the image's own size."""

    sample: Sample
    image_name: str  # the member that is the image
    image: npt.NDArray[np.uint8]  # of `size`, or decoded smaller
    size: Size
    caption: str
    mask: Uint8Array | None  # where all views and variants have the same, in levels
    objects: Sequence[ObjectMask]
    paired: Mapping[str, tuple[str, npt.NDArray[np.uint8]]]  # name -> its member and pixels
    references: Sequence[npt.NDArray[np.uint8]]  # each of its own size
    resize: Resize

    @classmethod
    def of(cls, sample: Sample, settings: ExampleSettings, decoding: Decoding, cut_by: PictureSettings) -> "_Parts":
        masks, pictures = settings.masks, settings.pictures
        image_name = image_of(sample, pictures.image)
        data = sample.members[image_name]
        reduced, size = 1, None
        if cut_by.reducing_gap is not None:
            size = decoded(image_name, image_size, data, decoding)
            reduced = cut_by.reduction(size)
        image = decoded(image_name, decode_image, data, replace(decoding, reduced=reduced))
        size = size or (image.shape[0], image.shape[1])
        turned = stated_orientation(data, decoding) or 1 if masks.reads_files or pictures.paired else 1
        reading = MaskReading(size, turned, masks, decoding)
        mask = mask_of(sample, data, reading) if masks.drawn_from is None else None
        objects = find_objects(sample.members, reading, sample.key) if masks.draws_objects else []
        paired = {
            name: paired_picture(sample, name, reading, reduced) for name in pictures.paired if name != REFERENCES
        }
        references = references_of(sample, pictures.references, decoding) if pictures.references else []
        caption = caption_of(sample.members, pictures.caption)
        resize = cut_by.resize
        return cls(sample, image_name, image, size, caption, mask, objects, paired, references, resize)

    def _files(self, masks: MaskSettings) -> set[str]:
        """The members that are images and masks, which a cache does not carry."""
        files = {self.image_name, *(member for member, _ in self.paired.values())}
        files.update(reference_members(self.sample) if self.references else ())
        return files.union(*(in_order(self.sample.members, mask_pattern(named)) for named in (None, masks.mask)))

    def view(self, key: str, settings: ExampleSettings, view: View, variants: Sequence[int]) -> Example:
        if view.crop == "mask":
            parts = self.around(key, settings.seed, variants[0])
            mask = parts.objects[0]() if parts.mask is None else parts.mask
            settings.pictures.filters.check_box(mask > 127)
            geometry = plan_around(
                mask > 127, view.target, settings.pictures.mask_padding, view.flip, settings.pictures.upscale
            )
        else:
            parts = self
            crop = cast(Literal["center", "random"], view.crop)
            rng = self._rng(key, settings.seed, variants[0], "crop")
            geometry = plan(self.size, view.target, crop, view.flip, rng, view.unscaled)
        example = parts.example(key, settings, geometry, variants)
        settings.pictures.filters.check_masks(example.masks)
        return example

    def _rng(self, key: str, seed: int, variant: int, purpose: str) -> np.random.Generator:
        return generator_for(seed, sample_id(shard_stem(self.sample.shard), key), variant, purpose)

    def around(self, key: str, seed: int, variant: int) -> "_Parts":
        """The same parts with the one object that crop "mask" is cut around."""
        parts = replace(self, resize="pillow")  # which resizes the box alone, however small it is
        if not self.objects:
            return parts
        order = self._rng(key, seed, variant, "crop").permutation(len(self.objects)).tolist()
        return replace(parts, objects=[self.objects[next(index for index in order if _shows(self.objects[index]))]])

    def example(self, key: str, settings: ExampleSettings, geometry: Geometry, variants: Sequence[int]) -> Example:
        cut = geometry.apply(self.image, self.resize)
        masks, origins, captions, untold = self._masks(key, settings, geometry, variants)
        return Example(
            key=key,
            shard=self.sample.shard,
            image=cut,
            masks=masks,
            origins=origins,
            variants=tuple(variants),
            seed=settings.seed,
            geometry=geometry,
            caption=self.caption,
            captions=captions,
            untold=untold,
            carried=_carried(self.sample, self._files(settings.masks), cut, settings.pictures.carry_image),
            paired=self._paired(geometry),
        )

    def _paired(self, geometry: Geometry) -> dict[str, npt.NDArray[np.uint8]]:
        paired = {name: geometry.apply(pixels, self.resize) for name, (_, pixels) in self.paired.items()}
        if self.references:
            whole = [fitted(pixels, geometry.target_size, geometry.flip) for pixels in self.references]
            paired[REFERENCES] = np.stack(whole)
        return paired

    def _masks(
        self, key: str, settings: ExampleSettings, geometry: Geometry, variants: Sequence[int]
    ) -> tuple[npt.NDArray[np.bool_], tuple[Origin, ...], tuple[str, ...], tuple[bool, ...]]:
        """The masks, and where each is from, its caption, and whether that is the scene's for want of its own."""
        count = len(variants)
        if self.mask is not None:
            mask = geometry.apply_to_mask(self.mask)
            origin = Origin(settings.masks.source)
            return np.repeat(mask[None], count, 0), (origin,) * count, (self.caption,) * count, (False,) * count
        mixture = settings.masks.drawn_from
        assert mixture is not None
        height, width = geometry.target_size

        cut: list[ObjectMask] = []  # in the order that they were asked for: the last one is that of the mask

        def cut_object(made: ObjectMask) -> BoolArray:
            cut.append(made)
            return geometry.apply_to_mask(made())

        objects = [partial(cut_object, made) for made in self.objects]
        masks, origins, captions, untold = [], [], [], []
        for variant in variants:
            mask, origin = mixture.draw(height, width, self._rng(key, settings.seed, variant, "mask"), objects)
            masks.append(mask)
            origins.append(origin)
            own = self._own_caption(origin, cut[-1] if origin.generator == OBJECT else None, settings.masks)
            captions.append(self.caption if own is None else own)
            untold.append(own is None and self._has_own(origin, settings.masks))
        return np.stack(masks), tuple(origins), tuple(captions), tuple(untold)

    def _own_caption(self, origin: Origin, drawn: ObjectMask | None, masks: MaskSettings) -> str | None:
        """The caption of a mask alone: none at all, or what is said of the object; None for the sample's."""
        source = _caption_source(origin, masks)
        if source == "empty":
            return ""
        return drawn.text(source, self.sample.members) or None if drawn is not None and source != "scene" else None

    def _has_own(self, origin: Origin, masks: MaskSettings) -> bool:
        return origin.generator == OBJECT and _caption_source(origin, masks) not in ("scene", "empty")


def _caption_source(origin: Origin, masks: MaskSettings) -> str:
    """Where the caption of a mask is from, as `masks.captions` has it."""
    is_background = origin.generator == OBJECT and "inverted" in origin.edits
    return (masks.captions or {}).get(BACKGROUND if is_background else origin.generator, "scene")


def _shows(make: Callable[[], Uint8Array]) -> bool:
    """Whether an object can be used, and is not empty."""
    try:
        return bool((make() > 127).any())
    except SampleError:
        return False


def _carried(sample: Sample, files: Collection[str], cut: npt.NDArray[np.uint8], carry: Carry) -> dict[str, bytes]:
    """The members that a cache holds beside its own: all but, unless they are asked for, images and masks."""
    if carry == "original":
        return dict(sample.members)
    carried = {name: data for name, data in sample.members.items() if name not in files}
    if carry == "crop":
        if "crop.png" in carried:
            raise SampleError("it has a member crop.png already; rename it, or set carry_image to none or original")
        carried["crop.png"] = encode_png(cut)
    return carried


def collate(examples: Sequence[Example]) -> ImageBatch:
    """Stack examples of one size that have as many variants, and the same seed."""

    def pairs(values: list[tuple[int, int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).reshape(-1, 2)

    batch: ImageBatch = {
        "image": torch.from_numpy(in_planes([example.image for example in examples])),
        "masks": torch.from_numpy(np.stack([example.masks for example in examples])),
        "areas": [np.count_nonzero(example.masks, axis=(1, 2)).tolist() for example in examples],
        "variants": list(examples[0].variants),
        "seed": examples[0].seed,
        "caption": [example.captions[0] for example in examples],
        "generator": [[origin.generator for origin in example.origins] for example in examples],
        "edits": [[list(origin.edits) for origin in example.origins] for example in examples],
        "original_size": pairs([example.geometry.original_size for example in examples]),
        "resized_size": pairs([example.geometry.resized_size for example in examples]),
        "crop_top_left": pairs([example.geometry.crop_top_left for example in examples]),
        "target_size": pairs([example.geometry.target_size for example in examples]),
        "flip": torch.tensor([example.geometry.flip for example in examples], dtype=torch.bool),
        "carried": Carried(example.carried for example in examples),
        "__key__": [example.key for example in examples],
        "__shard__": [f"{shard_stem(example.shard)}.tar" for example in examples],
    }
    if any(example.variants != examples[0].variants for example in examples):
        batch["drawn_with"] = [list(example.variants) for example in examples]
    if any(len(set(example.captions)) > 1 for example in examples):
        batch["captions"] = [list(example.captions) for example in examples]
    if any(any(example.untold) for example in examples):
        batch["untold"] = [list(example.untold) for example in examples]
    for name in examples[0].paired:
        pictures = [example.paired[name] for example in examples]
        planes = np.stack([in_planes(list(each)) for each in pictures]) if name == REFERENCES else in_planes(pictures)
        batch[name] = torch.from_numpy(planes)  # type: ignore[literal-required]
    return batch
