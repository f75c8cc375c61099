"""Rank measures agree with closed forms."""

import numpy as np
import pytest

from eval_suite.geometry import rank


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def with_spectrum(eigenvalues: np.ndarray, n: int = 400) -> np.ndarray:
    """Data (n, d) whose centred covariance has exactly these eigenvalues, away from the origin."""
    d = len(eigenvalues)
    centred = normal(n, d) - normal(n, d).mean(axis=0)
    whitened, _ = np.linalg.qr(centred - centred.mean(axis=0))
    rotation, _ = np.linalg.qr(normal(d, d, seed=1))
    return (whitened * np.sqrt(eigenvalues * (n - 1))) @ rotation + 3.0


def test_spectrum_is_recovered_in_descending_order():
    eigenvalues = np.array([5.0, 2.0, 1.0, 0.1])
    assert rank.eigenspectrum(with_spectrum(eigenvalues)) == pytest.approx(eigenvalues)


def test_isotropic_data_uses_every_direction():
    x = with_spectrum(np.ones(12))
    assert rank.effective_rank(x) == pytest.approx(12)
    assert rank.participation_ratio(x) == pytest.approx(12)
    assert rank.rankme(x, centred=True) == pytest.approx(12, rel=1e-4)


def test_effective_rank_and_participation_of_a_known_spectrum():
    x = with_spectrum(np.array([0.5, 0.25, 0.25]))
    assert rank.effective_rank(x) == pytest.approx(2**1.5)
    assert rank.participation_ratio(x) == pytest.approx(1 / (0.25 + 2 * 0.0625))


def test_data_of_rank_three_in_forty_dimensions():
    x = normal(500, 3) @ normal(3, 40, seed=2)
    for measure in (rank.effective_rank, rank.participation_ratio, rank.rankme):
        assert 1 < measure(x) < 3.01


def test_rankme_reads_uncentred_singular_values():
    x = np.diag([3.0, 1.0])
    p = np.array([0.75, 0.25])
    assert rank.rankme(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
    far = with_spectrum(np.ones(10)) + 1000
    assert rank.rankme(far) < 1.5 < 9.9 < rank.rankme(far, centred=True)


def test_alpha_req_is_the_exponent_of_a_power_law():
    eigenvalues = np.arange(1, 81) ** -1.3
    assert rank.alpha_req(with_spectrum(eigenvalues)) == pytest.approx(1.3, rel=1e-6)
    assert np.isnan(rank.alpha_req(normal(100, 8)))


def test_collapsed_data_has_no_rank_and_no_warning():
    x = np.full((30, 6), 2.5)
    with np.errstate(all="raise"):
        assert rank.effective_rank(x) == rank.participation_ratio(x) == 0
        assert rank.summary(x)["effective_rank"] == 0


def test_lidar_counts_the_directions_that_separate_objects():
    objects = np.zeros((300, 16))
    objects[:, :5] = with_spectrum(np.ones(5), 300)
    views = objects[:, None] + 0.01 * normal(300, 8, 16)
    # The noise of eight averaged views is an eighth of the noise within an object: nearly nothing.
    assert rank.lidar(views) == pytest.approx(5, rel=0.02)
    shuffled = views.reshape(-1, 16)[np.random.default_rng(3).permutation(2400)].reshape(300, 8, 16)
    assert rank.lidar(shuffled) > 10


def test_lidar_of_a_single_view_is_refused():
    with pytest.raises(ValueError, match="two or more"):
        rank.lidar(normal(10, 1, 4))


@pytest.mark.parametrize(
    ("shape", "offset", "said"),
    [
        (np.ones(8), 0.0, None),
        (np.ones(8), 300.0, None),
        (np.ones(8), 3000.0, "differ by 3.3e-04 of their length"),
        (np.r_[1.0, np.full(7, 0.05)], 0.0, "nearly on a line: effective rank 1.1"),
        (np.r_[1.0, np.full(7, 0.3)], 0.0, None),
        (np.r_[1.0, 0.0, 0.0], 0.0, None),
        (np.zeros(8), 1.0, None),
    ],
)
def test_a_nearly_collapsed_cloud_is_named(shape: np.ndarray, offset: float, said: str | None):
    x = np.random.default_rng(0).standard_normal((4000, len(shape))) * shape + offset
    found = rank.nearly_collapsed(x, rank.summary(x))
    assert found is None if said is None else said in str(found)
    assert (rank.nearly_collapsed(1e6 * x, rank.summary(1e6 * x)) is None) == (said is None)
