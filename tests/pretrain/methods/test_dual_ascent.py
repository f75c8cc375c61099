"""λ by dual ascent: up while the regularizer is above what is allowed, down while below, for every method."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from pretrain.methods import build_head
from pretrain.methods.config import ObjectiveConfig
from pretrain.objectives.toroidal import covariance_energy, covariance_energy_null

WIDTH, IMAGES, MULTIPLE = 4, 512, 2.0


def lejepa(test: str) -> dict[str, Any]:
    return {"kind": "lejepa", "sigreg": {"num_slices": 256, "test": test}}


METHODS: dict[str, dict[str, Any]] = {
    "epps_pulley": lejepa("epps_pulley"),
    "watson": lejepa("watson"),
    "anderson_darling": lejepa("anderson_darling"),
    "jepa by sigreg": {"kind": "jepa", "regularizer": "sigreg", "sigreg": {"num_slices": 256}},
    "vicreg": {"kind": "jepa"},
    "toroidal": {"kind": "jepa", "regularizer": "toroidal", "grid_size": 2},
    "torus": {"kind": "torus", "angles": 2},
}


def head_and_samples(method: str, spread: float, rate: float) -> tuple[Any, Tensor]:
    """A head whose projections are its embeddings, and embeddings of two views.

    With `spread` 1 they are samples of the target distribution. With less, Gaussians are narrower, dimensions
    have more in common, and pairs are off the centre.
    """
    auto = {"enabled": True, "multiple": MULTIPLE, "rate": rate}
    values = METHODS[method] | {"weight": 0.5, "auto_weight": auto}
    if values["kind"] == "jepa":
        values |= {"projector": {"width": WIDTH}, "predictor": {"hidden": 8}}
    head = build_head(TypeAdapter(ObjectiveConfig).validate_python(values), WIDTH, n_global=2, seed=0)
    head.projector = nn.Sequential(nn.Identity())
    z = torch.randn(2, IMAGES, WIDTH, generator=torch.Generator().manual_seed(0))
    if method == "torus":
        return head, z + 1 - spread
    if method in ("vicreg", "toroidal"):
        return head, z + (1 - spread) * z[..., :1]
    return head, spread * z


def statistic_and_null(method: str, head: Any, z: Tensor) -> tuple[float, float]:
    """Return the regularizer in a second implementation, and its mean for the target distribution."""
    if method == "torus":
        theta = np.arctan2(z[..., 1::2], z[..., ::2]).numpy()
        found = null = 0.0
        for k in itertools.product(range(-3, 4), repeat=2):
            weight = math.exp(-math.log(4) * (k[0] ** 2 + k[1] ** 2)) if any(k) else 0.0
            found += weight * IMAGES * np.mean(abs(np.exp(1j * theta @ np.array(k)).mean(1)) ** 2)
            null += weight
        return found, null
    matrices = [torch.cov(view.T) for view in z]
    if method == "vicreg":
        squares = [(m.square().sum() - m.diagonal().square().sum()) / (WIDTH * (WIDTH - 1)) for m in matrices]
        return (IMAGES - 1) * float(sum(squares)) / 2, 1.0
    if method == "toroidal":
        energies = sum(covariance_energy(m, 2, "distance") for m in matrices) / 2
        return (IMAGES - 1) * float(energies), float(covariance_energy_null(WIDTH, 2, "distance", 1.0, z))
    return float(head.sigreg(z, 0)), float(head.sigreg.null(z))


def parts(head: Any, z: Tensor, step: int) -> dict[str, Tensor]:
    target = [z.flip(0)] if hasattr(head, "predictor") else []
    return dict(head(z, step, *target).parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("spread", "direction"), [(1.0, -1), (0.5, 1)], ids=["on target", "off target"])
def test_weight_moves_by_the_excess_over_what_is_allowed(method: str, spread: float, direction: int):
    head, z = head_and_samples(method, spread, rate=1e-3)
    first, second = parts(head, z, 0), parts(head, z, 1)
    statistic, null = statistic_and_null(method, head, z)
    assert math.copysign(1, statistic - MULTIPLE * null) == direction
    assert first["weight"] == 0.5
    assert second["weight"].item() == pytest.approx(0.5 + 1e-3 * (statistic - MULTIPLE * null), rel=1e-5)
    names = {"vicreg": "covariance", "toroidal": "toroidal", "torus": "uniformity"}
    loss = first["prediction"] + 0.5 * first[names.get(method, "sigreg")]
    torch.testing.assert_close(first["loss"], loss + 25 * first.get("variance", 0.0))
    if method in ("vicreg", "toroidal"):
        assert first[f"{names[method]}_over_null"].item() == pytest.approx(statistic / null, rel=1e-4)


def test_weight_stays_above_zero_and_rests_in_evaluation():
    head, z = head_and_samples("epps_pulley", 1.0, rate=10.0)
    head.eval()(z, 0)
    assert head.dual_weight == 0.5
    head.train()(z, 0)
    assert head.dual_weight == 0


def test_training_ends_where_the_covariance_is_as_large_as_allowed():
    """The prediction error alone would leave what the dimensions have in common."""
    head, _ = head_and_samples("vicreg", 1.0, rate=3e-3)
    random = torch.Generator().manual_seed(1)
    layer, mixing = torch.eye(WIDTH).requires_grad_(), torch.eye(WIDTH) + 0.5
    optimizer = torch.optim.Adam([layer], 1e-2)
    found = []
    for step in range(400):
        image = torch.randn(1, 128, WIDTH, generator=random)
        views = (image + 0.5 * torch.randn(2, 128, WIDTH, generator=random)) @ mixing
        measured = parts(head, views @ layer, step)
        optimizer.zero_grad()
        measured["loss"].backward()
        optimizer.step()
        found.append(measured["covariance_over_null"].item())
    assert found[0] > 5 * MULTIPLE
    assert 0.8 * MULTIPLE < np.mean(found[-150:]) < 1.2 * MULTIPLE
