"""What decides the pixels of an example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from inpaint_data.errors import UsageError
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.masks.mixture import OBJECT, MaskMixture
from inpaint_data.pictures.filters import Filters
from inpaint_data.pictures.views import Views

Carry = Literal["none", "original", "crop"]
BROUGHT = ("sample", "alpha", OBJECT)  # those that come with the sample, and so can be cut around
MASK_SOURCES = ("sample", "alpha", "mixture", *GENERATORS, OBJECT)


@dataclass(frozen=True)
class SampleSettings:
    """What decides the pixels of an example: all of it is in a cache's fingerprint.

    Args:
        resolution: side of the square, in pixels. Several make a view of each picture at each that it is large enough
            for.
        crop: cut from the "center", from a "random" place that depends on (seed, key), or around the "mask" that comes
            with the sample (A1111's "only masked"); with "+flip" behind it mirrored. Several make a view each.
        upscale: enlarge pictures that are smaller than `resolution` instead of refusing them.
        masks: "sample" (the member `mask.png`, white = repaint), "alpha" (repaint where the picture is more
            transparent than not), "object" (one of the masks that `pictures/object_masks.py` finds in the sample), a
            generator's name, or "mixture" (drawn from `mixture`).
        seed: of every random choice.
        carry_image: what becomes of the picture in a cache: "none", "original" (its bytes) or "crop" (a PNG).
        target: each sample has a second picture, `target.jpg` (or png, webp), of the same size: what the masked
            region shall become (remove, replace, relight). It is cut like the first one.
        max_aspect: above 1, pictures keep their aspect as far as buckets of up to this aspect do, see `views.buckets`.
        bucket_step: sides of buckets are multiples of it.
        mask_padding: pixels of the original that crop "mask" leaves on each side (A1111: 32).
        filters: what is left out on purpose.
    """

    resolution: int | tuple[int, ...] = 512
    crop: str | tuple[str, ...] = "center"
    upscale: bool = False
    masks: str = "sample"
    seed: int = 0
    carry_image: Carry = "none"
    target: bool = False
    mixture: MaskMixture = field(default_factory=MaskMixture)
    max_aspect: float = 1.0
    bucket_step: int = 64
    mask_padding: int = 32
    filters: Filters = field(default_factory=Filters)

    def __post_init__(self) -> None:
        self.views.check()
        for name, value, choices in (
            ("masks", self.masks, MASK_SOURCES),
            ("carry_image", self.carry_image, ("none", "original", "crop")),
        ):
            if value not in choices:
                raise UsageError(f"{name}: {value!r} is unknown; choose from {', '.join(choices)}")
        if not isinstance(self.mixture, MaskMixture):
            raise UsageError(f"mixture: {self.mixture!r} is no mixture; give a MaskMixture")
        if type(self.mask_padding) is not int or self.mask_padding < 0:
            raise UsageError(f"mask_padding: {self.mask_padding!r} is no number of pixels; give 0 or more")
        if any(crop.startswith("mask") for crop in self.views.crops) and self.masks not in BROUGHT:
            raise UsageError(
                f"crop: mask cuts around a mask that comes with the sample, but masks is {self.masks}; "
                f"choose masks from {', '.join(BROUGHT)}, or another crop"
            )

    @cached_property
    def views(self) -> Views:
        resolutions = tuple(self.resolution) if isinstance(self.resolution, Sequence) else (self.resolution,)
        crops = (self.crop,) if isinstance(self.crop, str) else tuple(self.crop)
        return Views(resolutions, crops, self.upscale, self.max_aspect, self.bucket_step)

    @cached_property
    def drawn_from(self) -> MaskMixture | None:
        """What masks are drawn from; None where a sample brings its one mask."""
        if self.masks in ("sample", "alpha"):
            return None
        return self.mixture if self.masks == "mixture" else replace(self.mixture, weights={self.masks: 1.0})

    @property
    def draws_objects(self) -> bool:
        """Whether a mask may be one of the objects that a sample brings."""
        return self.drawn_from is not None and bool(self.drawn_from.weights.get(OBJECT))


def settings_of(recorded: Mapping[str, Any]) -> SampleSettings:
    """What a cache's settings say of its samples, in which JSON has lists for tuples; what they lack is the default."""
    known = {name: value for name, value in recorded.items() if name in SampleSettings.__dataclass_fields__}
    for name in ("resolution", "crop"):
        if isinstance(known.get(name), list):
            known[name] = tuple(known[name])
    for name, kind in (("mixture", MaskMixture), ("filters", Filters)):
        if name in known:
            known[name] = kind(**known[name])
    return SampleSettings(**known)
