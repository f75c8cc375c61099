"""Statements of docs/theorems.md about the objectives: SIGReg's bounds, entropy, sites of the torus grid."""

import math

import numpy as np
import pytest
import sympy
import torch
from sympy import Rational, cos, exp, integrate, log, oo, pi, sin, sqrt

from isotorus.errors import UserError
from pretrain.objectives.sigreg import SIGReg, epps_pulley
from pretrain.objectives.toroidal import covariance_energy

t, d = sympy.symbols("t d", real=True)
LARGEST_GRADIENT = 3 * sqrt(2 * pi / sympy.E)
LARGEST_CURVATURE = 4 * sqrt(2 * pi) * exp(Rational(-3, 2)) + sqrt(pi)
SMALLEST_CURVATURE = -2 * sqrt(2 * pi) - 2 * sqrt(pi) * exp(Rational(-3, 2))
WHOLE_LINE = {"t_max": 8.0, "knots": 201}
"""A grid on which the trapezoid rule is the integral over the whole line to 14 digits."""


def derivatives(x: torch.Tensor, **grid) -> tuple[torch.Tensor, float]:
    """Return the gradient of T by the samples `x` (N,), and the second derivative by the first sample."""
    x = x.clone().requires_grad_()
    statistic = epps_pulley(x[:, None], implementation="eager", **grid).squeeze()
    (gradient,) = torch.autograd.grad(statistic, x, create_graph=True)
    (second,) = torch.autograd.grad(gradient[0], x)
    return gradient.detach(), float(second[0])


def alone(place: float, others: float, count: int = 1000) -> torch.Tensor:
    """Return samples that all have one place but the first."""
    x = torch.full((count,), others, dtype=torch.float64)
    x[0] = place
    return x


def test_sigreg_gradient_is_bounded_by_4_56_and_reaches_it():
    """∂T/∂x = 2 ∫ t e^{-t²/2} [e^{-t²/2} sin tx + mean_{others} sin t(y - x)] dt: maximise both terms."""
    others = integrate(t * exp(-(t**2) / 2) * sin(t * d), (t, -oo, oo))
    own = integrate(t * exp(-(t**2)) * sin(t * d), (t, -oo, oo))
    # Each is d times a Gaussian: the largest values are at d = 1 and at d = √2.
    assert sympy.simplify(others - sqrt(2 * pi) * d * exp(-(d**2) / 2)) == 0
    assert sympy.simplify(own - sqrt(pi) / 2 * d * exp(-(d**2) / 4)) == 0
    assert sympy.simplify(2 * (others.subs(d, 1) + own.subs(d, sqrt(2))) - LARGEST_GRADIENT) == 0
    for of, place in ((others, 1), (own, sqrt(2))):
        assert sympy.simplify(sympy.diff(of, d).subs(d, place)) == 0
        assert sympy.diff(of, d, 2).subs(d, place) < 0
    root = math.sqrt(2)
    gradient, _ = derivatives(alone(root, root + 1), **WHOLE_LINE)
    reached = math.sqrt(2 * math.pi / math.e) * (1 + 2 * 999 / 1000)
    assert float(gradient[0]) == pytest.approx(reached, rel=1e-9)
    assert 0.999 * float(LARGEST_GRADIENT) < reached < float(LARGEST_GRADIENT)


def test_sigreg_curvature_is_bounded_by_5_80_and_reaches_it():
    """∂²T/∂x² = -2 ∫ t² e^{-t²/2} [mean_{others} cos t(x - y) - e^{-t²/2} cos tx] dt; own terms cancel."""
    others = integrate(t**2 * exp(-(t**2) / 2) * cos(t * d), (t, -oo, oo))
    own = integrate(t**2 * exp(-(t**2)) * cos(t * d), (t, -oo, oo))
    assert sympy.simplify(others - sqrt(2 * pi) * (1 - d**2) * exp(-(d**2) / 2)) == 0
    assert sympy.simplify(own - sqrt(pi) / 2 * (1 - d**2 / 2) * exp(-(d**2) / 4)) == 0
    # Both are largest at 0; the first is smallest at √3, the second at √6.
    at = {of: {place: of.subs(d, place) for place in (0, sqrt(3), sqrt(6))} for of in (others, own)}
    assert sympy.simplify(2 * (at[own][0] - at[others][sqrt(3)]) - LARGEST_CURVATURE) == 0
    assert sympy.simplify(2 * (at[own][sqrt(6)] - at[others][0]) - SMALLEST_CURVATURE) == 0
    for first, others_at, extreme in (
        (0.0, math.sqrt(3), LARGEST_CURVATURE),
        (math.sqrt(6), math.sqrt(6), SMALLEST_CURVATURE),
    ):
        _, second = derivatives(alone(first, others_at), **WHOLE_LINE)
        assert second == pytest.approx(float(extreme), rel=2e-3)
        assert abs(second) <= abs(float(extreme))


def test_sigreg_bounds_hold_on_the_usual_grid_for_clouds_that_try_to_break_them():
    """On 17 knots up to 3: gradient at most 4 Σ w t = 7.9, curvature at most 4 Σ w t² = 9.7; less is met."""
    knots = torch.linspace(0, 3, 17, dtype=torch.float64)
    weights = torch.full((17,), 2 * 3 / 16, dtype=torch.float64)
    weights[[0, -1]] /= 2
    weights *= torch.exp(-(knots**2) / 2)
    first, second = (float(4 * (weights * knots**power).sum()) for power in (1, 2))
    assert (first, second) == (pytest.approx(7.9, abs=0.02), pytest.approx(9.7, abs=0.03))
    random = torch.Generator().manual_seed(0)
    largest = np.zeros(2)
    for draw in range(150):
        scale, shift = 4 * torch.rand(2, generator=random, dtype=torch.float64)
        count = 2 + draw % 40
        x = scale * torch.randn(count, generator=random, dtype=torch.float64) + shift
        if draw % 2:
            x = alone(float(shift), float(shift + scale), count)
        gradient, curvature = derivatives(x)
        largest = np.maximum(largest, [float(gradient.abs().max()), abs(curvature)])
    assert 4.0 < largest[0] < 4.58 < first and 4.0 < largest[1] < 5.66 < second


def test_sigreg_gradient_by_an_embedding_has_the_bound_of_one_slice():
    """Directions have length 1, so the mean over slices is no steeper than one slice; V views share it."""
    z = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 3
    z.requires_grad_()
    SIGReg(num_slices=128, implementation="eager")(z, 0).backward()
    assert z.grad is not None
    assert 0.1 < float(z.grad.norm(dim=-1).max()) < 4.58 / 2


def test_the_gaussian_has_the_largest_entropy_of_its_variance():
    """h(g) - h(p) = KL(p ‖ g) ≥ 0 for every p of variance s², as -log g is a quadratic in x."""
    x, u = sympy.symbols("x", real=True), sympy.symbols("u", positive=True)
    s = sympy.symbols("s", positive=True)
    gauss = exp(-(x**2) / (2 * s**2)) / (s * sqrt(2 * pi))
    entropy = log(2 * pi * sympy.E * s**2) / 2
    minus_log = x**2 / (2 * s**2) + log(s * sqrt(2 * pi))
    assert sympy.simplify(exp(minus_log) * gauss) == 1
    # Its mean under p needs the variance of p alone.
    cross = minus_log.subs(x, s)
    assert sympy.simplify(exp(cross - entropy)) == 1
    gap = u - 1 - log(u)  # Gibbs: -log u ≥ 1 - u, with equality at u = 1 only
    assert sympy.solve(sympy.diff(gap, u), u) == [1] and gap.subs(u, 1) == 0
    assert sympy.diff(gap, u, 2).is_positive
    half, scale = sqrt(3) * s, s / sqrt(2)
    uniform = (1 / (2 * half), integrate(x**2 / (2 * half), (x, -half, half)), log(2 * half))
    density = exp(-x / scale) / (2 * scale)
    laplace = (
        density,
        2 * integrate(x**2 * density, (x, 0, oo)),
        2 * integrate(density * (x / scale + log(2 * scale)), (x, 0, oo)),
    )
    for _, variance, of in (uniform, laplace):
        assert sympy.simplify(variance - s**2) == 0
        lost = sympy.simplify(sympy.expand_log(entropy - of, force=True))
        assert not lost.free_symbols and lost > 0
    # Among Gaussians of one total variance, equal variances in all directions have the largest entropy.
    a, b = sympy.symbols("a b", positive=True)
    assert sympy.factor(((a + b) / 2) ** 2 - a * b) == (a - b) ** 2 / 4


@pytest.mark.parametrize("size", [2, 3])
def test_every_site_of_the_grid_has_a_dimension_from_n2_dimensions_on(size):
    """And every site has ⌊D/N²⌋ or ⌈D/N²⌉ of them; with fewer than N² dimensions some sites are empty."""
    sites = size**2
    with pytest.raises(UserError, match=f"{sites} sites for {sites - 1} dimensions"):
        covariance_energy(torch.eye(sites - 1, dtype=torch.float64), size, "distance")
    for width in (sites, sites + 1, 2 * sites + 1):
        together = np.eye(width, dtype=int)
        for i in range(width):
            for j in range(i):
                pair = torch.zeros(width, width, dtype=torch.float64)
                pair[i, j] = 1
                # Two dimensions at one site cost nothing.
                together[i, j] = together[j, i] = float(covariance_energy(pair, size, "distance")) == 0
        groups = {tuple(row) for row in together}
        assert len(groups) == sites
        assert {sum(group) for group in groups} == {width // sites, -(-width // sites)}
