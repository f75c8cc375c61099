"""SIGReg against the closed form, its null and its invariances."""

import math

import numpy as np
import pytest
import torch

from isotorus.errors import UserError
from pretrain.objectives.sigreg import SIGReg, aliased_share, epps_pulley, null_mean

SAMPLES = 200


def sample(name: str) -> torch.Tensor:
    random = np.random.default_rng(3)
    x = {
        "gaussian": lambda: random.standard_normal((SAMPLES, 4)),
        "uniform": lambda: random.uniform(-2, 2, (SAMPLES, 4)),
        "bimodal": lambda: (
            random.choice([-1.5, 1.5], (SAMPLES, 4)) + 0.3 * random.standard_normal((SAMPLES, 4))
        ),
        "heavy_tailed": lambda: random.standard_t(2.5, (SAMPLES, 4)),
        "constant": lambda: np.full((SAMPLES, 4), 0.7),
        "single": lambda: random.standard_normal((1, 4)),
    }[name]()
    return torch.from_numpy(x)


SAMPLE_NAMES = ["gaussian", "uniform", "bimodal", "heavy_tailed", "constant", "single"]


def closed_form(x: torch.Tensor) -> torch.Tensor:
    pairs = torch.exp(-((x[:, None] - x[None]) ** 2) / 2).mean((0, 1))
    single = math.sqrt(2) * torch.exp(-(x**2) / 4).mean(0)
    return len(x) * math.sqrt(2 * math.pi) * (pairs - single + 1 / math.sqrt(3))


def value_and_gradient(function, x):
    x = x.clone().requires_grad_()
    value = function(x)
    (value * torch.arange(1, 1 + value.numel(), dtype=value.dtype)).sum().backward()
    return value.detach(), x.grad


@pytest.mark.parametrize("implementation", ["eager", "angle"])
@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_wide_fine_grid_equals_the_closed_form(name, implementation):
    x = sample(name)
    got = value_and_gradient(lambda x: epps_pulley(x, 9.0, 601, implementation), x)
    expected = value_and_gradient(closed_form, x)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_float32_on_the_usual_grid_equals_a_float64_reference(name):
    def reference(x):
        t = torch.linspace(0, 3, 17, dtype=torch.float64)
        target = torch.exp(-(t**2) / 2)
        difference = torch.exp(1j * x[..., None] * t).mean(0) - target
        return 2 * len(x) * torch.trapezoid(difference.abs() ** 2 * target, t)

    x = sample(name)
    value, gradient = value_and_gradient(epps_pulley, x.float())
    expected_value, expected_gradient = value_and_gradient(reference, x.float().double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected_value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-5)


def test_gradient_passes_gradcheck():
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: epps_pulley(x, implementation="angle"), x)


def test_null_mean_is_the_mean_over_gaussian_samples():
    x = torch.randn(16, 40000, generator=torch.Generator().manual_seed(1))
    statistic = epps_pulley(x, implementation="angle")
    error = statistic.std() / math.sqrt(x.shape[1])
    assert abs(statistic.mean() - null_mean()) < 4 * error
    assert null_mean(12.0, 1001) == pytest.approx(math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3)), rel=1e-9)


def test_order_and_sign_do_not_matter_and_a_doubled_batch_doubles_it():
    x = sample("heavy_tailed")
    statistic = epps_pulley(x)
    torch.testing.assert_close(epps_pulley(x.flip(0)), statistic)
    torch.testing.assert_close(epps_pulley(-x), statistic)
    torch.testing.assert_close(epps_pulley(torch.cat([x, x])), 2 * statistic)


def test_total_collapse_costs_much_and_has_no_gradient():
    x = torch.zeros(50, 3, dtype=torch.float64)
    value, gradient = value_and_gradient(lambda x: epps_pulley(x, 9.0, 601), x)
    assert value[0] / 50 == pytest.approx(math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3)))
    assert gradient.abs().max() == 0


def test_module_is_the_mean_over_views_and_slices():
    z = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(2))
    sigreg = SIGReg(32, seed=5)
    directions = sigreg.directions(8, step=11)
    expected = torch.stack([epps_pulley(view @ directions) for view in z]).mean()
    torch.testing.assert_close(sigreg(z, 11), expected)
    torch.testing.assert_close(sigreg(z, 99, directions), expected)


def test_directions_depend_on_seed_and_step_alone():
    sigreg = SIGReg(64, seed=5)
    torch.manual_seed(0)
    first = sigreg.directions(16, step=3)
    torch.manual_seed(1)
    assert torch.equal(SIGReg(64, seed=5).directions(16, step=3), first)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(64))
    for other in (sigreg.directions(16, 4), SIGReg(64, seed=6).directions(16, 3)):
        assert (other * first).sum(0).abs().max() < 0.99
    # Uniform on the sphere: mean 0 and second moment I / width.
    many = SIGReg(40000).directions(4, 0)
    torch.testing.assert_close(many @ many.T / 40000, torch.eye(4) / 4, rtol=0, atol=0.01)
    assert many.mean(1).abs().max() < 0.01


@pytest.mark.parametrize("chunk", [1, 10, 64])
def test_chunks_change_nothing(chunk):
    z = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(4))
    whole = value_and_gradient(lambda z: SIGReg(64)(z, 0), z)
    parts = value_and_gradient(lambda z: SIGReg(64, chunk=chunk)(z, 0), z)
    torch.testing.assert_close(parts, whole)


def test_autocast_does_not_touch_the_statistic():
    z = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(6))

    def under_autocast(z):
        with torch.autocast("cpu", torch.bfloat16):
            return SIGReg(32)(z, 0)

    torch.testing.assert_close(
        value_and_gradient(under_autocast, z), value_and_gradient(lambda z: SIGReg(32)(z, 0), z)
    )
    value, gradient = value_and_gradient(under_autocast, z.bfloat16())
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16


def test_aliased_share_counts_beyond_half_the_period():
    half = math.pi * 16 / 3
    x = torch.tensor([0.0, 0.99 * half, 1.01 * half, -1.01 * half])
    assert aliased_share(x) == 0.5
    # A shift by the whole period is what the grid cannot see.
    y = sample("gaussian")
    torch.testing.assert_close(epps_pulley(y + 2 * half), epps_pulley(y))


def test_nan_gives_nan_and_one_sample_a_number():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    x[3, 1] = math.nan
    statistic = epps_pulley(x)
    assert statistic[1].isnan() and statistic[0].isfinite()
    assert SIGReg(4)(torch.randn(2, 1, 3), 0).isfinite()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"knots": 16}, "odd"),
        ({"knots": 1}, "at least 3"),
        ({"t_max": 0.0}, "t_max"),
        ({"num_slices": 0}, "num_slices"),
        ({"chunk": 0}, "chunk"),
        ({"test": "kolmogorov"}, "watson"),
    ],
)
def test_impossible_settings_are_refused(settings, word):
    with pytest.raises(UserError, match=word):
        SIGReg(**settings)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"directions must be \(8, slices\)"):
        SIGReg(4)(torch.zeros(1, 5, 8), 0, torch.zeros(7, 4))
    with pytest.raises(ValueError, match="views, images"):
        SIGReg(4)(torch.zeros(5, 8), 0)
    with pytest.raises(ValueError, match="at least one sample"):
        SIGReg(4)(torch.zeros(2, 0, 8), 0)
    with pytest.raises(ValueError, match="at least one sample"):
        epps_pulley(torch.zeros(0, 8))
