"""VICReg (Bardes, Ponce & LeCun 2022, arXiv:2105.04906) in its joint-embedding predictive form.

A predictor's output meets the output of an exponential-moving-average encoder; variance and covariance
of the online embedding keep it from collapsing.
"""

import torch
from torch import Tensor

from pretrain.distributed import sum_over_ranks
from pretrain.objectives.batch import as_statistic_dtype, covariance, sample_count


def vicreg_loss(
    prediction: Tensor,
    target: Tensor,
    embedding: Tensor,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> dict[str, Tensor]:
    """prediction + variance_weight · variance + covariance_weight · covariance, exact for all ranks' batch.

    `prediction` and `target` are (B, D), this rank's rows; no gradient flows into `target`. `embedding`
    (B, D') is what variance and covariance are asked of. Returns the scalars `loss`, `prediction`,
    `variance` and `covariance`, equal on all ranks.
    """
    error = mean_squared_error(prediction, target)
    matrix = covariance(embedding)
    hinge = variance_hinge(matrix)
    penalty = covariance_penalty(matrix)
    return {
        "loss": error + variance_weight * hinge + covariance_weight * penalty,
        "prediction": error,
        "variance": hinge,
        "covariance": penalty,
    }


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean over all ranks' rows and dimensions of (prediction - target)², the target held fixed."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have one shape"
        )
    error = as_statistic_dtype(prediction) - as_statistic_dtype(target.detach())
    return sum_over_ranks(error.square().sum()) / (sample_count(prediction) * error.shape[1])


def variance_hinge(matrix: Tensor) -> Tensor:
    """mean_d relu(1 - √(C_dd + 1e-4)) of a covariance matrix (D, D): every dimension wants unit variance."""
    return torch.relu(1 - (matrix.diagonal() + 1e-4).sqrt()).mean()


def covariance_penalty(matrix: Tensor) -> Tensor:
    """Σ_{i≠j} C_ij² / (D(D - 1)) of a covariance matrix (D, D); zero for D = 1."""
    width = len(matrix)
    return (matrix - torch.diag(matrix.diagonal())).square().sum() / max(1, width * (width - 1))
