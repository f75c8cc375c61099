"""Statistics are computed in float32 throughout: under autocast they have the same bits as without it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pretrain.engines.step import StepResult
from pretrain.methods import build_head
from pretrain.methods.config import JEPAConfig, LeJEPAConfig, ObjectiveConfig, TorusConfig
from pretrain.monitoring import collapse
from pretrain.monitoring.online_probe import OnlineProbe
from pretrain.objectives import univariate
from pretrain.objectives.toroidal import torus_uniformity
from pretrain.objectives.torus_frequencies import all_frequencies
from tests.distributed.test_objectives import OBJECTIVES

VIEWS, IMAGES, WIDTH = 3, 37, 16
PREDICTOR = {"hidden": 8}
HEADS: dict[str, ObjectiveConfig] = {
    "lejepa": LeJEPAConfig(encoder_weight=0.1, auto_weight={"enabled": True}),
    "vicreg": JEPAConfig(kind="jepa", predictor=PREDICTOR),
    "jepa_smooth": JEPAConfig(kind="jepa", regularizer="sigreg", prediction="smooth_l1", predictor=PREDICTOR),
    "toroidal": JEPAConfig(
        kind="jepa", regularizer="toroidal", grid_size=4, predictor=PREDICTOR, auto_weight={"enabled": True}
    ),
    "torus": TorusConfig(kind="torus", angles=WIDTH // 2, encoder_weight=0.1),
}


def rounded(seed: int = 0) -> Tensor:
    """Return numbers that bfloat16 holds exactly."""
    shape = VIEWS, IMAGES, WIDTH
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def both(statistic: Callable[[Tensor], dict[str, Tensor]], given: torch.dtype = torch.bfloat16) -> None:
    """Compare a statistic of `given` precision under autocast, and its gradient, with those of float32."""
    found = []
    for half in (True, False):
        x = rounded().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            parts = statistic(x.to(given) if half else x)
        sum(part for part in parts.values() if part.requires_grad).backward()
        gradient = x.grad.to(given)
        found.append({**{name: part.detach() for name, part in parts.items()}, "gradient": gradient})
    torch.testing.assert_close(*found, rtol=0, atol=0)


def head_parts(name: str) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return the parts of a head's loss as a function of the projections."""

    def parts(x: Tensor) -> dict[str, Tensor]:
        head = build_head(HEADS[name], WIDTH, 2, seed=0)
        # Networks compute in the precision of the engine; what follows them does not.
        head.projector = nn.Identity()
        if hasattr(head, "predictor"):
            head.predictor = nn.Identity()
        target = [rounded(1)[:2].to(x.dtype)] if HEADS[name].kind == "jepa" else []
        return dict(head(x, 0, *target).parts)

    return parts


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name: str):
    both(lambda x: OBJECTIVES[name](x[..., :8]))


@pytest.mark.parametrize("name", univariate.TESTS)
def test_univariate_tests(name: str):
    both(lambda x: {"statistic": univariate.TESTS[name](x[0]).sum()})


def test_uniformity_of_angles():
    both(lambda x: {"uniformity": torus_uniformity(x[0, :, :2], *all_frequencies(2, 3, 0.7))})


@pytest.mark.parametrize("name", HEADS)
def test_losses(name: str):
    # Embeddings are float32 in every precision of the engine.
    both(head_parts(name), torch.float32)


@pytest.mark.parametrize("name", ["lejepa", "torus"])
def test_measures_of_collapse(name: str):
    config = HEADS[name]
    head = build_head(config, WIDTH, 2, seed=0)
    measured = []
    for half in (True, False):
        x = rounded().bfloat16() if half else rounded()
        statistic = torch.tensor(2.0)
        result = StepResult({"sigreg": statistic, "uniformity": statistic}, x, 8 * x)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            scalars, covariance = collapse.measure(head, result, 0)
        measured.append(({name: x.item() for name, x in scalars.items()}, covariance.tolist()))
    assert measured[0] == measured[1]


def test_the_online_probe():
    labels = torch.arange(IMAGES) % 5
    weights = []
    for half in (True, False):
        probe = OnlineProbe(WIDTH, 5, torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            for _ in range(3):
                probe.learn(rounded()[0].bfloat16() if half else rounded()[0], labels)
        weights.append(probe.linear.weight.detach())
    assert torch.equal(*weights)
