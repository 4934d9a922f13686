"""Each edit of a mask equals its definition, computed pixel by pixel, and an edit that cannot be is not claimed."""

import math
from collections import Counter, deque
from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_data import MaskMixture
from inpaint_data.masks.edits import Origin, at_precision, convex_hull, edit, fill_holes, open_mask, smooth
from inpaint_data.masks.generators import GENERATORS
from inpaint_data.seeding import generator_for

LEVELS = range(5)
EDITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fill_holes": fill_holes,
    "opening": open_mask,
    "smooth": smooth,
    "convex_hull": convex_hull,
    **{f"precision {level}": lambda mask, level=level: at_precision(mask, level) for level in LEVELS},
}


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Noise, boxes and rings, of any size and often at the frame."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        return rng.random((height, width)) < draw(st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]))
    canvas = np.zeros((height, width), np.uint8)
    for _ in range(draw(st.integers(1, 4))):
        ends = [(int(x), int(y)) for x, y in rng.integers(-3, 27, (2, 2))]
        cv2.rectangle(canvas, *ends, 1, draw(st.sampled_from([-1, 1, 2])))
    return canvas.view(bool)


def filled_slowly(mask: np.ndarray) -> np.ndarray:
    """Walk in from outside, and mask what was not reached."""
    padded = np.pad(mask, 1)
    reached, ways = np.zeros_like(padded), deque([(0, 0)])
    reached[0, 0] = True
    while ways:
        y, x = ways.popleft()
        for to in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= to[0] < padded.shape[0] and 0 <= to[1] < padded.shape[1]
            if inside and not padded[to] and not reached[to]:
                reached[to] = True
                ways.append(to)
    return ~reached[1:-1, 1:-1]


@settings(max_examples=150, deadline=None)
@given(masks())
def test_holes_are_what_cannot_be_reached_from_outside(mask: np.ndarray) -> None:
    assert np.array_equal(fill_holes(mask), filled_slowly(mask))


def test_a_ring_is_filled_and_a_bay_at_the_frame_is_not() -> None:
    ring = cv2.circle(np.zeros((64, 64), np.uint8), (32, 32), 20, 1, 2).astype(bool)
    assert np.array_equal(fill_holes(ring), cv2.circle(ring.astype(np.uint8), (32, 32), 20, 1, -1).astype(bool))
    bay = np.ones((8, 8), bool)
    bay[0:4, 3:5] = False
    assert np.array_equal(fill_holes(bay), bay)


@settings(max_examples=100, deadline=None)
@given(masks(), st.sampled_from([1, 8, 12]))
def test_opening_leaves_every_square_that_lies_in_the_mask(mask: np.ndarray, zoom: int) -> None:
    """A square of 8 pixels at 512. What it covers beyond the frame counts as masked."""
    mask = np.kron(mask, np.ones((zoom, zoom), bool))
    mask[::7, ::5] ^= True
    side = max(1, round(8 * min(mask.shape) / 512))
    padded = np.pad(mask, side, constant_values=True)
    fits = np.lib.stride_tricks.sliding_window_view(padded, (side, side)).all((-2, -1))
    expected = np.zeros_like(padded)
    for y, x in np.ndindex(side, side):
        expected[y : y + fits.shape[0], x : x + fits.shape[1]] |= fits
    assert np.array_equal(open_mask(mask), expected[side:-side, side:-side])


def test_opening_takes_away_spikes_of_7_pixels_at_512_and_leaves_those_of_8() -> None:
    body = np.zeros((512, 512), bool)
    body[100:300, 100:300] = True
    spiked = body.copy()
    spiked[150:157, 300:400] = True
    assert np.array_equal(open_mask(spiked), body)
    spiked[150:158, 300:400] = True
    assert np.array_equal(open_mask(spiked), spiked)


@settings(max_examples=100, deadline=None)
@given(masks(), st.sampled_from([1, 5, 8]))
def test_smoothing_is_a_gaussian_blur_cut_at_a_half(mask: np.ndarray, zoom: int) -> None:
    mask = np.kron(mask, np.ones((zoom, zoom), bool))
    deviation = 4 * min(mask.shape) / 512
    reach = math.ceil(3 * deviation)
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    kernel /= kernel.sum()
    blurred = np.pad(mask.astype(float), reach, mode="edge")
    for _ in range(2):
        blurred = np.stack([np.convolve(row, kernel, "valid") for row in blurred]).T
    clear = abs(blurred - 0.5) > 1e-3  # the weights are rounded
    assert np.array_equal(smooth(mask)[clear], blurred[clear] > 0.5)


def test_smoothing_rounds_off_the_steps_of_a_small_mask_that_was_enlarged() -> None:
    down, right = np.mgrid[:512, :512] - 255.5
    disc = down**2 + right**2 < 150**2
    jagged = np.kron(disc.reshape(128, 4, 128, 4).mean((1, 3)) >= 0.5, np.ones((4, 4), bool))
    assert (smooth(jagged) != disc).sum() < 0.55 * (jagged != disc).sum()
    assert np.array_equal(smooth(disc), disc)


def hull_by_half_planes(mask: np.ndarray) -> np.ndarray:
    """A pixel is in the hull unless some line through two masked pixels has all of them on its other side."""
    points = np.argwhere(mask)
    hull = np.zeros_like(mask)
    if len(points):
        (top, left), (bottom, right) = points.min(0), points.max(0)
        hull[top : bottom + 1, left : right + 1] = True
    pixels = np.stack(np.indices(mask.shape), -1)
    for one in points:
        for other in points:
            normal = np.array([other[1] - one[1], one[0] - other[0]])
            if ((points - one) @ normal >= 0).all():
                hull &= (pixels - one) @ normal >= 0
    return hull


@settings(max_examples=150, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 2**31), count=st.integers(0, 9))
def test_the_hull_is_cut_by_half_planes(height: int, width: int, seed: int, count: int) -> None:
    mask = np.zeros(height * width, bool)
    mask[np.random.default_rng(seed).integers(height * width, size=count)] = True
    mask = mask.reshape(height, width)
    assert np.array_equal(convex_hull(mask), hull_by_half_planes(mask))


def test_a_hull_holds_its_mask_and_is_its_own_hull() -> None:
    for i in range(20):
        mask = GENERATORS["lama-thin"](500, 512, generator_for(0, str(i), 0, "mask"))
        hull = convex_hull(mask)
        assert (hull >= mask).all()
        assert np.array_equal(convex_hull(hull), hull)


def imprecise_slowly(mask: np.ndarray, share: float) -> np.ndarray:
    """All pixels of the bounding box within a share of the equivalent radius of a masked one."""
    points = np.argwhere(mask)
    radius = round(share * math.sqrt(len(points) / math.pi))
    pixels = np.stack(np.indices(mask.shape), -1)[:, :, None]
    near = (((pixels - points) ** 2).sum(-1) <= radius**2).any(-1)
    box = (pixels[:, :, 0] >= points.min(0)).all(-1) & (pixels[:, :, 0] <= points.max(0)).all(-1)
    return near & box


@settings(max_examples=150, deadline=None)
@given(masks())
def test_precision_goes_from_the_mask_through_growing_discs_to_its_box(mask: np.ndarray) -> None:
    found = [at_precision(mask, level) for level in LEVELS]
    assert np.array_equal(found[0], mask)
    for inner, outer in pairwise(found):
        assert (inner <= outer).all(), "each level lies within the next"
    if not mask.any():
        assert not found[4].any()
        return
    for level, share in ((1, 0.1), (2, 0.25), (3, 0.5), (4, 99.0)):
        assert np.array_equal(found[level], imprecise_slowly(mask, share))


def test_the_box_of_a_mask_of_two_parts_is_around_both() -> None:
    parts = np.zeros((32, 48), bool)
    parts[2:5, 3:6] = parts[20:25, 30:40] = True
    box = np.zeros_like(parts)
    box[2:25, 3:40] = True
    assert np.array_equal(at_precision(parts, 4), box)


@pytest.mark.parametrize("name", sorted(EDITS))
@settings(max_examples=50, deadline=None)
@given(mask=masks())
def test_an_edit_gives_bool_of_the_same_size_and_leaves_its_argument_alone(name: str, mask: np.ndarray) -> None:
    before = mask.copy()
    edited = EDITS[name](mask)
    assert (edited.shape, edited.dtype) == (mask.shape, np.dtype(bool))
    assert np.array_equal(mask, before)
    assert mask.any() or not edited.any(), "nothing stays nothing"
    assert not mask.all() or edited.all(), "everything stays everything"
    assert np.array_equal(EDITS[name](np.asfortranarray(mask)[::1]), edited)


def test_an_edit_that_would_leave_nothing_is_left_out_and_not_claimed() -> None:
    line = np.zeros((512, 512), bool)
    line[100:103, 50:400] = True
    for name in ("opening", "smooth"):
        kept, done = edit(line, [name], 0)
        assert done == ()
        assert np.array_equal(kept, line)
    boxed, done = edit(line, ["fill_holes", "opening", "smooth"], 4)
    assert done == ("filled", "precision4")
    assert np.array_equal(boxed, line)


# In a mixture


def drawn(mixture: MaskMixture, count: int = 200, side: int = 64) -> list[tuple[np.ndarray, Origin]]:
    return [mixture.draw(side, side, generator_for(0, str(i), 0, "mask")) for i in range(count)]


def test_edits_come_with_their_probabilities_and_shift_nothing_else() -> None:
    """The same masks as without them, edited where the origin says so; with any one edit the others stay."""
    weights = {"strokes": 1.0, "boxes": 1.0, "full": 0.1}
    plain = drawn(MaskMixture(weights), 1000)
    shares = {"fill_holes": 0.5, "opening": 0.3, "smooth": 0.4, "convex_hull": 0.2}
    several = drawn(MaskMixture(weights, **shares, precision=[0, 4]), 1000)
    words = {"fill_holes": "filled", "opening": "opened", "smooth": "smoothed", "convex_hull": "hull"}
    found: Counter[str] = Counter()
    for (mask, (name, none)), (edited, (its_name, edits)) in zip(plain, several, strict=True):
        assert none == ()
        assert its_name == name
        found.update(set(edits))
        chosen = [edit for edit, word in words.items() if word in edits]
        level = int(edits[-1][-1]) if edits and edits[-1].startswith("precision") else 0
        assert np.array_equal(edited, edit(mask, chosen, level)[0])
        assert name != "full" or edits == ()
    edited_ones = sum(name != "full" for _, (name, _) in plain)
    expected = {words[name]: share for name, share in shares.items()} | {f"precision{i}": 0.2 for i in range(1, 5)}
    assert set(found) == set(expected)
    for word, share in expected.items():
        assert abs(found[word] - edited_ones * share) <= 4 * (edited_ones * share * (1 - share)) ** 0.5, word
    only = drawn(MaskMixture(weights, convex_hull=0.2), 1000)
    assert ["hull" in origin.edits for _, origin in only] == ["hull" in origin.edits for _, origin in several]


def test_edits_come_before_inversion_stroke_and_limits() -> None:
    shapes = drawn(MaskMixture({"boxes": 1.0}))
    inverted = drawn(MaskMixture({"boxes": 1.0}, precision=4, invert=1.0))
    stroked = drawn(MaskMixture({"boxes": 1.0}, precision=4, invert=1.0, add_stroke=1.0))
    within_box = 0
    for (shape, _), (turned, origin), (with_stroke, its_origin) in zip(shapes, inverted, stroked, strict=True):
        assert origin == Origin("boxes", ("precision4", "inverted"))
        assert its_origin == Origin("boxes", ("precision4", "inverted", "stroke"))
        assert [str(origin), str(its_origin)] == ["boxes+precision4+inverted", "boxes+precision4+inverted+stroke"]
        assert np.array_equal(turned, ~at_precision(shape, 4))
        assert (with_stroke >= turned).all()
        within_box += bool((with_stroke & ~turned).any() and not with_stroke.all())
    assert within_box > 20, "a stroke stays a stroke, it is not made a box"
    for mask, _ in drawn(MaskMixture({"boxes": 1.0}, 0.1, 0.3, precision=4)):
        assert 0.1 <= mask.mean() <= 0.3


def test_an_object_is_edited_and_its_origin_is_that_of_the_object_that_was_taken() -> None:
    """The thin one cannot be opened; the limits decide which of them is taken."""
    thin, wide = np.zeros((512, 512), bool), np.zeros((512, 512), bool)
    thin[:, 100:104] = True
    wide[100:300, 100:400] = True
    objects = [lambda: thin, lambda: wide]
    for limits, expected, edits in (((0.0, 0.05), thin, ()), ((0.05, 1.0), wide, ("opened",))):
        mixture = MaskMixture({"object": 1.0}, *limits, opening=1.0)
        for i in range(8):
            mask, origin = mixture.draw(512, 512, generator_for(0, str(i), 0, "mask"), objects)
            assert origin == Origin("object", edits)
            assert np.array_equal(mask, expected)
