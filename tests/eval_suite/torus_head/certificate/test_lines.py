"""The lines of a certificate on angles that are written down: counts, errors, uniformity, and intervals."""

import numpy as np
import pytest

from eval_suite.torus_head.certificate import (
    angle_clouds,
    equivariance,
    intervals,
    orbits,
    uniformity,
    windings,
)
from eval_suite.torus_head.certificate.measure import How, samples_of

ORDERS = (1, 1)


def paths(*matrices: list[list[int]], samples: int = 24) -> np.ndarray:
    """Paths (n, actions, samples, angles) of images with these winding matrices, angles by actions."""
    along = 2 * np.pi * np.arange(samples) / samples
    start = np.random.default_rng(0).uniform(0, 2 * np.pi, (len(matrices), 1, 1, len(matrices[0])))
    turns = np.array(matrices).transpose(0, 2, 1)[:, :, None, :]
    return (start + along[:, None] * turns + np.pi) % (2 * np.pi) - np.pi


def test_winding_matrices_are_counted_and_compared_with_the_orders():
    right, swapped, sheared = [[1, 0], [0, 1]], [[0, 1], [1, 0]], [[1, 1], [0, 1]]
    twice, ignored = [[2, 0], [0, 1]], [[0, 0], [0, 1]]
    every = [right] * 5 + [swapped, sheared, twice, ignored, ignored]
    changed = np.arange(10) < 6
    found = windings.summary(paths(*every), ["rotation", "hue"], ORDERS, changed, 0)
    assert windings.count(paths(*every)).matrix.tolist() == every
    assert found["right_share"] == 0.5 and found["det_share"] == 0.7 and found["images"] == 10
    assert found["right_share_interval"] == pytest.approx([0.1871, 0.8129], abs=1e-4)
    assert found["commonest"] == right and found["commonest_share"] == 0.5
    # Columns: rotation is right for sheared heads too, hue for those that turn twice or ignore rotation.
    assert found["of_each_action"]["rotation"]["right_share"] == 0.6
    assert found["of_each_action"]["hue"]["right_share"] == 0.8
    assert found["visible"]["images"] == 6 and found["visible"]["right_share"] == pytest.approx(5 / 6)
    assert found["margin"] == pytest.approx(np.pi - np.pi / 12)
    assert found["margin_least"] == pytest.approx(np.pi - np.pi / 6)
    assert found["same_at_half"] == 1


def test_orders_and_angles_without_an_action_count():
    matrices = [[[3], [0]], [[3], [1]], [[1], [0]], [[-3], [0]]]
    found = windings.summary(paths(*matrices), ["rotation"], (3,), np.ones(4, bool), 0)
    assert found["target"] == [[3], [0]]
    assert found["right_share"] == 0.25  # a second angle that winds is wrong, and so is another direction
    assert found["det_share"] == 0.75
    assert samples_of((1, 2), How()) == 36 and samples_of((1, 6), How()) == 72


def test_an_angle_that_follows_has_the_error_of_its_noise_and_one_that_does_not_has_that_of_chance():
    random = np.random.default_rng(1)
    own = random.uniform(0, 2 * np.pi, (20_000, 2))
    turns = random.uniform(0, 2 * np.pi, (2, 20_000, 2))
    noise = np.deg2rad(4) * random.standard_normal((2, 20_000, 2))
    first, second = (own + turns[i] * [2, 0] + noise[i] for i in (0, 1))
    missed = equivariance.errors(first, second, (turns[0], turns[1]), (2, 1))
    found = equivariance.summary(missed, ["rotation", "hue"], 0)
    # The difference of two errors has √2 times their deviation; quantiles of |N(0, 1)| are .6745 and 1.645.
    assert found["rotation"]["median"] == pytest.approx(0.6745 * 4 * 2**0.5, rel=0.03)
    assert found["rotation"]["p90"] == pytest.approx(1.645 * 4 * 2**0.5, rel=0.03)
    assert found["hue"]["median"] == pytest.approx(90, abs=2)
    assert found["hue"]["p90"] == pytest.approx(162, abs=2)
    low, high = found["rotation"]["median_interval"]
    assert low < found["rotation"]["median"] < high < 1.1 * low


def test_uniformity_is_one_for_uniform_angles_and_n_for_equal_ones():
    random = np.random.default_rng(2)
    for k, draws in ((1, 40), (2, 40), (5, 6)):
        values = [
            uniformity.summary("u", random.uniform(0, 2 * np.pi, (400, k)), seed)["u"]
            for seed in range(draws)
        ]
        assert np.mean(values) == pytest.approx(1, abs=0.25)
        equal = uniformity.summary("u", np.full((400, k), 0.3), 0)
        assert equal["u"] == pytest.approx(400, rel=1e-5)
        assert equal["u_null"][0] < 1 < equal["u_null"][1] < 6
    inside = [
        low <= found["u"] <= high
        for seed in range(100)
        for found in [uniformity.summary("u", random.uniform(0, 2 * np.pi, (300, 2)), seed)]
        for low, high in [found["u_null"]]
    ]
    assert 88 <= sum(inside) <= 100  # 95 on average


def test_intervals_are_those_of_tables():
    assert intervals.share("s", np.ones(10, bool))["s_interval"] == pytest.approx([0.6915, 1], abs=1e-4)
    assert intervals.share("s", np.zeros(0, bool)) == {"s": None, "s_interval": None}
    values = np.random.default_rng(3).standard_normal(2_000)
    found = intervals.quantiles(["middle"], values, [0.5], 0)
    low, high = found["middle_interval"]
    # The median of n normal values has the deviation √(π / 2n).
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(np.pi / 4_000), rel=0.2)


def test_one_angle_is_a_circle_and_three_are_judged_by_pairs():
    assert angle_clouds.groups(1) == [(0,)]
    assert angle_clouds.groups(3) == [(0, 1), (0, 2), (1, 2)]
    random = np.random.default_rng(4)
    angles = random.uniform(0, 2 * np.pi, (1_000, 1))
    found = angle_clouds.summary(angles, 1_000, 1, 0)
    assert found["verdict"] == "circle" and found["as_wanted"]
    assert found["error_rate"]["draws"] > 0
    still = angle_clouds.summary(np.full((1_000, 1), 0.3), 1_000, 1, 0)
    assert not still["as_wanted"] and still["verdict"] == "not judged" and still["clouds"][0]["reason"]
    # An orbit turns by the actions of one pair, and images take the pairs in turn.
    for image, pair in enumerate(angle_clouds.groups(3) * 2):
        turns = orbits.turns(50, 3, 0, image)
        assert [place for place in range(3) if turns[:, place].any()] == list(pair)
    assert not np.array_equal(orbits.turns(50, 2, 0, 0), orbits.turns(50, 2, 0, 1))
