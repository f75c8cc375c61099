"""Measures of collapse and the online probe, each in a case with a known answer."""

import math

import pytest
import torch

from pretrain.engines.step import StepResult
from pretrain.methods import build_head
from pretrain.methods.config import LeJEPAConfig, SIGRegConfig, TorusConfig
from pretrain.models.config import MLPConfig, ProjectorConfig
from pretrain.monitoring import collapse
from pretrain.monitoring.online_probe import OnlineProbe

N = 4096


def measure(embeddings: torch.Tensor, scale: float = 1.0) -> dict[str, float]:
    """Measure a LeJEPA head whose projections are the embeddings times `scale`."""
    config = LeJEPAConfig(sigreg=SIGRegConfig(num_slices=256), projector=ProjectorConfig(layers=1, width=8))
    head = build_head(config, 8, n_global=2, seed=0)
    head.sigreg.implementation = "angle"  # compiling would take longer than the test
    z = embeddings * scale
    return row(head, StepResult({"sigreg": head.sigreg(z, 3)}, embeddings, z), 3)


def row(head: torch.nn.Module, result: StepResult, step: int) -> dict[str, float]:
    scalars, covariance = collapse.measure(head, result, step)
    return collapse.conclude({name: value.item() for name, value in scalars.items()}, covariance)


def test_a_gaussian_is_at_the_null_with_full_rank():
    found = measure(torch.randn(2, N, 8, generator=torch.Generator().manual_seed(0)))
    assert found["sigreg_over_null"] == pytest.approx(1, abs=0.15)
    assert found["effective_rank"] == pytest.approx(8, abs=0.05)
    assert found["std_median"] == pytest.approx(1, abs=0.02)
    assert found["aliased"] == 0 and found["collapsed"] == 0
    assert collapse.warnings({"step": 1, **found}) == []


@pytest.mark.parametrize("name", ["point", "line"])
def test_collapse_says_so(name: str):
    x = torch.randn(2, N, 8)
    embeddings = torch.ones(8) + (1e-4 * x if name == "point" else x[..., :1] * torch.ones(8))
    found = measure(embeddings)
    (said,) = collapse.warnings({"step": 7, **found})
    assert found["collapsed"] == 1 and "step 7: the embedding has collapsed" in said


def test_a_solver_that_fails_leaves_the_rank_out(monkeypatch: pytest.MonkeyPatch):
    def fail(matrix: torch.Tensor) -> torch.Tensor:
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    found = measure(1e-4 * torch.randn(2, N, 8) + 1)
    assert "effective_rank" not in found and found["collapsed"] == 1
    assert "collapsed (median std" in collapse.warnings({"step": 7, **found})[0]


def test_the_rank_of_few_directions_among_many_is_found():
    # Covariances of low rank are where solvers in float32 have failed.
    x = torch.randn(4096, 3, dtype=torch.float64) @ torch.randn(3, 512, dtype=torch.float64)
    assert 2 < collapse.effective_rank(torch.cov(x.T).float()) <= 3.001


def test_aliasing_says_so():
    # Half the grid's period is 16π/3 ≈ 16.8; at std 20 the share beyond is P(|x| > 16.8 / 20).
    found = measure(torch.randn(2, N, 8), scale=20)
    expected = math.erfc(math.pi * 16 / 3 / 20 / math.sqrt(2))
    assert found["aliased"] == pytest.approx(expected, abs=0.02)
    (said,) = collapse.warnings({"step": 1, **found})
    assert "beyond SIGReg's grid" in said


def test_uniform_angles_are_at_their_null():
    head = build_head(TorusConfig(kind="torus", head=MLPConfig(hidden=8)), 4, n_global=1, seed=0)
    from pretrain.objectives.toroidal import torus_uniformity

    angles = 2 * math.pi * torch.rand(200, 256, 2, generator=torch.Generator().manual_seed(1))
    statistic = torch.stack([torus_uniformity(a, *head.frequencies(0)) for a in angles]).mean()
    result = StepResult({"uniformity": statistic}, torch.randn(1, 64, 4), torch.randn(1, 64, 4))
    assert row(head, result, 0)["uniformity_over_null"] == pytest.approx(1, abs=0.1)


def test_probe_learns_separable_classes_and_leaves_unlabelled_out():
    generator = torch.Generator().manual_seed(0)
    probe = OnlineProbe(4, 2, torch.device("cpu"))
    for _ in range(300):
        labels = torch.randint(-1, 2, (64,), generator=generator)
        features = torch.randn(64, 4, generator=generator)
        features[:, 0] += 4 * (labels == 1)
        features[labels == -1] = 1e3 * torch.rand((), generator=generator)
        probe.learn(features, labels)
    probe.balanced_accuracy()
    probe.learn(features, labels)
    assert probe.balanced_accuracy() > 0.8


def test_probe_state_round_trip():
    first, second = (OnlineProbe(4, 2, torch.device("cpu")) for _ in range(2))
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    first.learn(x, y)
    for mine, other in zip(*(s.state().values() for s in (second, first)), strict=True):
        for name in mine:
            mine[name].copy_(other[name])  # in place, as a checkpoint is loaded
    for probe in (first, second):
        probe.learn(x, y)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
