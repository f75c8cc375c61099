"""The prediction errors of JEPA, written out in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.methods.config import JEPAConfig
from pretrain.methods.jepa import JEPAHead

VIEWS, GLOBAL, IMAGES, WIDTH = 4, 2, 7, 5
ERRORS = {
    "squared_error": lambda d: d**2,
    "smooth_l1": lambda d: np.where(abs(d) < 1, d**2 / 2, abs(d) - 0.5),
}
SLOPES = {"squared_error": lambda d: 2 * d, "smooth_l1": lambda d: np.clip(d, -1, 1)}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def identity_head(**fields: Any) -> JEPAHead:
    """A head whose projections and predictions are its embeddings."""
    head = JEPAHead(WIDTH, JEPAConfig(kind="jepa", **{"projector": {"width": WIDTH}} | fields), seed=0)
    head.projector, head.predictor = nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())
    return head


@pytest.mark.parametrize("error", ERRORS)
def test_the_prediction_is_the_mean_error_over_pairs_of_views(error: str):
    """About half of the differences are larger than 1, where the two pieces of smooth L1 meet."""
    z, target = draw(VIEWS, IMAGES, WIDTH).requires_grad_(), draw(GLOBAL, IMAGES, WIDTH, seed=1)
    head = identity_head(prediction=error, weight=0, variance_weight=0)
    parts = head(z, 0, target).parts
    pairs = [(v, g) for v in range(VIEWS) for g in range(GLOBAL) if v != g]
    apart = [(z[v].detach() - target[g]).numpy() for v, g in pairs]
    assert 0.3 < np.mean(np.abs(apart) < 1) < 0.7
    assert parts["prediction"].item() == pytest.approx(np.mean(ERRORS[error](np.array(apart))), rel=1e-5)

    slopes = np.zeros(z.shape)
    for (v, _), d in zip(pairs, apart, strict=True):
        slopes[v] += SLOPES[error](d) / (len(pairs) * IMAGES * WIDTH)
    parts["loss"].backward()
    assert z.grad is not None
    np.testing.assert_allclose(z.grad.numpy(), slopes, rtol=1e-4, atol=1e-7)
