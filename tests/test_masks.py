"""Drawn masks and offsets are a pure function of (seed, key, variant), distributed as they say, and never endless."""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from flat import example_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from PIL import Image

from inpaint_data import MaskMixture, SampleError, UsageError
from inpaint_data.masks.drawn import draw_within, hole_ratio
from inpaint_data.masks.edits import Origin
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.masks.offsets import (
    Offset,
    RandomOffset,
    check_offset,
    draw_offset,
    draw_window,
    offset_from,
    offset_settings,
)
from inpaint_data.masks.parameters import parameters_of, range_of
from inpaint_data.pictures.examples import prepare
from inpaint_data.seeding import generator_for, sample_id
from inpaint_data.shards.reading import Sample

DOCS = Path(__file__).parents[1] / "docs" / "masks.md"
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("masks_*.yaml"))
DRAWN = sorted(set(GENERATORS) - {"none"})
FREE_FORM = ("free-form", "mat", "mat-256", "comodgan", "comodgan-256")
# A pixel or two cannot be half a hole.
REJECTING = (*FREE_FORM, *(f"lama-{kind}{side}" for kind in ("thin", "medium", "thick") for side in ("", "-256")))


def draws(name: str, count: int, side: int = 128, **parameters: object) -> list[np.ndarray]:
    return [GENERATORS[name](side, side, generator_for(7, str(i), 0, "mask"), **parameters) for i in range(count)]


def ratios(masks: list[np.ndarray]) -> np.ndarray:
    return np.array([hole_ratio(mask) for mask in masks])


@pytest.mark.parametrize("name", DRAWN)
@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 96), width=st.integers(1, 96), seed=st.integers(0, 2**32))
def test_a_generator_gives_a_bool_mask_of_the_size_asked_for_again_and_again(
    name: str, height: int, width: int, seed: int
) -> None:
    if name in REJECTING:
        height, width = max(height, 16), max(width, 16)
    first, again = (GENERATORS[name](height, width, generator_for(seed, "key", 0, "mask")) for _ in range(2))
    assert first.shape == (height, width)
    assert first.dtype == bool
    assert first.any()
    assert np.array_equal(first, again)


def test_published_lengths_scale_with_the_short_side() -> None:
    """The same draw at twice the size covers the same share, up to rounding."""
    for name in DRAWN:
        small, large = (
            np.mean([GENERATORS[name](side, side, generator_for(0, str(i), 0, "mask")).mean() for i in range(200)])
            for side in (128, 256)
        )
        assert abs(small - large) < 0.03, name


def test_a_box_is_30_to_150_pixels_at_512() -> None:
    for i in range(100):
        mask = GENERATORS["boxes"](512, 512, generator_for(1, str(i), 0, "mask"))
        assert 30 <= mask.sum(0).max() <= 512
        assert 30**2 <= mask.sum() <= 5 * 150**2


# What the publications' numbers imply for the hole ratio: least, greatest, and the mean's range over 300 draws.
BOUNDS: dict[str, tuple[float, float, float, float]] = {
    "full": (1, 1, 1, 1),
    "none": (0, 0, 0, 0),
    "center": (0.25, 0.25, 0.25, 0.25),
    "boxes": (0.003, 5 * (150 / 512) ** 2, 0.05, 0.12),
    "grid": (0.05, 0.6, 0.25, 0.35),  # 10 to 50 % of the cells, of which those at the border are cut
    "outpaint": (0.03, 1 - 0.5**2, 0.2, 0.35),
    "polygons": (0.02, 2 * 0.6, 0.12, 0.3),
    "clouds": (0.08, 0.32, 0.18, 0.22),
    "free-form": (1 / 128**2, 1 - 1 / 128**2, 0.4, 0.6),
    "mat": (1 / 128**2, 1 - 1 / 128**2, 0.36, 0.45),
    "mat-256": (1 / 128**2, 1 - 1 / 128**2, 0.36, 0.45),
    "comodgan": (1 / 128**2, 1 - 1 / 128**2, 0.58, 0.69),
    "comodgan-256": (1 / 128**2, 1 - 1 / 128**2, 0.69, 0.79),
    "strokes": (0.001, 1, 0.25, 0.45),
    "lama-thin": (0.001, 0.5, 0.2, 0.35),
    "lama-medium": (0.001, 0.5, 0.2, 0.35),
    "lama-thick": (0.001, 0.5, 0.2, 0.35),
    "lama-thin-256": (0.001, 0.5, 0.2, 0.35),
    "lama-medium-256": (0.0001, 0.5, 0.2, 0.3),
    "lama-thick-256": (0.001, 0.5, 0.2, 0.35),
    "lama-mix": (0.001, 1, 0.25, 0.45),
    "kohya": (0, 1, 0.16, 0.28),
    "kohya-cloud": (0.1, 0.31, 0.18, 0.22),
    "kohya-polygon": (0, 2 * 0.6, 0.1, 0.18),
    "kohya-shape": (0.1 * 0.7, 0.62, 0.24, 0.31),  # an ellipse is 0.785 of its box
    "kohya-wobbly": (0.02, 0.62, 0.15, 0.3),
}


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_hole_ratios_lie_where_the_published_parameters_put_them(name: str) -> None:
    least, greatest, low, high = BOUNDS[name]
    found = ratios(draws(name, 300))
    assert least <= found.min()
    assert found.max() <= greatest
    assert low <= found.mean() <= high


def test_outpainting_takes_each_side_half_of_the_time_and_4_to_25_percent_of_it() -> None:
    counts, depths = Counter(), []
    for mask in draws("outpaint", 1000, 200):
        middle, bands = mask[100], mask[:, 100]
        for side, line in (("left", middle), ("right", middle[::-1]), ("top", bands), ("bottom", bands[::-1])):
            depth = int(np.argmin(line))
            if depth:
                counts[side] += 1
                depths.append(depth)
    assert min(depths) >= 8
    assert max(depths) <= 50
    expected = 0.5 + 0.5**4 / 4  # none at all becomes any one
    for side in ("left", "right", "top", "bottom"):
        assert abs(counts[side] - 1000 * expected) < 4 * (1000 * 0.25) ** 0.5


def test_a_stroke_of_lama_runs_to_one_side_and_never_back() -> None:
    """Its segments turn by 0.01 + 0...3 rad, whose sine is positive, so it meets each column in one piece."""
    many = [
        GENERATORS["strokes"](512, 512, generator_for(0, str(i), 0, "mask"), count=(1, 1), thickness=(1, 1))
        for i in range(100)
    ]

    def pieces(mask: np.ndarray) -> int:
        """In the column that has most."""
        return int((np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0) == 1).sum(0).max())

    assert {pieces(mask) for mask in many} == {1}
    assert max(pieces(mask.T) for mask in many) > 1  # up and down it does turn


@pytest.mark.parametrize("name", FREE_FORM)
@pytest.mark.parametrize("hole", [(0.0, 0.1), (0.1, 0.2), (0.5, 0.6), (0.8, 0.95)])
def test_free_form_masks_keep_to_their_hole_range(hole: tuple[float, float], name: str) -> None:
    found = ratios(draws(name, 60, 64, hole=hole))
    assert hole[0] <= found.min()
    assert found.max() <= hole[1]
    assert len(np.unique(found)) > 40


def test_keys_variants_and_seeds_draw_different_masks() -> None:
    def draw(seed: int, key: str, variant: int) -> bytes:
        return GENERATORS["strokes"](64, 64, generator_for(seed, key, variant, "mask")).tobytes()

    assert len({draw(0, "a", 0), draw(0, "a", 1), draw(0, "b", 0), draw(1, "a", 0)}) == 4


# Written once on x86-64. Who changes one changes what every later cache is made of: say so in the changelog.
DIGESTS = {
    "strokes": "b5ad21dbe0e9",
    "boxes": "e2830cbd928b",
    "full": "fea1c80d2c01",
    "none": "5e36761daffc",
    "center": "131aa63cfdaa",
    "grid": "a28fd8b74c46",
    "outpaint": "bcabd25601ca",
    "polygons": "a342048ad586",
    "clouds": "d0ed28ddd5d9",
    "free-form": "b5b9ac7ec648",
    "mat": "ffcf7169d72c",
    "mat-256": "112500dbda30",
    "comodgan": "37a189ea4359",
    "comodgan-256": "ee2e63f10e84",
    "lama-thin": "39da75cc3b5b",
    "lama-medium": "1fd8bf9e34c2",
    "lama-thick": "ea76706dfb2b",
    "lama-thin-256": "91b0a8b2696e",
    "lama-medium-256": "9ab320c748ae",
    "lama-thick-256": "2d4ac500c0b8",
    "lama-mix": "432af5ec7c9a",
    "kohya": "3a56fbfb24be",
    "kohya-cloud": "9017d85551cd",
    "kohya-polygon": "874c4bc7f3c3",
    "kohya-shape": "41635d3bbae2",
    "kohya-wobbly": "ae539203f044",
}
if cv2.__version__.startswith("4."):
    DIGESTS |= {  # OpenCV 5 fills polygons in another way
        "polygons": "9ce192ac416e",
        "kohya": "a8417e83b09d",
        "kohya-polygon": "b27231f8e2c7",
        "kohya-wobbly": "82a5908a1baf",
    }


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_a_seed_a_key_and_a_variant_draw_the_mask_that_they_drew_elsewhere(name: str) -> None:
    digest = hashlib.blake2b(digest_size=6)
    for i in range(20):
        digest.update(np.packbits(GENERATORS[name](96, 128, generator_for(7, str(i), i, "mask"))).tobytes())
    assert digest.hexdigest() == DIGESTS[name]


def test_a_seed_a_key_and_a_variant_draw_the_offset_that_they_drew_elsewhere() -> None:
    found = [draw_offset((-8, 24), generator_for(7, str(i), i, "offset")) for i in range(8)]
    assert found == [4, 12, 10, 22, 13, 3, 6, 23]


def drawn(mixture: MaskMixture, count: int = 2000, side: int = 16) -> list[tuple[np.ndarray, str]]:
    made = [mixture.draw(side, side, generator_for(0, str(i), 0, "mask")) for i in range(count)]
    return [(mask, str(origin)) for mask, origin in made]


def within_binomial(found: int, count: int, probability: float) -> bool:
    """Within four standard deviations: by chance once in 16,000 times, and the seeds are fixed."""
    return abs(found - count * probability) <= 4 * (count * probability * (1 - probability)) ** 0.5


def test_a_mixture_draws_its_generators_by_weight() -> None:
    names = Counter(name for _, name in drawn(MaskMixture({"strokes": 3, "boxes": 1, "full": 0})))
    assert within_binomial(names["boxes"], 2000, 0.25)
    assert names["strokes"] + names["boxes"] == 2000


def test_limits_hold_for_every_mask_and_leave_the_weights_as_they_are() -> None:
    """Boxes meet these limits less often than strokes; drawn again as a whole they would become rare."""
    mixture = MaskMixture({"strokes": 1, "boxes": 1}, min_hole=0.1, max_hole=0.3)
    made = drawn(mixture, 400, 64)
    found = ratios([mask for mask, _ in made])
    assert found.min() >= 0.1
    assert found.max() <= 0.3
    assert within_binomial(sum(name == "boxes" for _, name in made), 400, 0.5)


def test_inversion_strokes_and_full_masks_come_with_their_probabilities() -> None:
    mixture = MaskMixture({"center": 1, "none": 1}, invert=0.3, add_stroke=0.6, full=0.2)
    made = drawn(mixture)
    names = Counter(name for _, name in made)
    parts = {
        "full": 0.2,
        "none": 0.4,
        "center": 0.4 * 0.7 * 0.4,
        "center+inverted": 0.4 * 0.3 * 0.4,
        "center+stroke": 0.4 * 0.7 * 0.6,
        "center+inverted+stroke": 0.4 * 0.3 * 0.6,
    }
    assert set(names) == set(parts)
    for name, probability in parts.items():
        assert within_binomial(names[name], 2000, probability), name
    plain = GENERATORS["center"](16, 16, generator_for(0, "", 0, "mask"))
    for mask, name in made:
        base = {"f": np.ones_like(plain), "n": np.zeros_like(plain), "c": plain}[name[0]]
        base = ~base if "inverted" in name else base
        assert np.array_equal(mask, base) if "stroke" not in name else (mask >= base).all()


def test_full_and_none_pass_the_limits_untouched() -> None:
    mixture = MaskMixture({"full": 1, "none": 1, "boxes": 1}, 0.05, 0.5, invert=1, add_stroke=1, full=0.1)
    for mask, name in drawn(MaskMixture({"full": 1, "none": 1}, 0.05, 0.5, invert=1, add_stroke=1, full=0.1), 50):
        assert mask.all() if name == "full" else not mask.any()
    with pytest.raises(UsageError, match=r"boxes\+inverted\+stroke .*none within 0.05 to 0.5"):
        drawn(mixture, 100, 512)


def test_the_parameters_of_one_generator_shift_no_other_draw() -> None:
    weights = {"outpaint": 1.0, "free-form": 1.0, "boxes": 1.0}
    plain = drawn(MaskMixture(weights, invert=0.5, add_stroke=0.3), 300, 64)
    deeper = drawn(
        MaskMixture(weights, invert=0.5, add_stroke=0.3, parameters={"outpaint": {"depth": [0.3, 0.4]}}), 300, 64
    )
    assert [name for _, name in plain] == [name for _, name in deeper]
    changed = {
        name.split("+")[0] for (one, name), (other, _) in zip(plain, deeper, strict=True) if (one != other).any()
    }
    assert changed == {"outpaint"}


def test_what_is_done_to_a_mask_does_not_shift_its_shape() -> None:
    plain = drawn(MaskMixture(), 100, 64)
    inverted = drawn(MaskMixture(invert=1), 100, 64)
    rarely_full = drawn(MaskMixture(full=0.1), 200, 64)[:100]
    for (one, name), (other, _), (third, third_name) in zip(plain, inverted, rarely_full, strict=True):
        assert name == "full" or np.array_equal(~one, other)
        assert third_name == "full" or np.array_equal(one, third)


def test_a_draw_is_the_same_in_any_order_and_from_any_thread() -> None:
    """Nothing is remembered between draws: neither order nor neighbours count."""
    mixture = MaskMixture(dict.fromkeys(DRAWN, 1.0), 0.01, 0.99, invert=0.3, add_stroke=0.3)
    keys = [str(i) for i in range(60)]

    def draw(key: str) -> bytes:
        return mixture.draw(48, 64, generator_for(3, key, 1, "mask"))[0].tobytes()

    forwards = [draw(key) for key in keys]
    with ThreadPoolExecutor(4) as threads:
        backwards = list(threads.map(draw, reversed(keys)))
    assert forwards == backwards[::-1]


@pytest.mark.parametrize("name", sorted(set(GENERATORS) - {"full", "none", "center"}))
def test_limits_that_cannot_be_met_end_in_an_error_that_says_what_was_met(name: str) -> None:
    mixture = MaskMixture({name: 1.0}, min_hole=0.9999, max_hole=0.99999)
    with pytest.raises(UsageError, match=rf"1000 draws of {name} at 32x32 had hole ratios of .* widen the limits"):
        mixture.draw(32, 32, generator_for(0, "key", 0, "mask"))


def test_rejection_draws_at_most_a_thousand_times() -> None:
    calls = 0

    def half() -> np.ndarray:
        nonlocal calls
        calls += 1
        return np.array([[True, False]])

    with pytest.raises(UsageError, match=r"ratios of 0.5 to 0.5, none within 0.6 to 0.7"):
        draw_within(0.6, 0.7, half, "half")
    assert calls == 1000


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"strokes": -1.0, "boxes": 2.0}, "zero or more"),
        ({"strokes": 0.0}, "not all zero"),
        ({}, "not all zero"),
        ({"strokes": float("nan")}, "zero or more"),
        ({"strokes": float("inf")}, "zero or more"),
        ({"strokes": "often"}, "zero or more"),
        ({"boxes": 1e308, "strokes": 1e308}, "the sum of .* is not finite; give smaller ones"),
        ({"boxes": 10**400}, "zero or more"),
        ({"scribbles": 1.0}, "no generator is called 'scribbles'; choose from strokes, boxes, full"),
        ({"scribbles": 1.0, 3: 1.0}, "no generator is called 'scribbles'"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_from_is_refused(weights: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=rf"^mixture: .*{named}"):
        MaskMixture(weights)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"min_hole": 0.6, "max_hole": 0.5}, "min_hole 0.6 is above max_hole 0.5"),
        ({"max_hole": 1.5}, "max_hole: 1.5 is not between 0 and 1"),
        ({"invert": -0.1}, "invert: -0.1 is not between"),
        ({"add_stroke": float("nan")}, "add_stroke: nan is not between"),
        ({"full": True}, "full: True is not between"),
        ({"fill_holes": 2}, "fill_holes: 2 is not between 0 and 1"),
        ({"opening": "often"}, "opening: 'often' is not between 0 and 1"),
        ({"smooth": -1}, "smooth: -1 is not between 0 and 1"),
        ({"convex_hull": True}, "convex_hull: True is not between 0 and 1"),
        *(
            ({"precision": wrong}, rf"precision: {re.escape(repr(wrong))} is neither a level of 0 to 4 nor a range")
            for wrong in (5, -1, True, 1.5, "box", [3, 1], [0, 5], [1], [1, 2, 3], [0, 1.5], None)
        ),
        ({"parameters": {"scribbles": {}}}, "no generator is called 'scribbles'"),
        ({"parameters": {"outpaint": {"width": 1}}}, "outpaint has no parameter 'width'; it takes depth, side"),
        ({"parameters": {"full": {"width": 1}}}, "full has no parameter 'width'; it takes none"),
        ({"parameters": {"outpaint": {"depth": 0.3}}}, r"depth: 0.3 is not \[low, high\], each a number of 0 to 1"),
        ({"parameters": {"outpaint": {"depth": [0.4, 0.3]}}}, r"depth: \[0.4, 0.3\] is not"),
        ({"parameters": {"outpaint": {"depth": [0.4, 30]}}}, r"of 0 to 1"),
        ({"parameters": {"boxes": {"count": [1, 2.5]}}}, r"\[1, 2.5\] is not \[low, high\], each a whole number of 1"),
        ({"parameters": {"boxes": {"margin": [1, 2]}}}, r"margin: \[1, 2\] is not a number of 0 to 1024"),
        ({"parameters": {"clouds": {"octaves": 0}}}, "octaves: 0 is not a whole number of 1 to 8"),
        *(
            ({"parameters": {name: {parameter: value}}}, rf"{name}: {parameter}: .* is not .*{may_be}")
            for name, parameter, value, may_be in (
                ("polygons", "corners", [1_000_000, 1_000_000], "of 3 to 256"),
                ("polygons", "corners", [2, 5], "of 3 to 256"),
                ("clouds", "octaves", 60, "of 1 to 8"),
                ("boxes", "count", [1, 10**20], "of 1 to 256"),
                ("boxes", "margin", -1, "of 0 to 1024"),
                ("boxes", "side", [0, 9], "above 0, at most 1024"),
                ("boxes", "side", [1, 10**400], "above 0, at most 1024"),
                ("grid", "cell", [1, 1e30], "above 0, at most 1024"),
                ("strokes", "thickness", [1e5, 1e6], "above 0, at most 1024"),
                ("strokes", "length", [-1, 9], "above 0, at most 1024"),
            )
        ),
        ({"parameters": None}, "parameters: None is not a mapping of generators; give one such as {outpaint"),
        (
            {"parameters": {"boxes": 3}},
            "parameters: boxes: 3 is not a mapping of parameters to values; it takes count, side",
        ),
        ({"parameters": {"boxes": None}}, "parameters: boxes: None is not a mapping of parameters to values"),
        *(
            ({"weights": wrong}, rf"weights: {re.escape(repr(wrong))} is not a mapping of generators; give one")
            for wrong in (None, "boxes", ["a"])
        ),
    ],
)
def test_settings_of_a_mixture_that_cannot_be_are_named(change: dict, named: str) -> None:
    with pytest.raises(UsageError, match=rf"^mixture: .*{named}"):
        MaskMixture(**change)


EXTREME = {  # what a parameter may be at least and at most, by how that is said
    "a whole number of 1 to 256": (1, 256),
    "a whole number of 3 to 256": (3, 256),
    "a whole number of 1 to 8": (1, 8),
    "a number of 0 to 1": (0, 1),
    "a number of 0 to 1024": (0, 1024),
    "a number above 0, at most 1024": (1e-300, 1024),
}
EXTREMES = [
    (name, parameter, value)
    for name in GENERATORS
    for parameter in parameters_of(name)
    for value in EXTREME[range_of(name, parameter).removeprefix("[low, high], each ")]
]


@pytest.mark.parametrize(("name", "parameter", "value"), EXTREMES)
@pytest.mark.parametrize("side", [8, 512])
def test_every_parameter_draws_at_both_ends_of_its_range(name: str, parameter: str, value: float, side: int) -> None:
    given_value = [value, value] if isinstance(parameters_of(name)[parameter], tuple) else value
    if name in FREE_FORM and value == 0:
        given_value = [0, 0.1]  # no mask of it is empty, and none is everything
    if name in FREE_FORM and value == 1:
        given_value = [0.8, 1]
    mixture = MaskMixture({name: 1}, parameters={name: {parameter: given_value}})
    mask, _ = mixture.draw(side, side, generator_for(0, "a", 0, "mask"))
    assert mask.shape == (side, side)
    assert mask.any()


def test_the_table_of_parameters_names_each_with_its_default_and_range() -> None:
    """docs/masks.md, of which the last column is in words."""
    row = r"^\| `(.+?)` \| `(.+?)` \| (.+?) \| (.+?) \| .+ \|$"
    written = re.findall(row, DOCS.read_text(), re.MULTILINE)
    assert [(name, each, yaml.safe_load(default), may_be) for name, each, default, may_be in written] == [
        (name, each, list(default) if isinstance(default, tuple) else default, range_of(name, each))
        for name in GENERATORS
        for each, default in parameters_of(name).items()
    ]


def test_an_object_mask_is_drawn_among_those_that_show_and_are_within_the_limits() -> None:
    def share(columns: int) -> Callable[[], np.ndarray]:
        return lambda: np.repeat(np.arange(10)[None] < columns, 10, 0)

    objects = [share(columns) for columns in (0, 1, 4, 5, 10)]
    mixture = MaskMixture({"object": 1.0}, 0.2, 0.6)
    found = Counter(
        (mixture.draw(10, 10, generator_for(0, str(i), 0, "mask"), objects)[0].mean().round(1)) for i in range(400)
    )
    assert set(found) == {0.4, 0.5}
    assert within_binomial(found[0.4], 400, 0.5)

    rng = generator_for(0, "key", 0, "mask")
    inverted, origin = MaskMixture({"object": 1.0}, invert=1).draw(10, 10, rng, objects[1:2])
    assert origin == Origin("object", ("inverted",))
    assert inverted.mean() == 0.9
    with pytest.raises(SampleError, match=r"2 object masks have hole ratios of 0.1 to 1 as object, none within min_"):
        mixture.draw(10, 10, rng, [objects[0], objects[1], objects[4]])
    with pytest.raises(SampleError, match="every object mask is empty, in itself or where the image is cut"):
        mixture.draw(10, 10, rng, objects[:1])
    with pytest.raises(UsageError, match="give the sample's own as objects"):
        mixture.draw(10, 10, rng)


EDITED = {"fill_holes": 0.5, "opening": 0.3, "smooth": 0.4, "convex_hull": 0.2, "precision": [0, 4]}


def disc(radius: int, side: int = 96) -> Callable[[], np.ndarray]:
    return lambda: cv2.circle(np.zeros((side, side), np.uint8), (40, 48), radius, 1, -1).astype(bool)


def test_an_object_is_lost_only_where_no_way_is_within_the_limits() -> None:
    """Turned over, these discs are more than the greatest hole; where they were not, they stay as they were."""
    free = MaskMixture({"object": 1.0}, invert=0.5, add_stroke=0.2)
    held = MaskMixture({"object": 1.0}, max_hole=0.8, invert=0.5, add_stroke=0.2)
    labels: Counter[str] = Counter()
    for i in range(400):
        objects = [disc(8 + i % 5), disc(14)]
        mask, origin = held.draw(96, 96, generator_for(0, str(i), 0, "mask"), objects)
        assert mask.mean() <= 0.8
        assert "inverted" not in origin.edits
        as_decided, first_origin = free.draw(96, 96, generator_for(0, str(i), 0, "mask"), objects)
        if as_decided.mean() <= 0.8:
            assert np.array_equal(mask, as_decided)
            assert origin == first_origin
        labels[str(origin)] += 1
    # The share of strokes stays, within what a stroke outside the limits takes away.
    assert labels["object"] + labels["object+stroke"] == 400
    assert 0 < labels["object+stroke"] <= 400 * 0.2 + 4 * (400 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize("invert", [0.01, 0.1, 0.9])
def test_a_rare_way_is_found_if_it_is_the_only_one_within_the_limits(invert: float) -> None:
    """Once in 100 times it takes a hundred decisions to come upon: 0.37 of those are lost, of one in ten 0.00003."""
    found = 0
    for i in range(200):
        with suppress(SampleError):
            mixture = MaskMixture({"object": 1.0}, min_hole=0.8, invert=invert)
            mask, origin = mixture.draw(96, 96, generator_for(0, str(i), 0, "mask"), [disc(10)])
            assert origin == Origin("object", ("inverted",))
            assert np.array_equal(mask, ~disc(10)())
            found += 1
    assert found == 200 if invert >= 0.1 else within_binomial(found, 200, 1 - 0.99**101)


def test_a_hopeless_sample_says_how_its_masks_were_made_and_makes_few_of_them() -> None:
    calls = 0

    def counted() -> np.ndarray:
        nonlocal calls
        calls += 1
        return disc(10)()

    limits = {"min_hole": 0.4, "max_hole": 0.4}
    rng = generator_for(0, "a", 0, "mask")
    said = r"its 3 object masks have hole ratios of 0\.\d+ as object(\+inverted)?, 0\.\d+ as object(\+inverted)?, none "
    with pytest.raises(SampleError, match=said):
        MaskMixture({"object": 1.0}, **limits, invert=0.5).draw(96, 96, rng, [counted] * 3)
    assert calls == 6
    calls = 0
    with pytest.raises(SampleError, match=r"as object\S* and \d+ other ways, none within min_hole 0.4 to max_hole 0.4"):
        MaskMixture({"object": 1.0}, **limits, invert=0.5, add_stroke=0.01, **EDITED).draw(96, 96, rng, [counted] * 3)
    assert calls == 6
    calls = 0
    with pytest.raises(SampleError, match=r"have hole ratios of 0\.\d+ as object\+precision4\+inverted, none within"):
        MaskMixture({"object": 1.0}, **limits, invert=1, precision=4).draw(96, 96, rng, [counted] * 3)
    assert calls == 3, "there is no other way"


ALL = "1455c2a080d7" if cv2.__version__.startswith("4.") else "d789c77ffcb4"  # polygons are among them
SOME = {"invert": 0.3, "add_stroke": 0.3, **EDITED}


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (MaskMixture(), "4319ac0de051"),
        (MaskMixture({"object": 1.0}, **SOME), "271441290683"),
        (MaskMixture({"object": 1.0}, 0.01, 0.98, **SOME), "7634307d2d09"),
        (MaskMixture(dict.fromkeys([*GENERATORS, "object"], 1.0), 0.01, 0.99, full=0.1, **SOME), ALL),
    ],
    ids=["default", "objects", "objects within limits", "all"],
)
def test_a_mixture_draws_what_it_drew_elsewhere(mixture: MaskMixture, expected: str) -> None:
    digest = hashlib.blake2b(digest_size=6)
    for i in range(60):
        objects = [disc(6 + (7 * i + 11 * k) % 30) for k in range(3)]
        mask, origin = mixture.draw(96, 96, generator_for(7, str(i), i, "mask"), objects)
        digest.update(np.packbits(mask).tobytes() + str(origin).encode())
    assert digest.hexdigest() == expected


def test_a_variant_has_the_same_mask_alone_and_among_others() -> None:
    """And the same whatever else is in the batch, since each sample is drawn by itself."""
    pixels = io.BytesIO()
    Image.fromarray(np.full((64, 80, 3), 90, np.uint8)).save(pixels, "PNG")
    mixture = MaskMixture(dict.fromkeys(DRAWN, 1.0), 0.01, 0.99, invert=0.3, add_stroke=0.3, **EDITED)
    chosen = example_settings(resolution=64, masks="mixture", mixture=mixture, seed=3)
    for key in ("a", "b", "ü", "a/b"):
        sample = Sample("shards/0.tar", key, {"png": pixels.getvalue()})
        (together,) = prepare(sample, chosen, range(8))
        for k in range(8):
            (alone,) = prepare(sample, chosen, [k])
            assert np.array_equal(alone.masks[0], together.masks[k])
            assert alone.origins == together.origins[k : k + 1]
            assert (alone.variants, together.variants) == ((k,), tuple(range(8)))
            expected, origin = mixture.draw(64, 64, generator_for(3, sample_id("0", key), k, "mask"))
            assert np.array_equal(expected, alone.masks[0])
            assert origin == alone.origins[0]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_mixture_comes_from_yaml_and_back_from_a_caches_json(config: Path) -> None:
    settings_of_it = EDITED | yaml.safe_load(config.read_text())
    mixture = MaskMixture(**settings_of_it)
    parser = ArgumentParser()
    parser.add_argument("--mixture", type=MaskMixture)
    given = parser.parse_object({"mixture": settings_of_it})
    assert MaskMixture(**given.mixture.as_dict()) == mixture
    again = MaskMixture(**json.loads(json.dumps(asdict(mixture))))
    assert asdict(again) == asdict(mixture) == json.loads(json.dumps(asdict(mixture)))
    half = [lambda: np.arange(64 * 64).reshape(64, 64) < 64 * 32]
    for i in range(50):
        first, second = (each.draw(64, 64, generator_for(0, str(i), 0, "mask"), half) for each in (mixture, again))
        assert np.array_equal(first[0], second[0])
        assert first[1] == second[1]


OFFSETS = {
    "fixed": RandomOffset("fixed", value=-7),
    "uniform": RandomOffset("uniform", low=-8, high=24),
    "normal": RandomOffset("normal", mean=6, deviation=4),
    "two-sided": RandomOffset("two-sided", low=3, high=9),
    "relative fixed": RandomOffset("fixed", value=0.25, relative=True),
    "relative uniform": RandomOffset("uniform", low=0.0, high=0.5, relative=True),
    "relative normal": RandomOffset("normal", mean=0.1, deviation=0.2, relative=True),
    "relative two-sided": RandomOffset("two-sided", low=0.1, high=0.2, relative=True),
    "mostly exact": RandomOffset("two-sided", low=3, high=9, zero=0.75),
    "of any window": RandomOffset("uniform", low=-8, high=24, windows=("square", "octagon", "cross")),
}
DISC = cv2.circle(np.zeros((256, 256), np.uint8), (128, 128), 40, 1, -1).astype(bool)


def offsets(distribution: RandomOffset, count: int = 2000, mask: np.ndarray = DISC) -> np.ndarray:
    return np.array([distribution.draw(generator_for(0, str(i), 0, "offset"), mask) for i in range(count)])


@pytest.mark.parametrize("name", sorted(OFFSETS))
def test_offsets_are_whole_within_their_bounds_and_the_same_again(name: str) -> None:
    distribution = OFFSETS[name]
    found = offsets(distribution)
    low, high = check_offset(distribution)
    assert -128 <= low <= found.min()
    assert found.max() <= high <= 128
    assert np.array_equal(found, offsets(distribution))
    assert type(distribution.draw(generator_for(0, "a", 0, "offset"), torch.from_numpy(DISC))) is int
    assert RandomOffset(**json.loads(json.dumps(asdict(distribution)))) == distribution
    assert offset_from(json.loads(json.dumps(offset_settings(distribution)))) == distribution
    assert json.loads(json.dumps(offset_settings(distribution))) == offset_settings(distribution)


def test_offsets_are_distributed_as_they_say() -> None:
    assert set(offsets(OFFSETS["fixed"])) == {-7}
    uniform = Counter(offsets(OFFSETS["uniform"], 6600))
    assert set(uniform) == set(range(-8, 25))
    assert all(within_binomial(found, 6600, 1 / 33) for found in uniform.values())
    normal = offsets(OFFSETS["normal"])
    assert abs(normal.mean() - 6) < 4 * 4 / 2000**0.5
    assert abs(normal.std() - 4) < 0.3
    two_sided = offsets(OFFSETS["two-sided"])
    assert set(abs(two_sided)) == set(range(3, 10))
    assert within_binomial(int((two_sided > 0).sum()), 2000, 0.5)


def test_a_relative_offset_is_a_share_of_the_radius_of_a_disc_as_large_as_the_mask() -> None:
    assert set(offsets(OFFSETS["relative fixed"], 10)) == {10}  # a quarter of 40
    found = offsets(OFFSETS["relative uniform"])
    assert set(found) == set(range(21))
    twice = np.kron(DISC, np.ones((2, 2), bool))
    assert np.abs(offsets(OFFSETS["relative uniform"], mask=twice) - 2 * found).max() <= 2
    assert set(offsets(OFFSETS["relative uniform"], 10, np.zeros((4, 4), bool))) == {0}
    assert set(abs(offsets(OFFSETS["relative two-sided"]))) == {4, 5, 6, 7, 8}
    assert set(offsets(RandomOffset("fixed", value=50, relative=True), 3)) == {128}


def test_exact_masks_come_with_their_probability_and_leave_the_other_offsets_as_they_are() -> None:
    found, always = offsets(OFFSETS["mostly exact"]), offsets(OFFSETS["two-sided"])
    assert within_binomial(int((found == 0).sum()), 2000, 0.75)
    assert np.array_equal(found[found != 0], always[found != 0])
    assert set(offsets(RandomOffset("uniform", low=5, high=9, zero=1.0), 50)) == {0}


def test_an_offset_comes_from_yaml() -> None:
    parser = ArgumentParser()
    parser.add_argument("--mask_offset", type=Offset)
    given = yaml.safe_load("{distribution: two-sided, low: 3, high: 9, zero: 0.75, windows: [octagon, cross]}")
    found = parser.parse_object({"mask_offset": given}).mask_offset.as_dict()
    assert RandomOffset(**found) == offset_from(given) == RandomOffset(**given | {"windows": ("octagon", "cross")})


def test_each_window_comes_alike_often_and_leaves_the_offsets_as_they_are() -> None:
    found = Counter(draw_window(OFFSETS["of any window"], generator_for(0, str(i), 0, "window")) for i in range(2000))
    assert set(found) == {"square", "octagon", "cross"}
    assert all(within_binomial(count, 2000, 1 / 3) for count in found.values())
    assert np.array_equal(offsets(OFFSETS["of any window"]), offsets(OFFSETS["uniform"]))
    for each in (6, (-8, 24), OFFSETS["uniform"]):
        assert draw_window(each, generator_for(0, "a", 0, "window")) == "square"


def test_an_offset_may_be_a_number_a_range_or_a_distribution() -> None:
    for i in range(200):
        by_range, by_distribution = (
            draw_offset(each, generator_for(1, str(i), 0, "offset")) for each in ((-8, 24), OFFSETS["uniform"])
        )
        assert by_range == by_distribution
    assert draw_offset(6, generator_for(0, "a", 0, "offset")) == 6
    with pytest.raises(UsageError, match="relative to the mask's size needs the mask"):
        draw_offset(OFFSETS["relative fixed"], generator_for(0, "a", 0, "offset"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"distribution": "cauchy"}, "'cauchy' is unknown; choose from fixed, uniform, normal, two-sided"),
        ({"distribution": "normal", "low": 1}, "normal takes mean and deviation, not low"),
        ({"low": 9, "high": 3}, "the range [9, 3] is empty"),
        ({"low": -200, "high": 3}, "low -200 is outside -128...128"),
        ({"low": 0.5, "high": 3}, "low 0.5 is not a whole number of pixels"),
        (
            {"distribution": "normal", "deviation": -1},
            "deviation: -1, but deviation of a normal offset is a size; give 0 or more",
        ),
        (
            {"distribution": "two-sided", "low": -3, "high": 3},
            "low: -3, but low of a two-sided offset is a size; give 0 or more",
        ),
        ({"distribution": ["fixed"]}, "['fixed'] is unknown; choose from fixed"),
        ({"relative": None}, "relative: None is neither true nor false"),
        ({"relative": "yes"}, "relative: 'yes' is neither true nor false"),
        ({"relative": True, "low": -1e308, "high": 1e308}, "low -1e+308 is outside -128...128 radii"),
        ({"high": 10**400}, "is not a number; give one"),
        ({"high": None}, "high: None is not a number; give one"),
        ({"zero": 1.5}, "zero: 1.5 is not between 0 and 1"),
        ({"high": float("nan")}, "high: nan is not a number"),
        ({"windows": ["disc"]}, "windows: ['disc'] is not a list of some of square, octagon, cross"),
        (
            {"windows": "octagon"},
            "windows: 'octagon' is not a list of some of square, octagon, cross; give, say, [octagon]",
        ),
        ({"windows": None}, "windows: None is not a list of some of"),
        ({"windows": []}, "windows: [] is not a list of some of"),
        ({"windows": [["square"]]}, "windows: [['square']] is not a list of some of"),
    ],
)
def test_an_offset_that_cannot_be_is_named(given: dict, named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)):
        RandomOffset(**given)
