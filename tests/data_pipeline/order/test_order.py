import pickle
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.order import Order, sample_index
from data_pipeline.order.windows import lanes_for


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 10, 63, 64, 65, 100, 997, 4096, 100_003])
def test_every_epoch_visits_every_sample_once(n: int) -> None:
    order = sample_index(np.arange(3 * n), n, seed=5).reshape(3, n)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(n), (3, 1)))


def test_scalar_and_array_positions_agree_at_any_shape() -> None:
    n = 1000
    positions = np.random.default_rng(0).integers(0, 10**12, (4, 25))
    expected = [[sample_index(int(p), n, 3) for p in row] for row in positions]
    np.testing.assert_array_equal(sample_index(positions, n, 3), expected)
    assert type(sample_index(17, n, 3)) is int


def test_epochs_and_seeds_have_unrelated_orders() -> None:
    n = 5000
    orders = [sample_index(np.arange(n) + epoch * n, n, seed) for seed in (0, 1, 2**40) for epoch in (0, 1)]
    for i, a in enumerate(orders):
        assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.06
        for b in orders[:i]:
            assert (a == b).sum() < 10  # one agreement is expected between independent permutations
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.06


def test_all_permutations_of_a_small_set_are_equally_likely() -> None:
    draws = 24 * 500
    orders = sample_index(np.arange(4 * draws), 4, seed=11).reshape(draws, 4)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert chi_squared < 49.7  # the 99.9 % quantile at 23 degrees of freedom


def test_neighbours_in_time_are_not_neighbours_in_the_data_set() -> None:
    n = 20_000
    steps = np.abs(np.diff(sample_index(np.arange(n), n, seed=0)))
    assert abs(steps.mean() - n / 3) < 0.02 * n  # the mean distance of two uniform draws


def test_a_trillion_samples_need_no_memory() -> None:
    n = 2**40
    order = sample_index(np.arange(3 * n - 1000, 3 * n + 1000), n, seed=1)
    assert len(np.unique(order)) == 2000 and order.min() >= 0 and order.max() < n


def test_the_order_of_old_runs_stays() -> None:
    assert sample_index(np.arange(8), 8, 0).tolist() == [2, 5, 0, 4, 7, 6, 1, 3]
    assert sample_index(np.arange(10**12, 10**12 + 4), 10**9, -7).tolist() == [
        968165226,
        122907842,
        57011200,
        508735602,
    ]


def test_one_source_in_uniform_order_has_the_old_order() -> None:
    positions = np.arange(990, 1050).reshape(3, 20)
    source, epoch, index = Order([100], [2.0], 9, batch_size=8, bytes=[1]).locate(positions)
    assert not source.any()
    np.testing.assert_array_equal(epoch, positions // 100)
    np.testing.assert_array_equal(index, sample_index(positions, 100, 9))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 900), min_size=1, max_size=4),
    kind=st.sampled_from(["uniform", "windowed"]),
    batch=st.integers(1, 300),
    mean=st.sampled_from([100, 10**6, 10**9]),
    seed=st.integers(-5, 2**65),
    data=st.data(),
)
def test_every_epoch_of_every_source_visits_every_sample_once(
    sizes: list[int], kind: str, batch: int, mean: int, seed: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    order = Order(sizes, weights, seed, kind, batch_size=batch, bytes=[n * mean for n in sizes])
    source, epoch, index = order.locate(np.arange(6000 // batch * batch + 20 * batch))
    for k, n in enumerate(sizes):
        visits = index[source == k] + n * epoch[source == k]
        assert len(np.unique(visits)) == len(visits)
        # Lanes end a source's epoch a few visits apart.
        early = len(visits) - 4 * lanes_for(batch)
        assert set(range(early // n * n)) <= set(visits.tolist())


@pytest.mark.parametrize("kind", ["uniform", "windowed"])
def test_a_mixture_takes_its_sources_in_proportion_and_in_order(kind: str) -> None:
    weights = [5, 2, 1]
    order = Order([10**6] * 3, weights, 2, kind, batch_size=128, bytes=[10**12] * 3)
    source, epoch, _ = order.locate(np.arange(2**14 * 5))
    batches = source.reshape(-1, 128)
    for k, weight in enumerate(weights):
        share = weight / 8
        assert (source == k).mean() == pytest.approx(share, abs=1e-3)
        assert (batches == k).sum(1).std() < 1.15 * np.sqrt(128 * share * (1 - share))
    assert not epoch.any()


@pytest.mark.parametrize("kind", ["uniform", "windowed"])
def test_places_do_not_depend_on_how_positions_are_shared_out(kind: str) -> None:
    def order() -> Order:
        return Order([1000, 50], [3, 1], 1, kind, batch_size=96, bytes=[10**11, 50])

    positions = np.arange(16_000, 16_960)  # over the end of a period
    whole = np.stack(order().locate(positions))
    for parts in (2, 3, 8, 96):
        again = pickle.loads(pickle.dumps(order()))
        shared = [np.stack(again.locate(part)) for part in np.split(positions, parts)]
        np.testing.assert_array_equal(np.concatenate(shared, axis=1), whole)


def test_sources_of_a_mixture_have_streams_of_their_own() -> None:
    order = Order([500, 500], [1, 1], 3, batch_size=8, bytes=[1, 1])
    source, _, index = order.locate(np.arange(1000))
    assert len({3, *order.seeds}) == 3
    first = [index[source == k][:400] for k in (0, 1)]
    assert (first[0] == first[1]).sum() < 8
    assert Order([500], [1], 3, batch_size=8, bytes=[1]).seeds == (3,)


def chunks_fetched(places: NDArray[np.int64], cache: int) -> int:
    """How many chunks a reader fetches that keeps the `cache` most recently used ones."""
    kept: OrderedDict[int, None] = OrderedDict()
    fetched = 0
    for chunk in places.tolist():
        fetched += chunk not in kept
        kept[chunk] = None
        kept.move_to_end(chunk)
        if len(kept) > cache:
            kept.popitem(last=False)
    return fetched


@pytest.mark.parametrize("weights", [[1.0], [0.6, 0.2, 0.2]])
@pytest.mark.parametrize("world_size", [1, 3, 8, 24])
def test_a_rank_reads_its_share_once_and_in_whole_blocks(world_size: int, weights: list[float]) -> None:
    n, batch, lanes, block, chunk = 200_007, 96, 48, 100, 25
    order = Order(
        [n] * len(weights),
        weights,
        4,
        "windowed",
        batch_size=batch,
        bytes=[n * 2**25 // block] * len(weights),
    )
    share = batch // world_size
    steps = np.arange(3000, 3000 + n // batch)[:, None]  # begins in the middle of an epoch
    chunks_a_block = block // chunk + 1  # as blocks begin anywhere in a chunk
    for rank in {0, world_size - 1}:
        source, _, index = order.locate((steps * batch + rank * share + np.arange(share)).reshape(-1))
        cache = 2 * (256 + lanes * len(weights)) // world_size * chunks_a_block
        fetched = chunks_fetched(source * n + index // chunk, cache)
        # Every block once, but for those that are begun or ended outside of these steps.
        blocks = len(index) / block + 2 * cache / chunks_a_block
        assert fetched < 1.1 * blocks * chunks_a_block


def test_ranks_share_no_block_but_at_their_borders() -> None:
    n, batch, world_size, block = 400_000, 64, 8, 100
    order = Order([n], [1], 0, "windowed", batch_size=batch, bytes=[n * 2**25 // block])
    _, _, index = order.locate(np.arange(n).reshape(-1, world_size, batch // world_size))
    ranges = [np.bincount(index[:, rank].reshape(-1) // block, minlength=n // block) for rank in range(8)]
    # Blocks begin at a random sample, so that each of these ranges lies in two of them.
    assert (np.count_nonzero(ranges, axis=0) <= 2).mean() > 0.98
    expected = 1 / world_size + (1 - 1 / world_size) / world_size
    assert np.count_nonzero(ranges, axis=1) / (n // block) == pytest.approx(np.full(8, expected), abs=0.03)
