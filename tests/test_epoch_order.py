"""An epoch's batches: every sample once, one bucket each, and what is left after some were taken."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inpaint_data.order import Batches, Consumed, left_over, permutation

BUCKETS = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(lambda buckets: np.array(buckets, np.int64))


def slow_batches(order: Sequence[int], buckets: Sequence[int], size: int) -> list[list[int]]:
    """Walk the order, put each sample into its bucket's basket, and hand a basket on when it is full."""
    baskets: dict[int, list[int]] = {}
    done = []
    for row in order:
        basket = baskets.setdefault(buckets[row], [])
        basket.append(row)
        if len(basket) == size:
            done.append(baskets.pop(buckets[row]))
    return done + sorted(baskets.values(), key=lambda basket: order.index(basket[-1]))


@given(BUCKETS, st.integers(1, 7), st.integers(0, 99), st.integers(0, 3))
def test_batches_are_those_of_one_basket_a_bucket(buckets: np.ndarray, size: int, seed: int, epoch: int) -> None:
    order = permutation(len(buckets), seed, epoch)
    assert sorted(order) == list(range(len(buckets)))
    batches = Batches(order, buckets, size)
    made = [batches[i].tolist() for i in range(len(batches))]
    assert made == slow_batches(order.tolist(), buckets.tolist(), size)


@given(BUCKETS, st.lists(st.tuples(st.integers(1, 5), st.integers(0, 8)), max_size=3), st.integers(0, 99))
def test_what_is_left_is_what_no_batch_took(buckets: np.ndarray, parts: list[tuple[int, int]], seed: int) -> None:
    order = permutation(len(buckets), seed, 0)
    left, taken = order.tolist(), []
    for size, count in parts:
        batches = slow_batches(left, buckets.tolist(), size)[:count]
        taken += [row for batch in batches for row in batch]
        left = [row for row in left if row not in taken]
    found = left_over(order, buckets, [Consumed(size, count) for size, count in parts])
    assert found.tolist() == left
    assert sorted(taken + left) == list(range(len(buckets)))


def test_no_small_bucket_is_the_last_batch_of_every_epoch() -> None:
    # On two ranks the last of an odd number of batches is left out.
    buckets = np.array([0] * 9 + [1] * 2 + [2] * 2)
    last = []
    for epoch in range(60):
        batches = Batches(permutation(len(buckets), 0, epoch), buckets, 4)
        assert len(batches) == 5
        last.append(buckets[batches[4][0]])
    assert all(last.count(bucket) > 2 for bucket in range(3))


@given(st.integers(2, 50), st.integers(0, 9))
def test_the_order_depends_on_seed_and_epoch_alone(count: int, seed: int) -> None:
    assert np.array_equal(permutation(count, seed, 3), permutation(count, seed, 3))
    if count > 20:
        assert not np.array_equal(permutation(count, seed, 3), permutation(count, seed, 4))
        assert not np.array_equal(permutation(count, seed, 3), permutation(count, seed + 1, 3))
