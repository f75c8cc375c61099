from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.windows import Layout, layout_for, windowed_index

MIB = 2**20
layouts = st.builds(
    lambda lanes, width, block, window: Layout(lanes * width, lanes, block, window),
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(1, 300),
    st.integers(1, 9),
)
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
    for layout in (
        layout_for(4096, n, n * 100_000),
        Layout(3, 3, 5, 7),
        Layout(8, 2, n, 1),
        Layout(8, 1, 1, n),
    ):
        order = windowed_index(np.arange(3 * n - 1000, 3 * n + 1000), n, 1, layout)
        assert len(np.unique(order[:1000])) == len(np.unique(order[1000:])) == 1000
        assert order.min() >= 0 and order.max() < n


def chunks_read(indices: NDArray[np.int64], chunk: int, cache: int) -> int:
    """How many chunks a reader fetches that keeps the `cache` least recently used ones."""
    kept: OrderedDict[int, None] = OrderedDict()
    fetched = 0
    for number in (indices // chunk).tolist():
        fetched += number not in kept
        kept[number] = None
        kept.move_to_end(number)
        if len(kept) > cache:
            kept.popitem(last=False)
    return fetched


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 24])
def test_a_rank_reads_its_share_once_and_in_whole_blocks(world_size: int) -> None:
    n, batch, chunk, epoch = 240_007, 96, 25, 3  # epochs begin in the middle of a batch
    layout = Layout(stripe=batch, lanes=48, block=100, window=4)
    steps = np.arange(-(-epoch * n // batch), (epoch + 1) * n // batch)
    share = batch // world_size
    lanes = layout.lanes // world_size
    # A block that begins anywhere in a chunk lies in one more of them; a lane ends inside a window.
    chunks_a_block = layout.block // chunk + 1
    windows = n / (layout.window * layout.block) / world_size + lanes + 1
    for rank in {0, world_size // 2, world_size - 1}:
        positions = steps[:, None] * batch + rank * share + np.arange(share)
        indices = windowed_index(positions, n, 8, layout).reshape(-1)
        fetched = chunks_read(indices, chunk, cache=2 * lanes * layout.window * chunks_a_block)
        assert fetched <= windows * layout.window * chunks_a_block


def test_ranks_share_no_block_but_at_their_borders() -> None:
    n, batch, world_size = 200_000, 64, 8
    layout = Layout(batch, lanes=64, block=50, window=4)
    order = windowed_index(np.arange(n).reshape(-1, world_size, batch // world_size), n, 0, layout)
    touched = [np.bincount(order[:, rank].reshape(-1) // layout.block, minlength=4000) for rank in range(8)]
    # Blocks begin at a random sample, so that each of these ranges lies in two of them.
    assert (np.count_nonzero(touched, axis=0) <= 2).mean() > 0.98
    expected = 1 / world_size + (1 - 1 / world_size) / world_size
    assert np.count_nonzero(touched, axis=1) / 4000 == pytest.approx(np.full(8, expected), abs=0.03)


def test_places_are_uniform_over_epochs() -> None:
    n, epochs, bins = 600, 3000, 20
    layout = Layout(stripe=24, lanes=6, block=11, window=3)
    order = windowed_index(np.arange(epochs * n), n, 2, layout).reshape(epochs, n)
    place = np.argsort(order, axis=1)
    for index in (0, 1, 17, 299, 598, 599):
        counts = np.bincount(place[:, index] * bins // n, minlength=bins)
        chi_squared = ((counts - epochs / bins) ** 2 / (epochs / bins)).sum()
        assert chi_squared < 43.8  # the 99.9 % quantile at 19 degrees of freedom


def test_epochs_and_seeds_have_unrelated_orders() -> None:
    n = 20_000
    layout = Layout(stripe=64, lanes=16, block=10, window=4)
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
    layout = Layout(stripe=1, lanes=1, block=100, window=4)
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


def test_blocks_and_their_samples_are_shuffled_anew_each_epoch() -> None:
    n, block = 40_000, 100
    first, second = windowed_index(np.arange(2 * n), n, 6, Layout(1, 1, block, window=4)).reshape(2, n)
    apart = (second - first) % n  # blocks in the same order would be one distance apart
    assert np.bincount(apart // (2 * block)).max() < 0.02 * n
    assert np.bincount(apart % block).max() < 1.3 * n / block


@pytest.mark.parametrize("batch", [1, 7, 64, 100, 101, 256, 300, 1000, 1024, 4096, 32_768])
@pytest.mark.parametrize(
    "n, mean", [(1, 10**6), (2624, 40_000), (10**6, 10**5), (10**9, 10**5), (10**5, 10**9)]
)
def test_chosen_layouts_hold_what_they_promise(batch: int, n: int, mean: int) -> None:
    layout = layout_for(batch, n, n * mean)
    assert layout.stripe == batch and batch % layout.lanes == 0
    assert 1 <= layout.block <= n and layout.block * mean <= max(32 * MIB, mean)
    blocks = -(-n // layout.block)
    if blocks <= 256:
        assert layout.window * layout.block >= n
    else:
        assert 256 <= layout.lanes * layout.window <= max(batch, 320)
        assert layout.window >= 4


def test_lanes_grow_with_the_batch() -> None:
    def lanes(batch: int) -> int:
        return layout_for(batch, 10**9, 10**14).lanes

    assert [lanes(b) for b in (64, 96, 1000, 1024, 2048, 32_768)] == [64, 48, 50, 64, 128, 2048]


def test_a_set_that_any_cache_holds_is_shuffled_uniformly() -> None:
    n = 20_000
    order = windowed_index(np.arange(n), n, 0, layout_for(64, n, n * 100_000))
    # Single samples follow each other, not blocks of 335: the mean distance of two uniform draws.
    assert abs(np.abs(np.diff(order)).mean() - n / 3) < 0.02 * n


def test_batches_are_mixed_though_the_shards_are_sorted_by_class() -> None:
    n, batch, classes = 2_000_000, 1024, 1000
    layout = layout_for(batch, n, n * 110_000)
    order = windowed_index(np.arange(n // batch * batch), n, 1, layout).reshape(-1, batch)
    present = np.array([len(np.unique(row * classes // n)) for row in order[:: len(order) // 100]])
    assert present.mean() > 200  # of 641 in a uniform order, and 1 or 2 in that of the shards
