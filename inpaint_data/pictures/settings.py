"""Settings of how images are cut and which are left out, and all that decides the pixels of an example."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import model_validator

from inpaint_data.batch import PAIRED
from inpaint_data.errors import UsageError
from inpaint_data.masks.settings import BROUGHT, MaskSettings
from inpaint_data.pictures.filters import Filters
from inpaint_data.pictures.views import Views
from inpaint_data.settings import Natural, Settings, built, checked, member_name

Carry = Literal["none", "original", "crop"]


def _one_or_more(value: Any) -> Any:
    """A list of YAML as a tuple; `Views.check` says what is wrong with the rest."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _caption(value: Any) -> str:
    member, colon, path = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not member.strip() or (colon and not path):
        raise UsageError(f"{value!r} is not a caption; give a member such as txt, or a field of one: json:prompt")
    return f"{member_name(member)}{colon}{path}"


class PictureSettings(Settings):
    """Settings of how images are cut, and which are left out."""

    group = "pictures"

    resolution: Annotated[int | tuple[int, ...], checked(_one_or_more, int | list[int])] = 512
    """Side of the square, in pixels, a multiple of the autoencoder's downscale factor. Several make a view of each
    image at each resolution that it is large enough for."""

    crop: Annotated[str | tuple[str, ...], checked(_one_or_more, str | list[str])] = "center"
    """Cut from the "center", from a "random" place, or around the "mask" that comes with the sample (A1111's "only
    masked"); with "+flip" behind it, mirrored. A random place depends on (seed, sample), live on the epoch too. Several
    make a view each, whose keys end in _view0, _view1 ..."""

    upscale: bool = False
    """Enlarge images smaller than the resolution instead of quarantining them."""

    max_aspect: Annotated[float, checked(lambda value: value, float)] = 1.0
    """Above 1, images keep their aspect as far as buckets of up to this aspect allow (SDXL: 2 to 4)."""

    bucket_step: Annotated[int, checked(lambda value: value, int)] = 64
    """Sides of buckets are multiples of it."""

    mask_padding: Natural = 32
    """Pixels of the original that crop "mask" leaves on each side (A1111: 32)."""

    filters: Annotated[Filters, built(Filters)] = Filters()
    """Samples to be left out on purpose, counted and listed: min_side, max_aspect, min_hole, max_hole, caption."""

    target: bool = False
    """Each sample has a paired picture, target.jpg (or png, webp), of the image's size: what the masked region
    shall become (remove, replace, relight). It is cut and encoded beside the image."""

    image: Annotated[str | None, checked(member_name, str | None)] = None
    """The member that is the image, such as input.jpg; left out, the one that is named jpg, jpeg, png or webp."""

    caption: Annotated[str, checked(_caption, str)] = "txt"
    """The member that is the caption, or a field of one that is JSON: json:prompt, meta.json:texts.0."""

    carry_image: Carry = "none"
    """What is carried of the image itself, in a cache or in a batch: "none", "original" (its bytes, and the sample's
    masks) or "crop" (what was cut out, a lossless PNG). Fresh masks need it."""

    @model_validator(mode="after")
    def _check_views(self) -> "PictureSettings":
        self.views.check()
        return self

    @property
    def paired(self) -> list[str]:
        """Names of the paired pictures that each sample has beside its image."""
        return [name for name in PAIRED if getattr(self, name)]

    @cached_property
    def views(self) -> Views:
        resolutions = self.resolution if isinstance(self.resolution, tuple) else (self.resolution,)
        crops = self.crop if isinstance(self.crop, tuple) else (self.crop,)
        return Views(resolutions, crops, self.upscale, self.max_aspect, self.bucket_step)


@dataclass(frozen=True)
class ExampleSettings:
    """The settings that decide the pixels of an example.

    Args:
        pictures: how it is cut.
        masks: which masks it gets.
        seed: of every random choice.

    Raises:
        UsageError: images are cut around masks that do not come with them, or a mixture would not be used.
    """

    pictures: PictureSettings = field(default_factory=PictureSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            self.masks.check_drawn()
        except UsageError as error:
            raise UsageError(str(error), place=("masks", *error.place)) from None
        source = self.masks.source
        if any(crop.startswith("mask") for crop in self.pictures.views.crops) and source not in BROUGHT:
            raise UsageError(
                f"crop: mask cuts around a mask that comes with the sample, but masks is {source}; "
                f"choose masks from {', '.join(BROUGHT)}, or another crop",
                place=("pictures", "crop"),
            )
