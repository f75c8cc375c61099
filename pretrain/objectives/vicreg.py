"""VICReg (Bardes, Ponce & LeCun 2022, arXiv:2105.04906) with a predictor and a target network.

The output of a predictor is compared with the output of a target network, whose weights are a moving average;
variance and covariance of the embedding prevent collapse.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.objectives.batch import covariance_and_sums, in_float32, own_count


@in_float32
def vicreg_loss(
    prediction: Tensor,
    target: Tensor,
    embedding: Tensor,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Return VICReg's loss and its parts, exact for the batch of all ranks.

    The loss is prediction + variance_weight · variance + covariance_weight · covariance. `prediction` and
    `target` are this rank's rows (B, D); no gradient flows into `target`. Variance and covariance are those
    of `embedding` (B, D'). Returns the scalars `loss`, `prediction`, `variance` and `covariance`, equal on
    all ranks. Raises `ValueError` for shapes that do not fit.
    """
    sums = squared_error(prediction, target), own_count(prediction)
    matrix, _, error, count = covariance_and_sums(embedding, *sums)
    error = error / (count * prediction.shape[1])
    hinge = variance_hinge(matrix)
    penalty = covariance_penalty(matrix)
    return {
        "loss": error + variance_weight * hinge + covariance_weight * penalty,
        "prediction": error,
        "variance": hinge,
        "covariance": penalty,
    }


@in_float32
def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the sum of (prediction - target)² on this rank; `target` is constant."""
    _check_shapes(prediction, target)
    return (prediction - target.detach()).square().sum()


@in_float32
def smooth_l1_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the sum of d²/2 where |d| < 1 and of |d| - 1/2 elsewhere, on this rank; `target` is constant.

    d is prediction - target. Assran et al. 2023 (I-JEPA, arXiv:2301.08243) train with it, on targets that are
    normalised by layer norm; ours are as the target network gives them.
    """
    _check_shapes(prediction, target)
    return F.smooth_l1_loss(prediction, target.detach(), reduction="sum", beta=1.0)


def _check_shapes(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have one shape"
        )


@in_float32
def variance_hinge(matrix: Tensor) -> Tensor:
    """Return mean_d relu(1 - √(C_dd + 1e-4)) of a covariance matrix (D, D): 0 once each variance is 1."""
    return torch.relu(1 - (matrix.diagonal() + 1e-4).sqrt()).mean()


@in_float32
def covariance_penalty(matrix: Tensor) -> Tensor:
    """Return Σ_{i≠j} C_ij² / (D(D - 1)) of a covariance matrix (D, D); 0 for D = 1."""
    width = len(matrix)
    return (matrix - torch.diag(matrix.diagonal())).square().sum() / max(1, width * (width - 1))
