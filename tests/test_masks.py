"""Drawn masks are a pure function of (seed, key, variant), and bad mixtures are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_data import MaskMixture, UsageError
from inpaint_data.masks import GENERATORS
from inpaint_data.seeding import generator_for


@pytest.mark.parametrize("name", sorted(GENERATORS))
@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 96), width=st.integers(1, 96), seed=st.integers(0, 2**32))
def test_a_generator_gives_a_bool_mask_of_the_size_asked_for_again_and_again(
    name: str, height: int, width: int, seed: int
) -> None:
    first, again = (GENERATORS[name](height, width, generator_for(seed, "key", 0, "mask")) for _ in range(2))
    assert first.shape == (height, width)
    assert first.dtype == bool
    assert first.any()
    assert np.array_equal(first, again)


def test_published_lengths_scale_with_the_short_side() -> None:
    """The same draw at twice the size covers the same share, up to rounding."""
    for name in ("strokes", "boxes"):
        small, large = (
            np.mean([GENERATORS[name](side, side, generator_for(0, str(i), 0, "mask")).mean() for i in range(200)])
            for side in (256, 512)
        )
        assert abs(small - large) < 0.03


def test_a_box_is_30_to_150_pixels_at_512() -> None:
    for i in range(100):
        mask = GENERATORS["boxes"](512, 512, generator_for(1, str(i), 0, "mask"))
        assert 30 <= mask.sum(0).max() <= 512
        assert 30**2 <= mask.sum() <= 5 * 150**2


def test_keys_variants_and_seeds_draw_different_masks() -> None:
    def draw(seed: int, key: str, variant: int) -> bytes:
        return GENERATORS["strokes"](64, 64, generator_for(seed, key, variant, "mask")).tobytes()

    assert len({draw(0, "a", 0), draw(0, "a", 1), draw(0, "b", 0), draw(1, "a", 0)}) == 4


def test_a_mixture_draws_its_generators_by_weight() -> None:
    mixture = MaskMixture({"strokes": 3, "boxes": 1, "full": 0})
    names = [mixture.draw(16, 16, generator_for(0, str(i), 0, "mask"))[1] for i in range(2000)]
    # Three standard deviations of a binomial with p = 1/4.
    assert abs(names.count("boxes") - 500) < 3 * (2000 * 0.25 * 0.75) ** 0.5
    assert names.count("full") == 0


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"strokes": -1.0, "boxes": 2.0}, "zero or more"),
        ({"strokes": 0.0}, "not all zero"),
        ({}, "not all zero"),
        ({"strokes": float("nan")}, "zero or more"),
        ({"scribbles": 1.0}, "no generator is called 'scribbles'; choose from strokes, boxes, full"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_from_is_refused(weights: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        MaskMixture(weights)
