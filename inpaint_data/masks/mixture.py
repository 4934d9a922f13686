"""Mixtures of masks: a generator is drawn by weight, then its mask, then the edits of that mask."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inpaint_data.errors import SampleError, UsageError
from inpaint_data.masks.drawn import BoolArray, draw_within, hole_ratio
from inpaint_data.masks.edits import BOX, EDITS, Origin, Way, finish
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.masks.parameters import as_tuple, check_parameters, is_number
from inpaint_data.shown import meant

OBJECT = "object"  # in a mixture: one of the masks that the sample brings
CONSTANT = ("full", "none")
PROBABILITIES = (*EDITS, "invert", "add_stroke", "full")
WAYS = 16  # how often an object mask is made again, so that a sample with none within the limits is soon given up
DECISIONS = 100  # among these a decision that is made once in ten times is missed once in 40,000 times


@dataclass(frozen=True)
class MaskMixture:
    """A mixture of masks: a generator is drawn by weight, then its mask, then the edits of that mask.

    Masks of "full" and "none" stay as they are. Any other mask has its holes filled, is opened, smoothed, replaced by
    its hull, made less precise, turned over, gets a stroke and is held to the limits, in this order, each only where it
    is asked for. A mask outside the limits is drawn again by the same generator, so that the weights are those of the
    masks that come out. Objects cannot be drawn again: where none is within the limits as decided, what is done with
    them is decided again, in up to 16 ways for each.

    Args:
        weights: generator name -> weight, zero or more, renormalised. The default is LaMa's medium preset
            (strokes 1, boxes 0.3) with a tenth of full masks (OneTrainer's `unmasked_probability`). The name "object"
            stands for the masks that come with a sample: see `pictures/object_masks.py`.
        min_hole: least share of the image that is masked, 0...1.
        max_hole: greatest share of the image that is masked, 0...1.
        fill_holes: probability that what the mask encloses is masked too.
        opening: probability that spikes and specks thinner than 8 pixels at 512 are taken away (BrushNet: 0.3). A mask
            that has nothing else stays as it is.
        smooth: probability that a jagged border is rounded off, as by a blur of 4 pixels at 512.
        convex_hull: probability that the mask becomes its convex hull.
        precision: 0 exact, 1 to 3 grown more and more within the mask's bounding box, 4 the box; or a range
            [low, high] from which a level is drawn for each mask (SmartBrush: [0, 4]).
        invert: probability that masked and unmasked change places (BrushNet: 0.5, for objects).
        add_stroke: probability that a stroke of LaMa's medium preset is added.
        full: probability that it is the whole image instead, whatever the weights (SD's inpainting model: 0.25).
        parameters: generator name -> parameter -> value, where it is not to be the published one:
            {"outpaint": {"depth": [0.1, 0.4]}}. See the signatures in `generators.py`.

    Raises:
        UsageError: an unknown name, a negative weight, no weight above zero, a probability or limits outside 0...1,
            weights without a finite sum, limits the wrong way round, a precision that is not a level, or a parameter
            that its generator does not take, see `check_parameters`.
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
        for name, example in (("weights", "{boxes: 1}"), ("parameters", "{outpaint: {depth: [0.1, 0.4]}}")):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise UsageError(
                    f"mixture: {name}: {value!r} is not a mapping of generators; give one such as {example}"
                )
        unknown = [name for name in self.weights if name not in GENERATORS and name != OBJECT]
        if unknown:
            known = ", ".join((*GENERATORS, OBJECT))
            raise UsageError(
                f"mixture: no generator is called {unknown[0]!r}; choose from {known}"
                f"{meant(unknown[0], (*GENERATORS, OBJECT))}"
            )
        weights = self.weights.values()
        if not all(is_number(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise UsageError(
                f"mixture: weights must be finite numbers, zero or more and not all zero, not {dict(self.weights)}"
            )
        if not is_number(sum(map(float, weights))):
            raise UsageError(f"mixture: weights: the sum of {dict(self.weights)} is not finite; give smaller ones")
        for name in ("min_hole", "max_hole", *PROBABILITIES):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise UsageError(f"mixture: {name}: {value!r} is not between 0 and 1")
        if self.min_hole > self.max_hole:
            raise UsageError(f"mixture: min_hole {self.min_hole} is above max_hole {self.max_hole}; no mask has both")
        is_range = not isinstance(self.precision, int)
        levels: Any = self.precision if is_range else [self.precision]
        if (
            not isinstance(levels, list | tuple)
            or len(levels) != (2 if is_range else 1)
            or not all(type(level) is int and 0 <= level <= BOX for level in levels)
            or levels[0] > levels[-1]
        ):
            raise UsageError(
                f"mixture: precision: {self.precision!r} is neither a level of 0 to {BOX} nor a range [low, high]"
            )
        if is_range:
            object.__setattr__(self, "precision", list(levels))  # as JSON has it
        for name, values in self.parameters.items():
            check_parameters(name, values)

    def draw(
        self,
        height: int,
        width: int,
        rng: np.random.Generator,
        objects: Sequence[Callable[[], BoolArray]] = (),
    ) -> tuple[BoolArray, Origin]:
        """One mask and its origin.

        Args:
            height, width: of the mask.
            rng: the generator of this one choice, from `seeding.generator_for`.
            objects: functions that make the sample's own masks, (height, width); only needed for "object".

        Returns:
            The mask (height, width) bool, and its origin: the generator and what was done to the mask afterwards.

        Raises:
            UsageError: the limits cannot be met by a generator: 1000 draws were all outside. Or `objects` are missing.
            SampleError: "object" was drawn, and none of `objects` shows in the crop and is within the limits in any
                way that was tried. Empty ones are skipped while there are others.
        """
        # Decisions and edits have random streams of their own, so that none shifts the others.
        decisions, edits = rng.spawn(2)
        is_full, way = self._decide(decisions, edits)
        names = sorted(self.weights)
        share = np.array([self.weights[name] for name in names], float)
        name = names[int(rng.choice(len(names), p=share / share.sum()))]
        if is_full:
            name = "full"
        if name in CONSTANT:
            return GENERATORS[name](height, width, rng), Origin(name)
        if name == OBJECT:
            return self._object(objects, rng, way, decisions, edits)
        parameters = {key: as_tuple(value) for key, value in self.parameters.get(name, {}).items()}
        origin = Origin(name)  # of the mask that was finished last, since an edit may be left out

        def draw() -> BoolArray:
            nonlocal origin
            mask, origin = finish(GENERATORS[name](height, width, rng, **parameters), name, way, decisions)
            return mask

        if (self.min_hole, self.max_hole) == (0, 1):
            return draw(), origin
        return draw_within(self.min_hole, self.max_hole, draw, str(Origin(name, way.last))), origin

    def _decide(self, decisions: np.random.Generator, edits: np.random.Generator) -> tuple[bool, Way]:
        """True if it is the whole image, and the way of any other mask; each decision has its own random number."""
        is_full, inverted, stroked = (decisions.random(3) < (self.full, self.invert, self.add_stroke)).tolist()
        *numbers, level_number = edits.random(len(EDITS) + 1).tolist()
        chosen = tuple(name for name, number in zip(EDITS, numbers, strict=True) if number < getattr(self, name))
        low, high = (self.precision, self.precision) if isinstance(self.precision, int) else self.precision
        return is_full, Way(chosen, low + int(level_number * (high - low + 1)), inverted, stroked)

    def _other_ways(self, first: Way, decisions: np.random.Generator, edits: np.random.Generator) -> list[Way]:
        """Ways that are decided anew: each once, or three times if it has a stroke, which is always another."""
        counts = Counter([first])
        ways: list[Way] = []
        for _ in range(DECISIONS):
            way = self._decide(decisions, edits)[1]
            if len(ways) < WAYS and counts[way] < (3 if way.stroked else 1):
                counts[way] += 1
                ways.append(way)
        return ways

    def _object(
        self,
        objects: Sequence[Callable[[], BoolArray]],
        rng: np.random.Generator,
        way: Way,
        decisions: np.random.Generator,
        edits: np.random.Generator,
    ) -> tuple[BoolArray, Origin]:
        if not objects:
            raise UsageError("MaskMixture.draw: the mixture has object masks, so give the sample's own as objects")
        ratios: dict[Origin, list[float]] = {}
        shown = []
        for index in rng.permutation(len(objects)):
            try:
                mask = objects[index]()
            except SampleError:
                continue  # `find_objects` has seen to it that this is not all there is
            if mask.any():
                shown.append(index)
                finished, origin = finish(mask, OBJECT, way, decisions)
                if self._within(finished, ratios.setdefault(origin, [])):
                    return finished, origin
        # An object cannot be drawn again; a small one that is turned over would never be within max_hole.
        other_ways = self._other_ways(way, decisions, edits)
        if other_ways:
            for index in shown:
                mask = objects[index]()
                for other_way in other_ways:
                    finished, origin = finish(mask, OBJECT, other_way, decisions)
                    if self._within(finished, ratios.setdefault(origin, [])):
                        return finished, origin
        if not shown:
            raise SampleError(
                "every object mask is empty, in itself or where the image is cut; give objects that show in the crop"
            )
        spans = [f"{_span(values)} as {origin}" for origin, values in ratios.items()]
        rest = f" and {len(spans) - 4} other ways" if len(spans) > 4 else ""
        raise SampleError(
            f"its {len(shown)} object masks have hole ratios of {', '.join(spans[:4])}{rest}, none within min_hole "
            f"{self.min_hole:.3g} to max_hole {self.max_hole:.3g}; widen the limits or leave the sample out"
        )

    def _within(self, mask: BoolArray, ratios: list[float]) -> bool:
        """True if the mask is within the limits; its hole ratio is added to `ratios`."""
        ratios.append(hole_ratio(mask))
        return self.min_hole <= ratios[-1] <= self.max_hole


def _span(ratios: Sequence[float]) -> str:
    low, high = f"{min(ratios):.3g}", f"{max(ratios):.3g}"
    return low if low == high else f"{low} to {high}"
