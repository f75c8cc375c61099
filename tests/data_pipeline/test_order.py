import numpy as np
import pytest

from data_pipeline.order import sample_index


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
