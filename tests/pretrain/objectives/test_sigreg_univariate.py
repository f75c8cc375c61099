"""The other univariate tests against scipy, their null means and autograd's check."""

import math
from typing import get_args

import pytest
import scipy.stats
import torch

from pretrain.methods.config import Test
from pretrain.objectives.sigreg import SIGReg
from pretrain.objectives.univariate import TESTS, null_mean


def gaussian(samples: int, slices: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, slices, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def over_columns(function, x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([function(column) for column in x.T.numpy()], dtype=torch.float64)


@pytest.mark.parametrize("samples", [3, 4, 5, 6, 50, 1000])
def test_shapiro_wilk_equals_scipy(samples):
    x = 2 * gaussian(samples, 3) + 1
    w = over_columns(lambda column: scipy.stats.shapiro(column).statistic, x)
    torch.testing.assert_close(TESTS["shapiro_wilk"](x), samples * (1 - w), rtol=1e-6, atol=1e-6)


def test_cramer_von_mises_and_jarque_bera_equal_scipy():
    x = gaussian(40, 5) * 1.3 - 0.2
    expected = over_columns(lambda column: scipy.stats.cramervonmises(column, "norm").statistic, x)
    torch.testing.assert_close(TESTS["cramer_von_mises"](x), expected)
    expected = over_columns(lambda column: scipy.stats.jarque_bera(column).statistic, x)
    torch.testing.assert_close(TESTS["jarque_bera"](x), expected)


def test_anderson_darling_and_watson_equal_their_integrals():
    """N ∫ (F_N - Φ)² ψ(Φ) dΦ with ψ = 1/(u(1-u)), and with the mean of F_N - Φ taken off."""
    x = gaussian(9, 1).squeeze(1)
    u = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000
    empirical = (torch.searchsorted(torch.special.ndtr(x).sort().values, u)) / 9.0
    difference = empirical - u
    expected = 9 * (difference**2 / (u * (1 - u))).mean()
    torch.testing.assert_close(TESTS["anderson_darling"](x[:, None])[0], expected, rtol=1e-4, atol=1e-4)
    expected = 9 * (difference - difference.mean()).square().mean()
    torch.testing.assert_close(TESTS["watson"](x[:, None])[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TESTS)
def test_null_mean_is_the_mean_over_gaussian_samples(name):
    statistic = TESTS[name](gaussian(32, 40000, seed=1))
    # Royston's approximation to 1 - W is good to about one percent.
    slack = 0.01 * null_mean(name, torch.tensor(32.0)) if name == "shapiro_wilk" else 0
    assert (
        abs(statistic.mean() - null_mean(name, torch.tensor(32.0)))
        < 4 * statistic.std() / math.sqrt(40000) + slack
    )


@pytest.mark.parametrize("name", TESTS)
def test_gradient_passes_gradcheck(name):
    assert torch.autograd.gradcheck(TESTS[name], gaussian(8, 2, seed=2).requires_grad_())


@pytest.mark.parametrize("name", TESTS)
def test_departures_from_the_normal_are_far_above_the_null(name):
    uniform = torch.rand(500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 4 - 2
    assert TESTS[name](uniform) > 3 * null_mean(name, torch.tensor(500.0))
    shifted = TESTS[name](gaussian(500, 1) * 0.5 + 1)
    if name in ("shapiro_wilk", "jarque_bera"):
        torch.testing.assert_close(shifted, TESTS[name](gaussian(500, 1)))
    else:
        assert shifted > 5 * null_mean(name, torch.tensor(500.0))


@pytest.mark.parametrize("name", TESTS)
def test_a_constant_sample_gives_a_finite_value_and_gradient(name):
    x = torch.full((20, 2), 0.5, requires_grad=True)
    value = TESTS[name](x)
    value.sum().backward()
    assert value.isfinite().all() and x.grad.isfinite().all()
    assert (value > null_mean(name, torch.tensor(20.0))).all()


def test_a_test_takes_the_place_of_epps_pulley():
    z = gaussian(2 * 30, 8).view(2, 30, 8)
    sigreg = SIGReg(16, test="watson")
    directions = sigreg.directions(8, 0).double()
    expected = torch.stack([TESTS["watson"](view @ directions) for view in z]).mean()
    torch.testing.assert_close(sigreg(z, 0), expected)


def test_too_few_samples_for_shapiro_wilk_are_refused():
    with pytest.raises(ValueError, match="at least 3 samples"):
        TESTS["shapiro_wilk"](torch.zeros(2, 1))


def test_a_recipe_may_name_every_test():
    assert get_args(Test) == ("epps_pulley", *TESTS)
