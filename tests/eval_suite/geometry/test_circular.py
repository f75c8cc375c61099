"""Circular coordinates recover angles, and distinguish a torus from circles that touch in a point."""

import numpy as np
import pytest

from eval_suite.geometry import circular, known_spaces, landmarks


def test_angle_of_a_noisy_circle_is_recovered_up_to_sign_and_turn():
    theta = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    rng = np.random.default_rng(0)
    x = np.stack([np.cos(theta), np.sin(theta)], axis=1) + 0.03 * rng.normal(size=(90, 2))
    found = circular.circular_coordinates(x, 1)
    assert found.angles.shape == (90, 1) and found.bars[0, 1] == pytest.approx(np.sqrt(3), abs=0.15)

    def error(sign: int) -> float:
        turned = np.exp(1j * (found.angles[:, 0] - sign * theta))
        return float(np.abs(np.angle(turned / turned.mean())).max())

    assert min(error(1), error(-1)) < 0.2


def test_two_angles_fill_the_square_on_a_torus_and_a_cross_on_a_wedge():
    coverage = {}
    for name in ("flat torus", "S¹∨S¹∨S²"):
        cloud = landmarks.cloud(landmarks.reduce(known_spaces.sample(name, 1500, 16, 0.05, seed=2)), 250)
        found = circular.circular_coordinates(cloud.denoised[cloud.landmarks])
        coverage[name] = circular.joint_coverage(found.angles)
    assert coverage["flat torus"] > 0.95 and coverage["S¹∨S¹∨S²"] < 0.5


def test_points_without_a_loop_get_no_angle():
    found = circular.circular_coordinates(np.arange(10.0)[:, None])
    assert found.angles.shape == (10, 0) and found.bars.shape == (0, 2)
    with pytest.raises(ValueError, match="two angles"):
        circular.joint_coverage(found.angles)
