import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order.windows import Layout, lanes_for, layout_for, windowed_index

MIB = 2**20
layouts = st.builds(Layout, st.integers(1, 100), st.integers(1, 300), st.integers(1, 9))
lengths = st.one_of(st.integers(1, 60), st.sampled_from([997, 1009, 1024]), st.integers(1, 1500))


@settings(max_examples=150, deadline=None)
@given(n=lengths, layout=layouts, seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 10**9))
def test_every_epoch_visits_every_sample_once(n: int, layout: Layout, seed: int, epoch: int) -> None:
    order = windowed_index(epoch * n + np.arange(2 * n), n, seed, layout).reshape(2, n)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(n), (2, 1)))


@settings(max_examples=50, deadline=None)
@given(
    n=lengths,
    layout=layouts,
    positions=st.lists(st.integers(0, 10**12), min_size=1, max_size=40),
    cut=st.integers(0, 40),
)
def test_an_index_does_not_depend_on_what_is_asked_beside_it(
    n: int, layout: Layout, positions: list[int], cut: int
) -> None:
    p = np.array(positions)
    whole = windowed_index(p, n, 5, layout)
    parts = [windowed_index(part, n, 5, layout) for part in (p[:cut], p[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal([windowed_index(x, n, 5, layout) for x in p], whole)
    np.testing.assert_array_equal(windowed_index(p.reshape(1, -1, 1), n, 5, layout), whole.reshape(1, -1, 1))


def test_a_trillion_samples_need_no_memory() -> None:
    n = 2**40
    for layout in (layout_for(256, n, n * 100_000), Layout(3, 5, 7), Layout(2, n, 1), Layout(1, 1, n)):
        order = windowed_index(np.arange(3 * n - 1000, 3 * n + 1000), n, 1, layout)
        assert len(np.unique(order[:1000])) == len(np.unique(order[1000:])) == 1000
        assert order.min() >= 0 and order.max() < n


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 3000), lanes=st.integers(1, 80), epoch=st.integers(0, 10**6))
def test_lanes_are_stretches_of_one_sequence(n: int, lanes: int, epoch: int) -> None:
    positions = epoch * n + np.arange(n)
    layout = Layout(lanes, block=7, window=3)
    order = windowed_index(positions, n, 0, layout)
    # What a single lane would read one after another in the same epoch: the addresses in their order.
    addresses = windowed_index(positions, n, 0, Layout(1, layout.block, layout.window))
    np.testing.assert_array_equal(order[np.argsort(positions % lanes, kind="stable")], addresses)


def test_places_are_uniform_over_epochs() -> None:
    n, epochs, bins = 600, 3000, 20
    layout = Layout(lanes=6, block=11, window=3)
    order = windowed_index(np.arange(epochs * n), n, 2, layout).reshape(epochs, n)
    place = np.argsort(order, axis=1)
    for index in (0, 1, 17, 299, 598, 599):
        counts = np.bincount(place[:, index] * bins // n, minlength=bins)
        chi_squared = ((counts - epochs / bins) ** 2 / (epochs / bins)).sum()
        assert chi_squared < 43.8  # the 99.9 % quantile at 19 degrees of freedom


def test_epochs_and_seeds_have_unrelated_orders() -> None:
    n = 20_000
    layout = Layout(lanes=16, block=10, window=4)
    orders = [
        windowed_index(np.arange(n) + epoch * n, n, seed, layout)
        for seed in (0, 1, 2**40)
        for epoch in (0, 1)
    ]
    for i, a in enumerate(orders):
        assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.06
        for b in orders[:i]:
            assert (a == b).sum() < 12  # one agreement is expected between independent permutations
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.06


def test_a_lane_is_shuffled_inside_its_windows_and_by_blocks() -> None:
    n, size = 40_000, 400
    layout = Layout(lanes=1, block=100, window=4)
    windows = windowed_index(np.arange(n), n, 6, layout).reshape(-1, size)
    blocks = np.sort(windows, axis=1).reshape(-1, 100)
    assert (np.ptp(blocks, axis=1) == 99).mean() > 0.98  # all but that over the end of the set
    # Within a window the next sample is any of the 399 others: from the same block with 99 chances.
    same = np.abs(np.diff(windows, axis=1)) < 100
    assert same.mean() == pytest.approx(99 / 399, abs=0.02)
    # Within a block it is as often before as after, at the mean distance of two of a hundred places.
    inside = np.diff(windows, axis=1)[same]
    assert abs(inside.mean()) < 1 and np.abs(inside).mean() == pytest.approx(101 / 3, abs=1)
    # The next window lies anywhere.
    means = windows.mean(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.35


def test_blocks_and_their_samples_have_another_order_in_each_epoch() -> None:
    n, block = 40_000, 100
    first, second = windowed_index(np.arange(2 * n), n, 6, Layout(1, block, window=4)).reshape(2, n)
    apart = (second - first) % n  # blocks in the same order would be one distance apart
    assert np.bincount(apart // (2 * block)).max() < 0.02 * n
    assert np.bincount(apart % block).max() < 1.3 * n / block


@pytest.mark.parametrize("lanes", [1, 7, 48, 64, 2048])
@pytest.mark.parametrize("share", [1.0, 0.3, 2**-14])
@pytest.mark.parametrize(
    "n, mean", [(1, 10**6), (2624, 40_000), (10**6, 10**5), (10**9, 10**5), (10**5, 10**9), (10**6, 0)]
)
def test_chosen_layouts_hold_what_they_promise(lanes: int, share: float, n: int, mean: int) -> None:
    layout = layout_for(lanes, n, n * mean, share)
    assert layout.lanes == lanes
    assert 1 <= layout.block <= n and layout.block * mean <= max(32 * MIB, mean)
    if n <= 256 * share * layout.block:
        assert layout.window * layout.block >= n
    else:
        assert lanes * layout.window >= 256 * share
        assert lanes * (layout.window - 1) < max(256, 4 * lanes) * share


def test_lanes_divide_the_batch_and_grow_with_it() -> None:
    assert [lanes_for(b) for b in (1, 7, 64, 96, 101, 1000)] == [1, 7, 64, 48, 1, 50]
    assert [lanes_for(b) for b in (1024, 2048, 32_768)] == [64, 128, 2048]


def test_a_set_that_any_cache_holds_is_shuffled_uniformly() -> None:
    n = 20_000
    order = windowed_index(np.arange(n), n, 0, layout_for(64, n, n * 100_000))
    # Single samples follow each other, not blocks of 335: the mean distance of two uniform draws.
    assert abs(np.abs(np.diff(order)).mean() - n / 3) < 0.02 * n


def test_batches_are_mixed_though_the_shards_are_sorted_by_class() -> None:
    n, batch, classes = 2_000_000, 1024, 1000
    layout = layout_for(lanes_for(batch), n, n * 110_000)
    present = []
    for step in range(0, n // batch, 97):
        order = windowed_index(np.arange(step * batch, (step + 1) * batch), n, 1, layout)
        present.append(len(np.unique(order * classes // n)))
    assert np.mean(present) > 200  # of 641 in a uniform order, and 1 or 2 in that of the shards
