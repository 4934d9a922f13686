"""What a training mask looks like: the mixture it is drawn from, and the offset drawn for it.

The generators themselves are in `mask_generators.py`, what may be done with a mask afterwards in `mask_edits.py`, masks
that come with a sample in `object_masks.py`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from inpaint_data.errors import SampleError, UsageError
from inpaint_data.mask_edits import BOX, EDITS, edit
from inpaint_data.mask_generators import GENERATORS, BoolArray, draw_within, hole_ratio, strokes
from inpaint_data.morphology import WINDOWS, Window

MAX_OFFSET = 128  # the node's range
OBJECT = "object"  # in a mixture: one of the masks that the sample brings
CONSTANT = ("full", "none")
PROBABILITIES = (*EDITS, "invert", "add_stroke", "full")
Distribution = Literal["fixed", "uniform", "normal", "two-sided"]
USED = {"fixed": ("value",), "uniform": ("low", "high"), "normal": ("mean", "deviation"), "two-sided": ("low", "high")}


@dataclass(frozen=True)
class MaskMixture:
    """Draws one generator by weight, then its mask, then what is done with it.

    What "full" and "none" draw stays as it is. Any other mask has its holes filled, is opened, smoothed, replaced by
    its hull, made less precise, turned over, gets a stroke and is held to the limits, in this order, each only where it
    is asked for. A mask outside the limits is drawn again by the same generator, so that the weights are those of the
    masks that come out.

    Args:
        weights: generator name -> weight, zero or more, renormalised. The default is LaMa's medium preset
            (strokes 1, boxes 0.3) with a tenth of full masks (OneTrainer's `unmasked_probability`). The name "object"
            stands for the masks that come with a sample: see `object_masks.py`.
        min_hole: least share of the picture that is masked, 0...1.
        max_hole: greatest share of the picture that is masked, 0...1.
        fill_holes: probability that what the mask encloses is masked too.
        opening: probability that spikes and specks thinner than 8 pixels at 512 are taken away (BrushNet: 0.3). A mask
            that has nothing else stays as it is.
        smooth: probability that a jagged border is rounded off, as by a blur of 4 pixels at 512.
        convex_hull: probability that the mask becomes its convex hull.
        precision: 0 exact, 1 to 3 grown more and more within the mask's bounding box, 4 the box; or a range
            [low, high] from which a level is drawn for each mask (SmartBrush: [0, 4]).
        invert: probability that masked and unmasked change places (BrushNet: 0.5, for objects).
        add_stroke: probability that a stroke of LaMa's medium preset is added.
        full: probability that it is the whole picture instead, whatever the weights (SD's inpainting model: 0.25).
        parameters: generator name -> parameter -> value, where it is not to be the published one:
            {"outpaint": {"depth": [0.1, 0.4]}}. See the signatures in `mask_generators.py`.

    Raises:
        UsageError: an unknown name, a negative weight, no weight above zero, a probability or limits outside 0...1,
            limits the wrong way round, a precision that is no level, or a parameter that its generator does not take.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"strokes": 1.0, "boxes": 0.3, "full": 0.145})
    min_hole: float = 0.0
    max_hole: float = 1.0
    fill_holes: float = 0.0
    opening: float = 0.0
    smooth: float = 0.0
    convex_hull: float = 0.0
    precision: int | Sequence[int] = 0
    invert: float = 0.0
    add_stroke: float = 0.0
    full: float = 0.0
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(GENERATORS) - {OBJECT})
        if unknown:
            known = ", ".join((*GENERATORS, OBJECT))
            raise UsageError(f"masks: no generator is called {unknown[0]!r}; choose from {known}")
        if not all(_number(weight) and weight >= 0 for weight in self.weights.values()) or not any(
            self.weights.values()
        ):
            raise UsageError(f"masks: weights must be zero or more and not all zero, not {dict(self.weights)}")
        for name in ("min_hole", "max_hole", *PROBABILITIES):
            value = getattr(self, name)
            if not _number(value) or not 0 <= value <= 1:
                raise UsageError(f"masks: {name}: {value!r} is not between 0 and 1")
        if self.min_hole > self.max_hole:
            raise UsageError(f"masks: min_hole {self.min_hole} is above max_hole {self.max_hole}; no mask has both")
        levels = [self.precision] if isinstance(self.precision, int) else self.precision
        if (
            not isinstance(levels, list | tuple)
            or len(levels) != 1 + (levels is self.precision)
            or not all(type(level) is int and 0 <= level <= BOX for level in levels)
            or levels[0] > levels[-1]
        ):
            raise UsageError(f"masks: precision: {self.precision!r} is no level of 0 to {BOX} and no range [low, high]")
        if levels is self.precision:
            object.__setattr__(self, "precision", list(levels))  # as JSON has it
        for name, given in self.parameters.items():
            check_parameters(name, given)

    def draw(
        self,
        height: int,
        width: int,
        rng: np.random.Generator,
        objects: Sequence[Callable[[], BoolArray]] = (),
    ) -> tuple[BoolArray, str]:
        """One mask and where it is from.

        Args:
            height, width: of the mask.
            rng: the generator of this one choice, from `seeding.generator_for`.
            objects: what makes each of the sample's own masks, (height, width); only needed for "object".

        Returns:
            The mask (height, width) bool, and the name of its generator with what was done behind it, of "+filled",
            "+opened", "+smoothed", "+hull", "+precision1" to 4, "+inverted" and "+stroke".

        Raises:
            UsageError: the limits cannot be met by a generator: 1000 draws were all outside. Or `objects` are missing.
            SampleError: "object" was drawn, and none of `objects` shows in the crop and is within the limits. Empty
                ones are passed over while there are others.
        """
        # What is decided here is drawn from streams of their own: none shifts the others.
        decisions, edits = rng.spawn(2)
        whole, inverted, stroked = decisions.random(3) < (self.full, self.invert, self.add_stroke)
        names = sorted(self.weights)
        share = np.array([self.weights[name] for name in names], float)
        name = names[int(rng.choice(len(names), p=share / share.sum()))]
        if whole:
            name = "full"
        if name in CONSTANT:
            return GENERATORS[name](height, width, rng), name

        chosen, level = self._edits(edits)
        then = "+inverted" * bool(inverted) + "+stroke" * bool(stroked)
        label = ""  # of the mask that was finished last, since an edit may be left out

        def finished(mask: BoolArray) -> BoolArray:
            nonlocal label
            mask, done = edit(mask, chosen, level)
            label = name + done + then
            mask = ~mask if inverted else mask
            return mask | strokes(height, width, decisions, count=(1, 1)) if stroked else mask

        if name == OBJECT:
            return self._object(objects, rng, finished), label
        given = {each: _as_tuple(value) for each, value in self.parameters.get(name, {}).items()}

        def draw() -> BoolArray:
            return finished(GENERATORS[name](height, width, rng, **given))

        if (self.min_hole, self.max_hole) == (0, 1):
            return draw(), label
        return draw_within(self.min_hole, self.max_hole, draw, name + then), label

    def _edits(self, rng: np.random.Generator) -> tuple[list[str], int]:
        """Which edits one mask gets, and its level of precision; each has its own number, whatever the others are."""
        *chances, chance = rng.random(len(EDITS) + 1).tolist()
        chosen = [name for name, drawn in zip(EDITS, chances, strict=True) if drawn < getattr(self, name)]
        low, high = (self.precision,) * 2 if isinstance(self.precision, int) else self.precision
        return chosen, low + int(chance * (high - low + 1))

    def _object(
        self,
        objects: Sequence[Callable[[], BoolArray]],
        rng: np.random.Generator,
        finished: Callable[[BoolArray], BoolArray],
    ) -> BoolArray:
        if not objects:
            raise UsageError("MaskMixture.draw: the mixture has object masks, so give the sample's own as objects")
        ratios = []
        for index in rng.permutation(len(objects)):
            mask = objects[index]()
            if not mask.any():
                continue
            mask = finished(mask)
            ratios.append(hole_ratio(mask))
            if self.min_hole <= ratios[-1] <= self.max_hole:
                return mask
        if not ratios:
            raise SampleError("every object mask is empty where the picture is cut; give objects that show in the crop")
        raise SampleError(
            f"its {len(ratios)} object masks have hole ratios of {min(ratios):.3g} to {max(ratios):.3g}, none within "
            f"min_hole {self.min_hole:.3g} to max_hole {self.max_hole:.3g}; widen the limits or leave the sample out"
        )


def check_parameters(name: str, given: Mapping[str, Any]) -> None:
    """See that a generator takes these parameters: of its defaults' kind, shares within 0...1, spans in order.

    Raises:
        UsageError: it does not.
    """
    if name not in GENERATORS:
        raise UsageError(f"masks: parameters: no generator is called {name!r}; choose from {', '.join(GENERATORS)}")
    signature = inspect.signature(GENERATORS[name]).parameters.values()
    defaults = {each.name: each.default for each in signature if each.kind is each.KEYWORD_ONLY}
    for parameter, value in given.items():
        if parameter not in defaults:
            known = f"it takes {', '.join(defaults)}" if defaults else "it takes none"
            raise UsageError(f"masks: parameters: {name} has no parameter {parameter!r}; {known}")
        default, value = defaults[parameter], _as_tuple(value)
        ends, usual = (each if isinstance(each, tuple) else (each,) for each in (value, default))
        annotation = GENERATORS[name].__annotations__[parameter]
        whole = annotation is int or get_args(annotation) == (int, int)
        # A default between 0 and 1 is a share or a probability. Of what is counted there must be one.
        lowest, highest = 1 if whole else 0, 1 if not whole and 0 < max(usual) <= 1 else math.inf
        if (
            isinstance(value, tuple) != isinstance(default, tuple)
            or len(ends) != len(usual)
            or not all(_number(end) and lowest <= end <= highest and (not whole or type(end) is int) for end in ends)
            or list(ends) != sorted(ends)
        ):
            kind = "a whole number" if whole else "a number"
            kind = f"[low, high], each {kind}" if isinstance(default, tuple) else kind
            above = "of 0 to 1" if highest == 1 else f"of {lowest} or more"
            raise UsageError(f"masks: parameters: {name}: {parameter}: {given[parameter]!r} is not {kind} {above}")


@dataclass(frozen=True)
class RandomOffset:
    """A distribution of offsets in pixels: > 0 grows a mask, < 0 shrinks it. What is drawn is kept within -128...128.

    Jitter of object masks is described by SmartBrush (its mask precision) and Omnieraser; their public code has none.

    Args:
        distribution: "fixed" (`value`), "uniform" (between `low` and `high`, both included), "normal" (`mean`,
            `deviation`) or "two-sided" (a size between `low` and `high`, grown or shrunk alike often).
        value, low, high, mean, deviation: of the distribution; those that it does not use stay 0. Pixels, or with
            `relative` shares of the radius of the disc that has the mask's area: 0.1 grows a face by a tenth.
        relative: to the size of what is masked.
        zero: probability that the mask stays exact.
        windows: the shapes that masks grow by, "square", "octagon" or "cross" as `offset_mask` describes them. Of
            several, one is drawn for each mask.

    Raises:
        UsageError: an unknown distribution, a number it does not use, `low` above `high`, a negative size or
            deviation, pixels that are not whole where a uniform distribution needs them, or beyond -128...128; no
            window, or an unknown one.
    """

    distribution: Distribution = "uniform"
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 0.0
    relative: bool = False
    zero: float = 0.0
    windows: tuple[Window, ...] = ("square",)

    def __post_init__(self) -> None:
        if self.distribution not in USED:
            raise UsageError(f"mask_offset: {self.distribution!r} is unknown; choose from {', '.join(USED)}")
        used = USED[self.distribution]
        for name in ("value", "low", "high", "mean", "deviation", "zero"):
            number = getattr(self, name)
            if not _number(number):
                raise UsageError(f"mask_offset: {name}: {number!r} is not a number")
            if number and name not in (*used, "zero"):
                raise UsageError(f"mask_offset: {self.distribution} takes {' and '.join(used)}, not {name}")
            if not self.relative and abs(number) > MAX_OFFSET:
                raise UsageError(f"mask_offset: {name} {number} is outside -{MAX_OFFSET}...{MAX_OFFSET} pixels")
            if not self.relative and name in ("value", "low", "high") and number != int(number):
                raise UsageError(
                    f"mask_offset: {name} {number} is not a whole number of pixels; set relative for shares"
                )
        if not 0 <= self.zero <= 1:
            raise UsageError(f"mask_offset: zero: {self.zero} is not between 0 and 1")
        if self.low > self.high:
            raise UsageError(f"mask_offset: the range [{self.low}, {self.high}] is empty; give the lower number first")
        if self.deviation < 0 or (self.distribution == "two-sided" and self.low < 0):
            raise UsageError("mask_offset: deviation, and low of a two-sided offset, are sizes; give 0 or more")
        given: Any = self.windows
        if not isinstance(given, list | tuple) or not given or not all(each in WINDOWS for each in given):
            raise UsageError(f"mask_offset: windows: {given!r} is no list of some of {', '.join(WINDOWS)}")
        object.__setattr__(self, "windows", tuple(self.windows))  # YAML and JSON have lists

    @property
    def bounds(self) -> tuple[int, int]:
        """The inclusive range that every offset is in."""
        if self.distribution == "normal":
            return -MAX_OFFSET, MAX_OFFSET
        low, high = (self.value, self.value) if self.distribution == "fixed" else (self.low, self.high)
        if self.distribution == "two-sided":
            low = -high
        if self.relative:
            low, high = MAX_OFFSET * np.sign(low), MAX_OFFSET * np.sign(high)
        if self.zero:
            low, high = min(low, 0), max(high, 0)
        # A relative offset may round to 0 from either side.
        return (int(min(low, 0)), int(max(high, 0))) if self.relative else (int(low), int(high))

    def draw(self, rng: np.random.Generator, mask: Any = None) -> int:
        """One offset in pixels.

        Args:
            rng: the generator of this one choice.
            mask: (..., H, W) bool before the offset, an array or a tensor; only needed with `relative`.

        Raises:
            UsageError: `relative`, and no mask was given.
        """
        return self.draw_for_area(rng, float(mask.sum()) if self.relative and mask is not None else None)

    def draw_for_area(self, rng: np.random.Generator, area: float | None) -> int:
        """One offset in pixels for a mask of which `area` pixels are masked, where that is known already."""
        if self.relative and area is None:
            raise UsageError("mask_offset: an offset relative to the mask's size needs the mask")
        unit = math.sqrt((area or 0.0) / math.pi) if self.relative else 1.0
        if self.distribution == "normal":
            drawn = rng.normal(self.mean, self.deviation)
        elif self.distribution == "fixed":
            drawn = self.value
        elif self.relative:
            drawn = rng.uniform(self.low, self.high)
        else:
            drawn = float(rng.integers(int(self.low), int(self.high) + 1))
        if self.distribution == "two-sided":
            drawn *= 1 if rng.random() < 0.5 else -1
        # Last, so that the share of exact masks does not shift the other offsets.
        exact = rng.random() < self.zero
        return 0 if exact else round(min(max(drawn * unit, -MAX_OFFSET), MAX_OFFSET))


Offset = int | tuple[int, int] | RandomOffset


def offset_settings(mask_offset: Offset) -> int | list[int] | dict[str, Any]:
    """The same for JSON, as a cache's fingerprint has it."""
    if isinstance(mask_offset, RandomOffset):
        return asdict(mask_offset) | {"windows": list(mask_offset.windows)}
    return mask_offset if isinstance(mask_offset, int) else list(mask_offset)


def offset_from(settings: int | Sequence[int] | Mapping[str, Any]) -> Offset:
    """What `offset_settings` made."""
    if isinstance(settings, Mapping):
        return RandomOffset(**settings)
    return settings if isinstance(settings, int) else (settings[0], settings[1])


def check_offset(mask_offset: Offset) -> tuple[int, int]:
    """The inclusive range (low, high) of the offsets that `mask_offset` stands for.

    Raises:
        UsageError: low above high, or beyond -128...128.
    """
    if isinstance(mask_offset, RandomOffset):
        return mask_offset.bounds
    pair: Any = (mask_offset, mask_offset) if isinstance(mask_offset, int) else mask_offset
    if not isinstance(pair, tuple | list) or [type(each) for each in pair] != [int, int]:
        raise UsageError(f"mask_offset: {mask_offset!r} is neither a whole number of pixels nor a range [low, high]")
    low, high = pair
    if low > high:
        raise UsageError(f"mask_offset: the range [{low}, {high}] is empty; give the lower number first")
    if low < -MAX_OFFSET or high > MAX_OFFSET:
        named = low if low == high else [low, high]
        raise UsageError(f"mask_offset: {named} is outside -{MAX_OFFSET}...{MAX_OFFSET} pixels; stay within")
    return low, high


def draw_offset(mask_offset: Offset, rng: np.random.Generator, area: float | None = None) -> int:
    """One offset in pixels for a mask of `area` pixels: uniform over the inclusive range, or from its distribution."""
    if isinstance(mask_offset, RandomOffset):
        return mask_offset.draw_for_area(rng, area)
    low, high = check_offset(mask_offset)
    return int(rng.integers(low, high + 1))


def windows_of(mask_offset: Offset) -> tuple[Window, ...]:
    """The windows that one is drawn from for each mask."""
    return mask_offset.windows if isinstance(mask_offset, RandomOffset) else ("square",)


def draw_window(mask_offset: Offset, rng: np.random.Generator) -> Window:
    """The window of one mask, each alike often."""
    windows = windows_of(mask_offset)
    return windows[int(rng.integers(len(windows)))]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _as_tuple(value: Any) -> Any:
    """YAML and JSON have lists where a span is a tuple."""
    return tuple(value) if isinstance(value, list) else value
