"""Normality, uniformity, alignment, hubness and collisions agree with closed forms and simulation."""

import json
import math

import numpy as np
import pytest
import torch

from eval_suite.geometry import normality, uniformity
from isotorus.errors import UserError
from pretrain.objectives import sigreg


def normal(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size)


def test_epps_pulley_is_the_training_objectives_and_its_own_integral():
    x = normal(400, 6) * np.array([1, 0.5, 2, 1, 1, 0.1]) + np.array([0, 0, 0, 1, 0, 0])
    t = np.linspace(-3, 3, 33)
    empirical = np.exp(1j * t[:, None, None] * x).mean(axis=1)
    target, density = np.exp(-(t**2) / 2)[:, None], np.exp(-(t**2) / 2)
    integral = len(x) * np.trapezoid(np.abs(empirical - target) ** 2 * density[:, None], t, axis=0)
    np.testing.assert_allclose(normality.epps_pulley(x), integral, rtol=1e-9)
    np.testing.assert_allclose(sigreg.epps_pulley(torch.from_numpy(x)).numpy(), integral, rtol=1e-9)
    assert sigreg.null_mean() == pytest.approx(np.trapezoid((1 - np.exp(-(t**2))) * density, t), rel=1e-9)


def test_sigreg_is_one_for_the_target_and_more_for_anything_else():
    x = normal(3000, 16)
    assert normality.sigreg(x) == pytest.approx(1, abs=0.15)
    assert normality.sigreg(2 * x) > 10 and normality.sigreg(x + 1) > 10 and normality.sigreg(0 * x) > 10


def test_summary_separates_scale_isotropy_and_shape():
    gaussian = normality.summary(3 * normal(2000, 8) + 5)
    assert gaussian["sigreg"] > 5
    assert gaussian["isotropy"] == pytest.approx(1, abs=0.3) == gaussian["shape"]
    assert gaussian["p_value"] > 0.01
    stretched = normality.summary(normal(2000, 8) * np.array([5, 1, 1, 1, 1, 1, 1, 1]))
    assert stretched["isotropy"] > 5 and stretched["shape"] < 1.4 and stretched["p_value"] > 0.01
    signs = normality.summary(np.sign(normal(2000, 8)))
    assert signs["shape"] > 2 and signs["p_value"] < 1e-3
    assert json.loads(json.dumps(signs, allow_nan=False)) == signs


def test_normality_of_a_collapsed_embedding_has_no_shape():
    found = normality.summary(np.full((50, 4), 0.1))
    assert found["sigreg"] > 5 and found["shape"] is None and found["p_value"] is None


@pytest.mark.parametrize("d", [1, 3, 8])
def test_henze_zirkler_holds_its_level_and_is_affine_invariant(d):
    mixing = normal(d, d, seed=5)
    p = []
    for seed in range(200):
        x = normal(150, d, seed=seed)
        found = normality.henze_zirkler(x)
        assert found.statistic == pytest.approx(normality.henze_zirkler(x @ mixing + 7).statistic, rel=1e-6)
        p.append(found.p_value)
    assert 0.01 < (np.array(p) < 0.05).mean() < 0.1
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)


def test_henze_zirkler_of_two_points_by_hand():
    # n = 2, d = 1: whitened to ±1, β = (3/2)^{1/5}/√2
    b = 1.5**0.4 / 2
    expected = (
        (2 + 2 * math.exp(-2 * b)) / 2
        - 2 * 2 * (1 + b) ** -0.5 * math.exp(-b / (2 * (1 + b)))
        + 2 * (1 + 2 * b) ** -0.5
    )
    assert normality.henze_zirkler(np.array([[3.0], [8.0]])).statistic == pytest.approx(expected)
    assert normality.henze_zirkler(np.ones((5, 2))).statistic == 20


def test_uniformity_of_poles_collapse_and_a_wide_sphere():
    assert uniformity.uniformity(np.ones((50, 4))) == pytest.approx(0)
    poles = np.array([[1.0, 0], [-5.0, 0]])
    assert uniformity.uniformity(poles) == pytest.approx(-8)
    assert uniformity.uniformity(normal(1000, 500)) == pytest.approx(-4, abs=0.05)


def test_alignment_by_hand_and_over_all_pairs():
    views = np.array([[[1.0, 0], [0, 2.0]], [[3.0, 0], [1.0, 0]]])
    assert uniformity.alignment(views) == pytest.approx((2 + 0) / 2)
    x = normal(20, 4, 7)
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    pairs = [((unit[:, i] - unit[:, j]) ** 2).sum(1).mean() for i in range(4) for j in range(i)]
    assert uniformity.alignment(x) == pytest.approx(np.mean(pairs))
    with pytest.raises(ValueError, match="two or more views"):
        uniformity.alignment(x[:, :1])


def test_hubs_grow_with_dimension_and_a_circle_has_none():
    angle = 2 * np.pi * np.arange(100) / 100
    circle = uniformity.hubness(np.stack([np.cos(angle), np.sin(angle)], axis=1), 2)
    assert circle.skewness == 0 and circle.largest == 2 and circle.never == 0
    low, high = uniformity.hubness(normal(1500, 3)), uniformity.hubness(normal(1500, 100))
    assert low.skewness < 0.6 < 2 < high.skewness and high.never > low.never


def test_collisions_by_hand_and_by_chance():
    x = np.array([[0.0], [1.0], [10.0], [12.0]])
    assert uniformity.collisions(x, np.array([0, 0, 1, 1])) == 0
    # same-class 10 and 11, median 10.5; cross-class 1, 12, 9, 2
    assert uniformity.collisions(x, np.array([0, 1, 0, 1])) == pytest.approx(3 / 4)
    random = np.random.default_rng(0)
    assert uniformity.collisions(normal(800, 20), random.integers(5, size=800)) == pytest.approx(
        0.5, abs=0.02
    )
    labels = np.array([0, 1, 0, 1, -1])
    assert uniformity.collisions(np.append(x, [[5.0]], axis=0), labels) == pytest.approx(3 / 4)


@pytest.mark.parametrize("labels", [np.zeros(6, int), np.arange(6), np.full(6, -1)])
def test_collisions_need_two_classes_and_a_pair(labels):
    with pytest.raises(UserError, match="two classes or more"):
        uniformity.collisions(normal(6, 2), labels)


def test_summary_is_json():
    found = uniformity.summary(normal(300, 10).astype(np.float32))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    with pytest.raises(UserError, match="same features"):
        uniformity.summary(np.ones((30, 3)))
