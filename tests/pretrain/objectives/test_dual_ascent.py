"""λ by dual ascent: up while the projections are further from Gaussian than allowed, down while nearer."""

import pytest
import torch
from torch import nn

from pretrain.methods.config import AutoWeightConfig, LeJEPAConfig, SIGRegConfig
from pretrain.methods.lejepa import LeJEPAHead


def head_and_samples(test: str, scale: float, rate: float) -> tuple[LeJEPAHead, torch.Tensor]:
    """A head whose projections are its embeddings, and Gaussian embeddings times `scale`."""
    auto = AutoWeightConfig(enabled=True, multiple=2.0, rate=rate)
    config = LeJEPAConfig(weight=0.5, auto_weight=auto, sigreg=SIGRegConfig(num_slices=256, test=test))
    head = LeJEPAHead(8, config, n_global=2, seed=0)
    head.projector = nn.Sequential(nn.Identity())
    return head, scale * torch.randn(2, 512, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("test", ["epps_pulley", "watson", "anderson_darling"])
@pytest.mark.parametrize(("scale", "direction"), [(1.0, -1), (0.5, 1)], ids=["gaussian", "too narrow"])
def test_weight_moves_toward_what_is_allowed(test: str, scale: float, direction: int):
    head, z = head_and_samples(test, scale, rate=1e-3)
    first, second = head(z, 0).parts, head(z, 1).parts
    excess = first["sigreg"] - 2.0 * head.sigreg.null(z)
    assert torch.sign(excess) == direction
    assert first["weight"] == 0.5
    torch.testing.assert_close(second["weight"], 0.5 + 1e-3 * excess)
    torch.testing.assert_close(first["loss"], first["prediction"] + 0.5 * first["sigreg"])


def test_weight_stays_above_zero_and_rests_in_evaluation():
    head, z = head_and_samples("epps_pulley", 1.0, rate=10.0)
    head.eval()(z, 0)
    assert head.dual_weight == 0.5
    head.train()(z, 0)
    assert head.dual_weight == 0
