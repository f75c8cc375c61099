import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.mixture import Mixture
from data_pipeline.order import Order, sample_index


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
    source, epoch, index = order.locate(np.arange(6000))
    np.testing.assert_array_equal(source, Mixture(weights, seed).locate(np.arange(6000))[0])
    for k, n in enumerate(sizes):
        epochs, indices = epoch[source == k], index[source == k]
        whole = len(epochs) // n
        np.testing.assert_array_equal(epochs, np.arange(len(epochs)) // n)
        visits = np.sort(indices[: whole * n].reshape(whole, n), axis=1)
        np.testing.assert_array_equal(visits, np.tile(np.arange(n), (whole, 1)))


@pytest.mark.parametrize("kind", ["uniform", "windowed"])
def test_places_do_not_depend_on_how_positions_are_shared_out(kind: str) -> None:
    def order() -> Order:
        return Order([1000, 50], [3, 1], 1, kind, batch_size=96, bytes=[10**11, 50])

    positions = np.arange(16_000, 16_960)  # over the end of a period
    whole = np.stack(order().locate(positions))
    for parts in (2, 3, 8, 960):
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
