"""The ratio of a torus's circles comes back from its spectrum, and shortening makes both circles alike."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from eval_suite.geometry import criteria, graph, known_spaces, landmarks
from eval_suite.geometry.flat_torus import fitted, shortened


def closed_form(ratio: float, skew: float = 0.0, count: int = 16) -> list[float]:
    """Return the smallest values of a² + skew·a·b + ratio²·b² for integers a and b, without 0."""
    steps = range(-12, 13)
    values = sorted(a * a + skew * a * b + (ratio * b) ** 2 for a in steps for b in steps)
    return values[1 : count + 1]


def spectrum(name: str, samples: int, noise: float, seed: int) -> tuple[np.ndarray, int]:
    x = landmarks.reduce(known_spaces.sample(name, samples, 64, noise, seed=(77, seed)))
    found = graph.laplacian_spectrum(graph.knn_graph(x, 15), 16)
    return found.eigenvalues, found.components


@pytest.mark.parametrize("ratio", [1.0, 1.2, 1.5, 2.0, 2.37, 3.0, 3.5])
@pytest.mark.parametrize("count", [10, 16])
def test_closed_form_eigenvalues_give_back_their_ratio(ratio, count):
    fit = fitted.rectangle(0.0123 * np.array(closed_form(ratio, count=count)))
    assert fit.ratio == pytest.approx(ratio, abs=1e-6)
    assert fit.scale == pytest.approx(0.0123, rel=1e-6)
    assert fit.error < 1e-6 and fit.angle == 90
    assert fit.eigenvalues == pytest.approx(0.0123 * np.array(closed_form(ratio, count=count)), rel=1e-5)


def test_a_hexagonal_lattice_is_told_from_a_rectangle():
    values = closed_form(1.0, 1.0)
    fit = fitted.lattice(values)
    assert (fit.ratio, fit.skew) == pytest.approx((1, 1), abs=1e-6) and fit.angle == pytest.approx(60)
    assert fitted.rectangle(values).error > 3 * criteria.FIT_ERROR
    assert fitted.lattice(closed_form(1.7)).skew == 0


def test_too_few_eigenvalues_are_refused():
    with pytest.raises(ValueError, match="4 eigenvalues or more"):
        fitted.rectangle([1.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("flat torus", 1.0), ("flat torus 3:2", 1.5), ("flat torus 2:1", 2.0), ("flat torus 3:1", 3.0)],
)
def test_the_ratio_of_a_noisy_sample_is_right_within_a_tenth(name, ratio):
    for samples, noise, seed in ((1_000, 0.1, 1), (2_000, 0.15, 2)):
        values, components = spectrum(name, samples, noise, seed)
        fit = fitted.rectangle(values, samples)
        assert components == 1 and fit.error <= criteria.FIT_ERROR
        assert fit.ratio == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize(
    "name", ["donut", "hexagonal torus", "Klein bottle", "sphere", "cylinder", "Möbius strip", "S¹∨S¹∨S²"]
)
def test_the_spectra_of_other_surfaces_do_not_fit(name):
    values, _ = spectrum(name, 2_000, 0.05, 3)
    assert fitted.rectangle(values, 2_000).error > criteria.FIT_ERROR


def test_the_splitting_of_a_band_is_that_of_samples():
    # The four first eigenvalues of a square torus are equal. Those of ten samples are split on average as
    # `expected` says.
    split = []
    for seed in range(10):
        values, _ = spectrum("flat torus", 1_000, 0.05, 10 + seed)
        split.append(np.log(values[3] / values[0]))
    predicted = fitted.expected(1.0, samples=1_000)
    assert np.mean(split) == pytest.approx(predicted[3] - predicted[0], rel=0.3)


def test_shortening_makes_a_square_torus_of_an_oblong_one():
    random = np.random.default_rng(5)
    angles = random.uniform(0, 2 * np.pi, (1_000, 2))
    square = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    frame, _ = np.linalg.qr(random.normal(size=(16, 4)))
    x = landmarks.reduce((square * [3, 1, 3, 1]) @ frame.T + 0.02 * random.normal(size=(1_000, 16)))
    short = shortened.shortened(x, graph.knn_graph(x, 15), 3.0)
    assert len(short) == 1_000 and short.mean(axis=0) == pytest.approx(0, abs=1e-9)
    assert short.std(axis=0)[:4] == pytest.approx(np.full(4, np.sqrt(0.5)), rel=0.05)
    assert np.corrcoef(pdist(short), pdist(square))[0, 1] > 0.98
    assert np.corrcoef(pdist(x), pdist(square))[0, 1] < 0.9
