"""CKA, Procrustes distance and neighbours in common against brute force and in closed form."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial import procrustes as disparity
from scipy.stats import ortho_group
from sklearn.neighbors import NearestNeighbors

from eval_suite.layers.compare.similarity import Cloud, Estimate, cka, overlap, prepared, procrustes
from isotorus.errors import UserError

MEASURES = (cka, procrustes, overlap)
K = 5


def related(random: np.random.Generator, n: int, a: int = 6, b: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Draw features (n, a), and others (n, b) that follow from them in part."""
    x = random.normal(size=(n, a)) * np.linspace(1, 0.3, a) + 5
    return x, np.tanh(x[:, :b] - 5) + 0.4 * random.normal(size=(n, b)) - 7


def brute_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return CKA from the matrices of images by images, as Song et al. 2012 write HSIC₁."""

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        n, one = len(x), np.ones(len(x))
        k, other = x @ x.T, y @ y.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(other, 0)
        sums = (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ other) + sums - 2 / (n - 2) * (one @ k @ other @ one)) / (n * (n - 3))

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def brute_overlap(x: np.ndarray, y: np.ndarray) -> float:
    near, also = (NearestNeighbors(n_neighbors=K).fit(z).kneighbors(return_distance=False) for z in (x, y))
    return float(np.mean([len(set(p) & set(q)) / K for p, q in zip(near, also, strict=True)]))


@pytest.mark.parametrize(("measure", "brute"), [(cka, brute_cka), (overlap, brute_overlap)])
def test_values_and_their_jackknife_are_those_of_brute_force(measure: Callable, brute: Callable):
    x, y = related(np.random.default_rng(1), 60)
    found = measure(prepared(x, K), prepared(y, K))
    without = np.array([brute(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(60)])
    error = np.sqrt(59 / 60 * np.square(without - without.mean()).sum())
    assert found.value == pytest.approx(brute(x, y))
    assert found.high - found.value == pytest.approx(1.96 * error)


def test_procrustes_distance_is_that_of_scipy():
    x, y = related(np.random.default_rng(2), 50)
    found = procrustes(prepared(x, K), prepared(y, K))
    filled = np.pad(y, ((0, 0), (0, x.shape[1] - y.shape[1])))
    # scipy also scales one cloud: it returns 1 − s² for the nuclear norm s.
    assert 1 - (1 - found.value**2 / 2) ** 2 == pytest.approx(disparity(x, filled)[2])
    assert found.low < found.value < found.high


def test_rotated_scaled_and_shifted_features_are_equal():
    x, _ = related(np.random.default_rng(3), 80)
    moved = 1e3 * x @ ortho_group.rvs(x.shape[1], random_state=0) - 40
    a, b = prepared(x, K), prepared(moved, K)
    assert cka(a, b).value == pytest.approx(1)
    assert procrustes(a, b).value == pytest.approx(0, abs=1e-6)
    assert overlap(a, b) == Estimate(1, 1, 1)


def test_independent_features_have_no_cka_though_there_are_more_of_them_than_images():
    random = np.random.default_rng(4)
    found = []
    for _ in range(60):
        a, b = (prepared(random.normal(size=(50, 200)), K) for _ in "ab")
        found.append(cka(a, b).value)
        # Such clouds rotate into each other all the same, which shuffled images show.
        chance = procrustes(a, b.reordered(np.arange(50)[::-1])).value
        assert procrustes(a, b).value == pytest.approx(chance, abs=0.05)
        assert procrustes(a, b).value < 0.75
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(60)


def test_intervals_have_the_width_that_values_vary_by():
    random = np.random.default_rng(5)
    drawn: dict[Callable, list[Estimate]] = {measure: [] for measure in MEASURES}
    for _ in range(120):
        x, y = related(random, 150)
        a, b = prepared(x, K), prepared(y, K)
        for measure, values in drawn.items():
            values.append(measure(a, b))
    for measure, widest in ((cka, 1.3), (procrustes, 1.3), (overlap, 2.0)):
        value, low, high = np.array(drawn[measure]).T
        ratio = np.mean(high - low) / (2 * 1.96 * value.std())
        assert 0.75 < ratio < widest, measure.__name__


def test_images_of_one_group_count_once():
    """Two copies of every image say no more than one of each."""
    x, y = related(np.random.default_rng(6), 100)
    twice = np.repeat(np.arange(100), 2)
    noise = 1e-6 * np.random.default_rng(7).normal(size=(200, 6))
    a, b = prepared(x[twice] + noise, K), prepared(y[twice] + noise[:, :4], K)
    single = procrustes(prepared(x, K), prepared(y, K))
    grouped = procrustes(a, b, groups=twice.astype(np.uint64) + 1)
    ungrouped = procrustes(a, b)
    width = single.high - single.low
    assert grouped.high - grouped.low == pytest.approx(width, rel=0.02)
    assert ungrouped.high - ungrouped.low == pytest.approx(width / np.sqrt(2), rel=0.02)


def test_shuffled_images_have_neighbours_in_common_by_chance():
    x, _ = related(np.random.default_rng(8), 200)
    cloud = prepared(x, K)
    order = np.random.default_rng(9).permutation(200)
    again = prepared(x[order], K)
    shuffled = cloud.reordered(order)
    assert np.array_equal(shuffled.neighbours, again.neighbours)
    assert overlap(cloud, shuffled).value == pytest.approx(K / 199, abs=0.02)
    assert isinstance(shuffled, Cloud)


def test_a_collapsed_layer_is_refused():
    with pytest.raises(UserError, match="the embedding has collapsed"):
        prepared(np.ones((60, 3)), K)
