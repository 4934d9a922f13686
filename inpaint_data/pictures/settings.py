"""Settings of how images are cut and which are left out, and all that decides the pixels of an example."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from inpaint_data.batch import PAIRED
from inpaint_data.errors import SampleError, UsageError
from inpaint_data.masks.settings import BROUGHT, MaskSettings
from inpaint_data.pictures.filters import Filters
from inpaint_data.pictures.formats import DECODERS, DEFAULT_FORMATS, MAX_PIXELS, Decoder, Decoding
from inpaint_data.pictures.geometry import Resize, Size, reduction
from inpaint_data.pictures.views import CROPS, Small, Views
from inpaint_data.settings import Choices, Natural, Settings, built, checked, member_name

Carry = Literal["none", "original", "crop"]


def _one_or_more(value: Any) -> Any:
    """A list of YAML as a tuple; `Views.check` says what is wrong with the rest."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _crop(value: Any) -> Any:
    """One crop or several, also as one text with commas."""
    return tuple(re.split(" *, *", value)) if isinstance(value, str) and "," in value else _one_or_more(value)


def _resolution(value: Any) -> Any:
    """One side or several; of a square both may be said: 1024x1024."""
    square = re.fullmatch(r"([0-9]{1,9})(?: ?[xX*] ?\1)?(?: ?px)?", value) if isinstance(value, str) else None
    return int(square[1]) if square else _one_or_more(value)


def _aspect(value: Any) -> Any:
    """A number, or a ratio such as 16:9."""
    ratio = re.fullmatch(r"([0-9]{1,5})[:/]([1-9][0-9]{0,4})", value) if isinstance(value, str) else None
    return int(ratio[1]) / int(ratio[2]) if ratio else value


def _formats(value: Any) -> tuple[str, ...]:
    """Names of formats, each once and in one order, whatever the order they are given in."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names:
        raise UsageError(f"{value!r} is not a list of formats; choose from {', '.join(DECODERS)}")
    if unknown := [name for name in names if name not in tuple(DECODERS)]:
        raise UsageError(f"{unknown[0]!r} is unknown; choose from {', '.join(DECODERS)}")
    return tuple(sorted(set(names)))


def caption_member(value: Any) -> str:
    """A caption's member as samples have it, or a field of one."""
    member, colon, path = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not member.strip() or (colon and not path):
        raise UsageError(f"{value!r} is not a caption; give a member such as txt, or a field of one: json:prompt")
    return f"{member_name(member)}{colon}{path}"


class PictureSettings(Settings):
    """Settings of how images are decoded and cut, and which are left out."""

    group = "pictures"

    resolution: Annotated[int | tuple[int, ...], checked(_resolution, int | list[int])] = 512
    """Side of the square, in pixels, a multiple of the autoencoder's downscale factor. Several make a view of each
    image at each resolution that it is large enough for."""

    crop: Annotated[str | tuple[str, ...], checked(_crop, str | list[str]), Choices(CROPS)] = "center"
    """Cut from the "center", from a "random" place, or around the "mask" that comes with the sample (A1111's "only
    masked"); with "+flip" behind it, mirrored. A random place depends on (seed, sample), live on the epoch too. Several
    make a view each, whose keys end in _view0, _view1 ..."""

    upscale: bool = False
    """Enlarge images smaller than the resolution instead of quarantining them."""

    small: Small = "quarantine"
    """What becomes of images smaller than the resolution that are not enlarged: "quarantine", or "bucket" (cut to a
    smaller bucket of their own, without resizing, as kohya does with bucket_no_upscale)."""

    max_aspect: Annotated[float, checked(_aspect, float)] = 1.0
    """Above 1, images keep their aspect as far as buckets of up to this aspect allow (SDXL: 2 to 4)."""

    bucket_step: Annotated[int, checked(lambda value: value, int)] = 64
    """Sides of buckets are multiples of it."""

    mask_padding: Natural = 32
    """Pixels of the original that crop "mask" leaves on each side (A1111: 32)."""

    filters: Annotated[Filters, built(Filters)] = Filters()
    """Samples to be left out on purpose, counted and listed: min_side, max_aspect, min_hole, max_hole, caption."""

    target: bool = False
    """Each sample has a paired picture, target.jpg (or another format), of the image's size: what the masked region
    shall become (remove, replace, relight). It is cut and encoded beside the image."""

    control: bool = False
    """Each sample has a conditioning picture, control.jpg (or another format), of the image's size: edges, depth or a
    pose. It is cut and encoded beside the image."""

    references: Natural = 0
    """How many reference pictures each sample has, reference.0.jpg, reference.1.jpg … (or reference.jpg), of any size:
    what shall appear in the hole. Each is brought whole to the image's size, on white, and encoded beside it."""

    image: Annotated[str | None, checked(member_name, str | None)] = None
    """The member that is the image, such as input.jpg; left out, the one that is named jpg, jpeg, png or webp."""

    caption: Annotated[str, checked(caption_member, str)] = "txt"
    """The member that is the caption, or a field of one that is JSON: json:prompt, meta.json:texts.0."""

    carry_image: Carry = "none"
    """What is carried of the image itself, in a cache or in a batch: "none", "original" (its bytes, and the sample's
    masks) or "crop" (what was cut out, a lossless PNG). Fresh masks need it."""

    formats: Annotated[tuple[str, ...], checked(_formats, list[str])] = DEFAULT_FORMATS
    """Formats of image files that are opened, told by their content; no other decoder ever runs. Also heic, with the
    extra of that name."""

    max_pixels: Annotated[int, Field(ge=1)] = MAX_PIXELS
    """Images of more pixels are quarantined unopened, for they take memory."""

    icc: Literal["srgb", "keep"] = "srgb"
    """Colours of files with an ICC profile (Display P3, Adobe RGB, CMYK …): converted to "srgb", as colour-managed
    viewers show them, or "keep", their numbers as they are. Masks are never converted."""

    reducing_gap: Annotated[float | None, Field(ge=1, allow_inf_nan=False)] = None
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size where at least this many times the size that it is resized to is
    left, as of Pillow's thumbnail and draft: 1 is fastest, 3 comes near to whole decoding (None). Pixels differ."""

    decoder: Decoder = "libjpeg"
    """Who decodes JPEGs: "libjpeg", or on the GPU "nvjpeg" (needs the extra of that name), after libjpeg has found them
    whole. Pixels differ by a few levels, by kind of GPU too. Masks, and with reducing_gap all, are always libjpeg's."""

    resize: Resize = "pillow"
    """Whose Lanczos brings images to their size: "pillow", or "torch" (2.13 or newer), three to seven times as fast and
    within 2 of 255 levels. Masks, and what is cut around them, are always Pillow's."""

    strict: bool = False
    """Quarantine files too whose pixels are all there, but which have any other defect that a decoder warns of."""

    @model_validator(mode="after")
    def _check_views(self) -> "PictureSettings":
        self.views.check()
        return self

    @property
    def paired(self) -> list[str]:
        """Names of the paired pictures that each sample has beside its image."""
        return [name for name in PAIRED if getattr(self, name)]

    @cached_property
    def decoding(self) -> Decoding:
        return Decoding(self.formats, self.max_pixels, self.icc, self.strict, decoder=self.decoder)

    def reduction(self, size: Size) -> int:
        """How many times smaller a JPEG of that upright size is decoded, for all of its views: 1, 2, 4 or 8."""
        if self.reducing_gap is None:
            return 1
        try:
            views = self.views.of(size)
        except SampleError:  # which is told when it is decoded
            return 1
        if any(view.unscaled or view.crop == "mask" for view in views):
            return 1
        return reduction(size, [view.target for view in views], self.reducing_gap)

    @cached_property
    def views(self) -> Views:
        resolutions = self.resolution if isinstance(self.resolution, tuple) else (self.resolution,)
        crops = self.crop if isinstance(self.crop, tuple) else (self.crop,)
        return Views(resolutions, crops, self.upscale, self.max_aspect, self.bucket_step, self.small)


@dataclass(frozen=True)
class ExampleSettings:
    """The settings that decide the pixels of an example.

    Args:
        pictures: how it is cut.
        masks: which masks it gets.
        seed: of every random choice.

    Raises:
        UsageError: images are cut around masks that do not come with them, a mixture would not be used, this torch has
            no Lanczos, or no GPU decodes JPEGs here.
    """

    pictures: PictureSettings = field(default_factory=PictureSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            self.masks.check_drawn()
        except UsageError as error:
            raise UsageError(str(error), place=("masks", *error.place)) from None
        if self.pictures.resize == "torch":
            from inpaint_data.pictures.torch_resize import check_torch_resizes  # settings are read without torch

            check_torch_resizes()
        if self.pictures.decoder == "nvjpeg":
            from inpaint_data.pictures.gpu_jpeg import check_decodes_on_gpu

            check_decodes_on_gpu()
        source = self.masks.source
        if any(crop.startswith("mask") for crop in self.pictures.views.crops) and source not in BROUGHT:
            raise UsageError(
                f"crop: mask cuts around a mask that comes with the sample, but masks is {source}; "
                f"choose masks from {', '.join(BROUGHT)}, or another crop",
                place=("pictures", "crop"),
            )
