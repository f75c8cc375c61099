"""Angles on the flat torus: uniformity by Weyl's criterion, and prediction along the circles."""

import math

import pytest
import torch

from isotorus.errors import UserError
from pretrain.objectives.toroidal import (
    angles_from_pairs,
    chance_agreement,
    errors_and_uniformity,
    toroidal_lejepa,
    torus_prediction,
    torus_uniformity,
)
from pretrain.objectives.torus_frequencies import all_frequencies, balanced_s, sample_frequencies


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * math.pi * torch.rand(*shape, dtype=torch.float64, generator=generator) - math.pi


def spectra(m: int):
    if m <= 3:
        return all_frequencies(m, 3, balanced_s(m))
    return sample_frequencies(m, 512, balanced_s(m), seed=0, step=0)


@pytest.mark.parametrize("m", [1, 2, 16])
def test_uniform_angles_reach_the_null(m):
    frequencies, weights = spectra(m)
    statistic = torch.stack(
        [torus_uniformity(uniform(64, m, seed=i), frequencies, weights) for i in range(500)]
    )
    assert abs(statistic.mean() - weights.sum()) < 4 * statistic.std() / math.sqrt(500)


def test_what_is_not_uniform_is_far_above_the_null():
    frequencies, weights = spectra(2)
    null = weights.sum()
    free = uniform(2048, 2)
    correlated = free.clone()
    correlated[:, 1] = free[:, 0] + 0.5 * free[:, 1]
    point = torch.full((2048, 2), 0.3)
    assert torus_uniformity(free, frequencies, weights) < 2 * null
    assert torus_uniformity(correlated, frequencies, weights) > 20 * null
    assert torus_uniformity(free[:, :1].expand(-1, 2), frequencies, weights) > 50 * null
    torch.testing.assert_close(torus_uniformity(point, frequencies, weights), 2048 * null)


def test_sampled_frequencies_find_one_correlated_pair_of_sixteen_angles():
    """Not in every step, as each sees only some of the pairs, but over the steps."""
    free = uniform(2048, 16)
    correlated = free.clone()
    correlated[:, 1] = free[:, 0]

    def over_steps(angles):
        draws = [sample_frequencies(16, 256, balanced_s(16), 0, step) for step in range(40)]
        return torch.stack([torus_uniformity(angles, *draw) / draw[1].sum() for draw in draws]).mean()

    assert over_steps(free) < 1.2
    assert over_steps(correlated) > 2.5
    assert over_steps(free[:, :1].expand(-1, 16)) > 100


def test_the_circle_of_each_pair_is_not_enough():
    """Uniform marginals with θ₂ = θ₁ are caught by joint frequencies, which the axes alone do not have."""
    circle = uniform(2048, 1).expand(-1, 2)
    frequencies, weights = all_frequencies(2, 3, 1.0)
    axes = (frequencies == 0).any(1)
    assert torus_uniformity(circle, frequencies[axes], weights[axes]) < 2 * weights[axes].sum()
    assert torus_uniformity(circle, frequencies, weights) > 50 * weights.sum()


def test_uniformity_equals_the_double_sum_over_all_frequencies():
    angles = uniform(7, 2)
    s = 0.8
    expected = 0.0
    for a in range(-4, 5):
        for b in range(-4, 5):
            if (a, b) != (0, 0):
                coefficient = torch.exp(1j * (a * angles[:, 0] + b * angles[:, 1])).mean()
                expected += 7 * math.exp(-s * (a * a + b * b)) * coefficient.abs() ** 2
    torch.testing.assert_close(
        torus_uniformity(angles, *all_frequencies(2, 4, s)), expected, rtol=1e-6, atol=0
    )


def test_frequencies_hold_one_of_each_pair_and_the_whole_weight():
    frequencies, weights = all_frequencies(3, 2, 0.7)
    rows = {tuple(row) for row in frequencies.tolist()}
    assert len(rows) == (5**3 - 1) // 2
    assert not any(tuple(-k for k in row) in rows for row in rows)
    line = sum(math.exp(-0.7 * k * k) for k in range(-2, 3))
    assert weights.sum().item() == pytest.approx(line**3 - 1, rel=1e-6)


@pytest.mark.parametrize(("m", "s"), [(1, 3.0), (2, 0.5), (3, 1.5)])
def test_sampled_frequencies_are_drawn_in_proportion_to_their_weight(m, s):
    frequencies, weights = all_frequencies(m, 5, s)
    drawn, drawn_weights = sample_frequencies(m, 200_000, s, seed=1, step=2)
    assert drawn_weights.sum().item() == pytest.approx(weights.sum().item(), rel=1e-5)
    rows, counts = drawn.unique(dim=0, return_counts=True)
    expected = {
        tuple(k): w / weights.sum().item()
        for k, w in zip(frequencies.tolist(), weights.tolist(), strict=True)
    }
    for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
        p = expected.get(tuple(row), 0.0)
        assert abs(count - 200_000 * p) <= 5 * math.sqrt(200_000 * p) + 3


def test_sampled_frequencies_depend_on_seed_and_step_alone():
    first, _ = sample_frequencies(16, 64, 3.0, seed=1, step=2)
    assert first.any(dim=1).all()
    assert torch.equal(sample_frequencies(16, 64, 3.0, seed=1, step=2)[0], first)
    for seed, step in ((1, 3), (2, 2)):
        assert not torch.equal(sample_frequencies(16, 64, 3.0, seed, step)[0], first)


def test_prediction_is_zero_at_agreement_and_half_the_square_nearby():
    angles = uniform(1, 5, 3)
    assert torus_prediction(angles.expand(4, -1, -1), 2) == pytest.approx(0, abs=1e-12)
    # Across the cut at π, and to second order Σ_i (Δθ_i)² / 2 about the circular mean of the global views.
    offset = torch.tensor([-0.01, 0.01, 0.03])[:, None, None]
    near = torch.full((3, 5, 2), math.pi, dtype=torch.float64) + offset
    wrapped = torch.atan2(near.sin(), near.cos())
    expected = 2 * (offset.double() ** 2 / 2).mean()
    torch.testing.assert_close(torus_prediction(wrapped, 2), expected, rtol=1e-3, atol=0)


def test_prediction_follows_the_circular_mean():
    angles = uniform(4, 6, 3)
    center = torch.atan2(angles[:2].sin().sum(0), angles[:2].cos().sum(0))
    expected = (1 - torch.cos(angles - center)).sum(-1).mean()
    torch.testing.assert_close(torus_prediction(angles, 2), expected)
    parts = toroidal_lejepa(angles, 2, 0.1, *spectra(3))
    uniformity = torch.stack([torus_uniformity(view, *spectra(3)) for view in angles]).mean()
    torch.testing.assert_close(parts["uniformity"], uniformity)
    torch.testing.assert_close(parts["loss"], 0.9 * expected + 0.1 * uniformity)


def test_gradients_pass_gradcheck():
    angles = uniform(3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: toroidal_lejepa(a, 2, 0.3, *spectra(2))["loss"], angles)
    pairs = torch.randn(
        4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    assert torch.autograd.gradcheck(angles_from_pairs, pairs)


def test_angles_close_the_circle():
    angles = uniform(50, 3)
    lengths = torch.rand(50, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    pairs = lengths * torch.stack([angles.cos(), angles.sin()], dim=-1)
    torch.testing.assert_close(angles_from_pairs(pairs), angles)
    assert angles_from_pairs(pairs.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("size", [0.0, 1e-30, -1e-7])
def test_pairs_without_direction_have_an_angle_and_no_gradient(size):
    pairs = torch.full((2, 3, 2), size, requires_grad=True)
    angles = angles_from_pairs(pairs)
    angles.sum().backward()
    assert angles.abs().max() == 0 and pairs.grad.abs().max() == 0


def test_angles_that_turn_with_the_known_turns_have_no_error():
    pose, turns = uniform(1, 40, 2), uniform(3, 40, 2, seed=1)
    orders = torch.tensor([1, 4], dtype=torch.float64)
    angles = pose + orders * turns
    exact, _ = errors_and_uniformity(angles, angles - orders * turns, 3, *spectra(2))
    wrong, _ = errors_and_uniformity(angles, angles - turns, 3, *spectra(2))
    assert exact.abs().max() < 1e-12
    assert wrong[0].abs() < 1e-12 and wrong[1] > 0.3


@pytest.mark.parametrize("views", [2, 3, 4])
def test_angles_that_ignore_the_turns_are_at_the_chance_level(views):
    """A constant head is what an equivariant objective cannot collapse to."""
    turns = uniform(views, 20_000, 1, seed=views)
    angles = torch.zeros_like(turns)
    (error,), _ = errors_and_uniformity(angles, angles - turns, views, *spectra(1))
    assert 1 - error == pytest.approx(chance_agreement(views), abs=0.01)


def test_chance_levels_are_those_of_random_walks():
    """The mean lengths of 3 and 4 unit steps are 1.5746 and 1.7991 (Borwein et al. 2010, arXiv:1103.2995)."""
    known = {1: 1, 2: 2 / math.pi, 3: 1.574597 / 3, 4: 1.799092 / 4}
    assert {v: chance_agreement(v) for v in known} == pytest.approx(known, abs=3e-6)


def test_views_that_cancel_have_a_value_and_no_gradient():
    angles = torch.tensor([0.0, math.pi], dtype=torch.float64).view(2, 1, 1).requires_grad_()
    loss = torus_prediction(angles, 2)
    loss.backward()
    assert loss == 1 and angles.grad.abs().max() == 0


def test_nan_is_not_hidden():
    assert angles_from_pairs(torch.tensor([[math.nan, 1.0]])).isnan().all()
    assert torus_prediction(torch.full((2, 3, 1), math.nan), 1).isnan()


def test_bad_input_is_refused():
    angles = uniform(5, 2)
    with pytest.raises(ValueError, match="all zeros"):
        torus_uniformity(angles, torch.tensor([[1, 0], [0, 0]]), torch.ones(2))
    with pytest.raises(ValueError, match="integers"):
        torus_uniformity(angles, torch.ones(1, 2), torch.ones(1))
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        torus_uniformity(angles, torch.ones(1, 3, dtype=torch.int64), torch.ones(1))
    with pytest.raises(ValueError, match="pairs"):
        angles_from_pairs(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="at least one sample"):
        torus_uniformity(uniform(0, 2), *spectra(2))
    with pytest.raises(UserError, match="n_global"):
        torus_prediction(uniform(2, 5, 2), 3)
    with pytest.raises(UserError, match="sample some"):
        all_frequencies(16, 3, 1.0)
    for refused in (lambda: all_frequencies(2, 3, 0.0), lambda: sample_frequencies(0, 5, 1.0, 0, 0)):
        with pytest.raises(UserError):
            refused()
