"""Settings of masks: where they come from, how far they grow, and what the hole holds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import field_validator, model_validator

from inpaint_data.errors import UsageError
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.masks.mixture import OBJECT, MaskMixture
from inpaint_data.masks.offsets import Offset, RandomOffset, check_offset, offset_from
from inpaint_data.masks.presets import PRESETS, Fill, Preset, preset_of
from inpaint_data.masks.soft_border import SoftBorder
from inpaint_data.settings import Choices, Flag, Settings, built_of, checked, member_name, spelled
from inpaint_data.shown import meant

BROUGHT = ("sample", "alpha", OBJECT)  # those that come with the sample, and so can be cut around
Repaint = Literal["light", "dark", "nonzero", "opaque", "transparent"]
Orientation = Literal["upright", "stored"]
BACKGROUND = "background"  # an object mask that was inverted
SOURCES = ("sample", "alpha", "mixture", *GENERATORS, OBJECT)


_RANGE = re.compile(  # -8,24 and -8..24, as one types them
    r"[\[( ]*([-+]?[0-9]{1,9}) ?(?:px)?(?:(?: *,|\.\.+|:| ) *([-+]?[0-9]{1,9}) ?(?:px)?)?[\]) ]*"
)


def _source(value: Any) -> str:
    if value not in SOURCES:
        raise UsageError(f"masks: {value!r} is unknown; choose from {', '.join(SOURCES)}{meant(value, SOURCES)}")
    return str(value)


def _offset(value: Any) -> Offset | None:
    if value is None:
        return None
    if isinstance(value, str) and (numbers := _RANGE.fullmatch(value)):
        low, high = numbers.groups()
        value = int(low) if high is None else [int(low), int(high)]
    if isinstance(value, Mapping):
        value = built_of(RandomOffset, value)
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        value = offset_from(value)
    check_offset(value)
    return value  # type: ignore[no-any-return]


def _preset(value: Any) -> Preset:
    if isinstance(value, Mapping):
        value = built_of(Preset, {name: _soft(each) if name == "soft" else each for name, each in value.items()})
    return preset_of(value)


def _soft(value: Any) -> SoftBorder | None:
    if value is None or isinstance(value, SoftBorder):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(f"soft: {value!r} is not a border; give a SoftBorder, in YAML {{kind: gaussian, radius: 4}}")
    return built_of(SoftBorder, value)


def _captions(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise UsageError(f"captions: {value!r} is not a mapping; write {{object: category_name, full: empty}}")
    known = (*GENERATORS, OBJECT, BACKGROUND)
    for kind, source in value.items():
        if kind not in known:
            raise UsageError(f"captions: there is no mask {kind!r}; choose from {', '.join(known)}{meant(kind, known)}")
        if not isinstance(source, str) or not source or (kind != OBJECT and source not in ("scene", "empty")):
            what = "scene, empty, a field of annotations or json:PATH" if kind == OBJECT else "scene or empty"
            raise UsageError(f"captions: {kind}: {source!r} is not a caption that it can have; give {what}")
    return dict(value)


class MaskSettings(Settings):
    """Settings of masks: where they come from, how far they grow, and what the hole holds."""

    group = "masks"

    source: Annotated[str, checked(_source, str), Flag("masks"), Choices(SOURCES)] = "sample"
    """"sample" (the member mask.png, white = repaint), "alpha" (repaint where the image is more transparent than
    not, or with repaint: opaque the rest),
    "object" (mask.0.png ..., or COCO, LabelMe or VIA annotations in json), a generator's name, or "mixture"."""

    mixture: MaskMixture = MaskMixture()
    """Weights, limits of the hole, inversion and more, see MaskMixture; best written in a YAML file."""

    offset: Annotated[Offset | None, checked(_offset, int | list[int] | dict[str, Any] | None), Flag("mask_offset")] = (
        None
    )
    """Pixels to grow (> 0) or shrink (< 0) masks by; [low, high] draws one for each mask, and a mapping is a
    RandomOffset. Left out, it is the preset's: 6, or 0 where the preset grows nothing."""

    fill: Annotated[Fill | None, spelled({"gray": "grey"})] = None
    """What the hole holds when it is encoded, see fill_hole; left out, the preset's."""

    preset: Annotated[Preset, checked(_preset, str | dict[str, Any]), Choices(tuple(PRESETS))] = PRESETS["was"]
    """The tool whose way with masks is followed: "was" (they grow alike on all sides), "comfy" and
    "comfy-conditioning" (ComfyUI's own nodes), "diffusers" (they do not grow), "a1111" (with its mask blur of 4) or
    "fooocus", see PRESETS; or a mapping of your own, see Preset."""

    soft: Annotated[SoftBorder | None, checked(_soft, dict[str, Any] | None)] = None
    """Soften the border of masks, see SoftBorder: {kind: gaussian, radius: 4}. Batches then have float masks, a cache
    soft_mask.png of 8 bits in place of mask.pbm. Left out, the preset's."""

    captions: Annotated[dict[str, str] | None, checked(_captions, dict[str, str] | None)] = None
    """Captions that follow the mask: {object: category_name, background: scene, full: empty}. "scene" is the sample's
    own, which all have that are left out; of "object" also a field of its annotation, or json:PATH to a list with a
    text for each mask.N.png; "background" is an object turned over. An object without a text has the scene's."""

    mask: Annotated[str | None, checked(member_name, str | None)] = None
    """The member that is the mask of a sample, such as seg.png (objects: seg.0.png ... too); left out, mask.png, or
    jpg, jpeg or webp."""

    repaint: Repaint | None = None
    """What of mask files is repainted: "light" (above a half), "dark" (below it), "nonzero" (all classes of a label
    map), "opaque" or "transparent" (ComfyUI); the last two also of an image's alpha. Left out, what each surely means;
    where that is in doubt the sample is quarantined."""

    orientation: Orientation | None = None
    """Whether masks without EXIF, of images that EXIF turns, are for the "upright" image or for its pixels as
    "stored". Left out, what their size says; where both fit the sample is quarantined."""

    # Not in the type: jsonargparse, with which LightningCLI reads settings, cannot look into an annotated dataclass
    # whose fields have factories.
    @field_validator("mixture", mode="plain", json_schema_input_type=dict[str, Any])
    @classmethod
    def _build_mixture(cls, value: Any) -> MaskMixture:
        return value if isinstance(value, MaskMixture) else built_of(MaskMixture, value)

    @model_validator(mode="after")
    def _check_drawn(self) -> "MaskSettings":
        if "source" in self.model_fields_set:  # otherwise it may yet be that of a cache
            self.check_drawn()
        return self

    def check_drawn(self) -> None:
        """Raises UsageError for a mixture, its weights or a way to repaint that would not be used."""
        if self.source in ("sample", "alpha") and self.mixture != MaskMixture():
            raise UsageError(
                f"mixture: one is given, but masks is {self.source}, which draws nothing of it; set source: mixture",
                place=("mixture",),
            )
        if self.source == "alpha" and self.repaint in ("light", "dark", "nonzero"):
            raise UsageError(
                f"repaint: {self.repaint} is of mask files, and masks is alpha; give opaque or transparent",
                place=("repaint",),
            )
        if self.source != "mixture" and self.mixture.weights != MaskMixture().weights:
            raise UsageError(
                f"mixture: it has weights {dict(self.mixture.weights)}, but masks is {self.source}, which draws "
                "nothing else; set source: mixture, or leave weights out",
                place=("mixture",),
            )

    @cached_property
    def drawn_from(self) -> MaskMixture | None:
        """The mixture that masks are drawn from; None where a sample brings its one mask."""
        if self.source in ("sample", "alpha"):
            return None
        return self.mixture if self.source == "mixture" else replace(self.mixture, weights={self.source: 1.0})

    @property
    def reads_files(self) -> bool:
        """True if masks may come from files or annotations of a sample."""
        return self.source == "sample" or self.draws_objects

    @property
    def draws_objects(self) -> bool:
        """True if a mask may be one of the objects that a sample brings."""
        return self.drawn_from is not None and bool(self.drawn_from.weights.get(OBJECT))

    @property
    def chosen_offset(self) -> Offset:
        """The offset that was given, or else the preset's."""
        if self.offset is not None:
            return self.offset
        return 0 if self.preset.growth == "none" else self.preset.offset

    @property
    def chosen_soft(self) -> SoftBorder | None:
        """The border that was given, or else the preset's."""
        return self.preset.soft if self.soft is None else self.soft

    @property
    def chosen_fill(self) -> Fill:
        """The fill that was given, or else the preset's."""
        return self.preset.fill if self.fill is None else self.fill
