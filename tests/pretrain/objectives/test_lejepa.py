"""The LeJEPA loss is (1 - λ) prediction + λ SIGReg about the centre of the global views."""

import pytest
import torch

from isotorus.errors import UserError
from pretrain.objectives.lejepa import lejepa_loss
from pretrain.objectives.sigreg import SIGReg


def views() -> torch.Tensor:
    return torch.randn(5, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("center", "count"), [("global", 2), ("all", 5)])
def test_loss_is_the_weighted_sum_of_its_parts(center, count):
    z, sigreg = views(), SIGReg(16)
    parts = lejepa_loss(z, 2, 0.05, sigreg, step=7, center=center)
    prediction = sum(
        (z[:count, n].mean(0)[k] - z[v, n, k]) ** 2 for v in range(5) for n in range(12) for k in range(6)
    ) / (5 * 12 * 6)
    torch.testing.assert_close(parts["prediction"], prediction)
    torch.testing.assert_close(parts["sigreg"], sigreg(z, 7))
    torch.testing.assert_close(parts["loss"], 0.95 * prediction + 0.05 * parts["sigreg"])


def test_no_stop_gradient_the_centre_moves_too():
    z = views().requires_grad_()
    lejepa_loss(z, 2, 0.0, SIGReg(4), 0)["loss"].backward()
    centered = z.detach() - z.detach()[:2].mean(0)
    expected = 2 * centered / z.numel()
    expected[:2] -= 2 * centered.sum(0) / (2 * z.numel())
    torch.testing.assert_close(z.grad, expected)


def test_views_that_agree_cost_no_prediction():
    z = views()[:1].expand(4, -1, -1)
    assert lejepa_loss(z, 2, 0.5, SIGReg(4), 0)["prediction"] == 0


def test_impossible_settings_are_refused():
    for n_global in (0, 6):
        with pytest.raises(UserError, match="n_global"):
            lejepa_loss(views(), n_global, 0.05, SIGReg(4), 0)
    with pytest.raises(UserError, match="center"):
        lejepa_loss(views(), 2, 0.05, SIGReg(4), 0, center="local")
