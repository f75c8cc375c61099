"""Samples lie on the space of their name, in a random position and with the right amount of noise."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from eval_suite.geometry import known_spaces


def points(name: str, n: int = 4000) -> np.ndarray:
    return known_spaces.SPACES[name](n, np.random.default_rng(0))


def test_equations_of_the_closed_surfaces():
    torus = points("flat torus").reshape(-1, 2, 2)
    assert np.linalg.norm(torus, axis=2) == pytest.approx(np.ones((4000, 2)))
    assert np.linalg.norm(points("sphere"), axis=1) == pytest.approx(np.ones(4000))
    x, y, z = points("donut").T
    assert (np.hypot(x, y) - 1) ** 2 + z**2 == pytest.approx(np.full(4000, 0.25))


def test_donut_is_uniform_by_area():
    x, y, _ = points("donut", 20_000).T
    assert len(x) == 20_000
    # ∫ (1 + ½ cos v) dv over the outer half, |v| < π/2, is π + 1 of 2π.
    assert np.mean(np.hypot(x, y) > 1) == pytest.approx(0.5 + 0.5 / np.pi, abs=0.015)


def test_wedge_is_a_sphere_and_two_circles_that_share_one_point():
    x = points("S¹∨S¹∨S²")
    pole = np.array([0, 0, 1, 0, 0, 0, 0])
    on_sphere = np.abs(x[:, 3:]).max(axis=1) == 0
    assert np.linalg.norm(x[on_sphere, :3], axis=1) == pytest.approx(np.ones(on_sphere.sum()))
    for plane in (slice(3, 5), slice(5, 7)):
        on_circle = np.abs(x[:, plane]).max(axis=1) > 0
        assert on_circle.sum() == 1000 and not (on_circle & on_sphere).any()
        assert np.linalg.norm(x[on_circle, plane] - [1, 0], axis=1) == pytest.approx(np.ones(1000))
        assert np.delete(x[on_circle] - pole, [plane.start, plane.start + 1], axis=1) == pytest.approx(0)


def test_identified_angles_give_the_same_point_of_the_klein_bottle():
    u, v = np.random.default_rng(1).uniform(0, 2 * np.pi, (2, 50))

    class Angles:
        def __init__(self, u, v):
            self.values = u, v

        def uniform(self, *_):
            return self.values

    one, other = (known_spaces.klein_bottle(50, Angles(a, b)) for a, b in ((u, v), (u + np.pi, -v)))
    assert one == pytest.approx(other)


@pytest.mark.parametrize("name", known_spaces.SPACES)
def test_embedding_keeps_distances_and_a_seed_gives_the_same_sample(name):
    x = known_spaces.sample(name, 40, 100, seed=7)
    assert x.shape == (40, 100)
    assert x == pytest.approx(known_spaces.sample(name, 40, 100, seed=7))
    points = known_spaces.SPACES[name](40, np.random.default_rng(7))
    if name == "Gaussian":  # it fills every space
        points = np.random.default_rng(7).normal(size=(40, 100))
    assert pdist(x) == pytest.approx(pdist(points))


def test_noise_is_the_deviation_of_each_coordinate():
    clean, noisy = (known_spaces.sample("circle", 2000, 64, noise, seed=3) for noise in (0, 0.15))
    assert (noisy - clean).std() == pytest.approx(0.15, rel=0.02)
