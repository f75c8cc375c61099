"""VICReg against numpy, and where its terms vanish."""

import numpy as np
import pytest
import torch

from pretrain.objectives.vicreg import vicreg_loss


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_loss_and_parts_equal_numpy():
    prediction, target, embedding = draw(20, 6), draw(20, 6, seed=1), 0.7 * draw(20, 9, seed=2) + 3
    parts = vicreg_loss(prediction, target, embedding, variance_weight=25.0, covariance_weight=2.0)
    matrix = np.cov(embedding.numpy().T)
    off_diagonal = matrix - np.diag(np.diag(matrix))
    expected = {
        "prediction": np.mean((prediction - target).numpy() ** 2),
        "variance": np.maximum(0, 1 - np.sqrt(np.diag(matrix) + 1e-4)).mean(),
        "covariance": (off_diagonal**2).sum() / (9 * 8),
    }
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value, rel=1e-12)
    total = expected["prediction"] + 25 * expected["variance"] + 2 * expected["covariance"]
    assert parts["loss"].item() == pytest.approx(total, rel=1e-12)


def test_target_gets_no_gradient_and_gradcheck_passes():
    prediction, target, embedding = (draw(6, 4, seed=i).requires_grad_() for i in range(3))
    vicreg_loss(prediction, target, embedding)["loss"].backward()
    assert target.grad is None and prediction.grad is not None

    def loss(prediction, embedding):
        return vicreg_loss(prediction, target.detach(), embedding)["loss"]

    assert torch.autograd.gradcheck(loss, (prediction, embedding))


def test_collapse_costs_all_of_the_variance_term():
    parts = vicreg_loss(torch.zeros(8, 3), torch.zeros(8, 3), torch.ones(8, 5))
    assert parts["variance"].item() == pytest.approx(0.99)
    assert parts["covariance"] == 0


def test_one_sample_gives_numbers():
    embedding = torch.randn(1, 5, requires_grad=True)
    parts = vicreg_loss(torch.zeros(1, 3), torch.zeros(1, 3), embedding)
    parts["loss"].backward()
    assert all(part.isfinite() for part in parts.values()) and embedding.grad.isfinite().all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        vicreg_loss(torch.zeros(4, 3), torch.zeros(3), torch.zeros(4, 3))


def test_autocast_does_not_touch_the_covariance():
    embedding = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) + 10
    plain = vicreg_loss(embedding, embedding, embedding)["covariance"]
    with torch.autocast("cpu", torch.bfloat16):
        assert vicreg_loss(embedding, embedding, embedding)["covariance"] == plain
