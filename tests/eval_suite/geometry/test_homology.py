"""Barcodes agree with those of ripser alone, Betti numbers with known spaces; bad input is refused."""

import re

import numpy as np
import pytest
from ripser import ripser

from eval_suite.geometry import homology, known_spaces, landmarks
from eval_suite.geometry.edge_collapse import collapse
from isotorus.errors import UserError


def visible(bars: np.ndarray) -> np.ndarray:
    """Bars in a canonical order, without those of length zero."""
    bars = bars[bars[:, 1] > bars[:, 0]]
    return bars[np.lexsort(bars.T)]


@pytest.mark.parametrize("coeff", [2, 3])
@pytest.mark.parametrize("threshold", [None, 1.2])
@pytest.mark.parametrize("name", ["flat torus", "Klein bottle", "clusters"])
def test_barcodes_are_those_of_ripser(name, threshold, coeff):
    x = known_spaces.sample(name, 80, noise=0.05, seed=4)
    ours = homology.barcodes(x, coeff=coeff, threshold=threshold)
    theirs = ripser(x, maxdim=2, coeff=coeff, thresh=threshold or np.inf)["dgms"]
    for dimension in range(3):
        assert visible(ours[dimension]) == pytest.approx(visible(theirs[dimension]), abs=1e-6)
    assert len(ours) == 3 and len(visible(theirs[1])) > 3


def test_barcodes_of_points_that_coincide_and_of_a_grid_with_equal_distances():
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=2).reshape(-1, 2)
    x = np.concatenate([grid, grid[:7]])
    for ours, theirs in zip(homology.barcodes(x), ripser(x, maxdim=2)["dgms"], strict=True):
        assert visible(ours) == pytest.approx(visible(theirs))


def test_collapse_leaves_few_edges_of_a_blob():
    x = np.random.default_rng(0).normal(size=(150, 3))
    distances = np.linalg.norm(x[:, None] - x, axis=2)
    assert collapse(distances, distances.max()).nnz < 0.1 * 150 * 149 / 2


@pytest.mark.parametrize(
    ("name", "over_2", "over_3"),
    [
        ("circle", [1, 1, 0], [1, 1, 0]),
        ("sphere", [1, 0, 1], [1, 0, 1]),
        ("flat torus", [1, 2, 1], [1, 2, 1]),
        ("S¹∨S¹∨S²", [1, 2, 1], [1, 2, 1]),
        # Its first homology has a part of order 2, which Z/3 does not see.
        ("Klein bottle", [1, 2, 1], [1, 1, 0]),
        ("two tori", [2, 4, 2], [2, 4, 2]),
        ("clusters", [10, 0, 0], [10, 0, 0]),
    ],
)
def test_betti_numbers_of_known_spaces(name, over_2, over_3):
    found = homology.betti(known_spaces.sample(name, 1200, 16, 0.05, seed=1), count=120)
    assert found.betti == {2: over_2, 3: over_3}


@pytest.mark.parametrize("count", [None, pytest.param(500, marks=pytest.mark.nightly)])
def test_gaps_between_samples_are_no_holes(count):
    """With 500 landmarks such tori had up to six loops, and such circles up to eleven components."""
    for name, numbers in (("flat torus", [1, 2]), ("circle", [1, 1])):
        for samples in (500, 2000):
            x = known_spaces.sample(name, samples, 4, seed=21)
            assert homology.betti(x, 1, count=count, fields=(2,)).agreed == numbers


def test_landmarks_follow_from_the_number_of_samples():
    assert [landmarks.default_count(n) for n in (60, 300, 1500, 2000, 5000)] == [60, 100, 150, 200, 300]
    found = homology.betti(known_spaces.sample("circle", 1200, noise=0.05), 1)
    assert (found.samples, found.landmarks) == (1200, 120)


def test_gap_radius_is_that_of_uniform_points():
    # In a square of area 1, a disc that holds log n of n uniform points on average has this radius.
    x = np.random.default_rng(0).uniform(size=(4000, 2))
    expected = np.sqrt(np.log(4000) / (4000 * np.pi))
    assert landmarks.gap_radius(x) == pytest.approx(expected, rel=0.05)


def test_a_perfect_grid_on_the_torus_has_no_thousand_holes():
    angle = 2 * np.pi * np.arange(32) / 32
    u, v = (a.ravel() for a in np.meshgrid(angle, angle))
    x = np.stack([np.cos(u), np.sin(u), np.cos(v), np.sin(v)], axis=1)
    found = homology.betti(x, count=120)
    assert found.agreed == [1, 2, 1]
    assert found.p_values[2][1][1] == pytest.approx(1 / 21)
    loops = found.bars[2][1]
    # Ties between neighbours leave gaps in the denoised grid; their bars close early.
    assert loops[2, 1] < found.resolution < loops[1, 1]


def test_a_gaussian_has_a_significant_hole_as_often_as_the_level_says():
    p = [
        homology.betti(
            np.random.default_rng(seed).normal(size=(200, 4)), 1, count=40, fields=(2,), draws=19, seed=seed
        ).p_values[2][1][0]
        for seed in range(40)
    ]
    # Uniform p-values: 2 of 40 are expected at the level, and over 7 happen once in 3,000 times.
    assert sum(value <= 0.05 for value in p) <= 7
    assert 0.3 < np.mean(p) < 0.7


def test_a_hole_that_outlives_the_threshold_counts():
    found = homology.betti(known_spaces.sample("circle", 300, noise=0.05), 1, count=60, threshold=1.0)
    assert found.agreed == [1, 1]
    assert np.isinf(found.bars[2][1][0, 1])
    assert found.to_json()["bars"]["2"][1][0][1] is None


def test_result_depends_on_the_seed_and_not_on_the_processes():
    x = known_spaces.sample("sphere", 300, noise=0.1)
    one = homology.betti(x, 1, count=40, seed=3)
    assert one.null_longest == homology.betti(x, 1, count=40, seed=3, jobs=2).null_longest
    assert one.null_longest != homology.betti(x, 1, count=40, seed=4).null_longest


def test_memory_is_refused_beforehand_with_a_threshold_that_fits():
    x = known_spaces.sample("flat torus", 150)
    with pytest.raises(UserError, match=r"would take about .* more than the .* allowed") as refused:
        homology.barcodes(x, memory=2**22)
    fits = float(re.search(r"threshold=([\d.]+)", str(refused.value))[1])
    assert len(homology.barcodes(x, threshold=fits, memory=2**22)) == 3
    assert fits > 1


def test_copies_constant_features_and_fewer_points_than_landmarks_change_nothing():
    x = known_spaces.sample("circle", 90, noise=0.03)
    padded = np.concatenate([np.tile(x, (4, 1)), np.full((360, 1), 7.0)], axis=1)
    found = homology.betti(padded, 1, count=500)
    assert found.samples == 90 >= found.landmarks
    assert found.agreed == [1, 1]


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.full((50, 4), 2.0), "collapsed"),
        (np.array([[1.0, np.nan], [0, 1], [2, 3]]), "1 of 3 samples have NaN"),
        (np.zeros(9), r"shape \(9,\)"),
    ],
)
def test_what_has_no_shape_is_refused(x, said):
    with pytest.raises(UserError, match=said):
        homology.betti(x)


def test_too_few_draws_for_the_level_are_refused():
    with pytest.raises(UserError, match="take 99 or more"):
        homology.betti(known_spaces.sample("circle", 50), draws=20, alpha=0.01)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_dim": 3}, "dimensions 0, 1 and 2"),
        ({"fields": (2, 4)}, "Z/4, which is no field"),
        ({"count": 1}, "1 landmarks have no shape"),
        ({"threshold": 1e-6}, "joins none of"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        homology.betti(known_spaces.sample("circle", 60, noise=0.1), **{"count": 50, "max_dim": 1} | settings)


def test_three_points_are_one_component():
    assert homology.betti(np.array([[0.0, 0], [1, 0], [0, 2]])).agreed == [1, 0, 0]


def test_farthest_points_cover_before_they_repeat():
    x = np.array([[0.0], [1.0], [10.0], [10.0], [5.5]])
    assert x[landmarks.farthest_points(x, 5)].ravel().tolist() in ([0, 10, 5.5, 1], [10, 0, 5.5, 1])
