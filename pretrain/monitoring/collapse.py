"""Measures of collapse for the log, computed at logged steps on the embeddings of that step."""

import torch
from torch import Tensor, nn

from pretrain.engines.step import StepResult
from pretrain.methods import TorusHead
from pretrain.objectives.batch import covariance, in_float32
from pretrain.objectives.sigreg import SIGReg, aliased_share

# Below these an embedding is as useless as a point or a line.
COLLAPSED_STD = 0.01
COLLAPSED_RANK = 1.5


@torch.no_grad()
def measure(head: nn.Module, result: StepResult, step: int) -> dict[str, float]:
    """Return measures of the global batch; every rank calls it, because it sums over ranks.

    `effective_rank` (exp of the entropy of the covariance's eigenvalues, Roy & Vetterli 2007) and
    `std_min` and `std_median` (over dimensions) describe the encoder's output, with all views pooled.
    `sigreg_over_null` and `uniformity_over_null` are 1 for the target distribution. `aliased` is the
    share of projections that the quadrature's grid mistakes for smaller ones. `collapsed` is 1 when the
    embedding is a point or a line.
    """
    embeddings = result.embeddings.flatten(0, 1)
    matrix = covariance(embeddings)
    std = matrix.diagonal().clamp(min=0).sqrt()
    scale = embeddings.square().mean().sqrt()
    rank = effective_rank(matrix)
    measured = {
        "effective_rank": rank,
        "std_min": std.min(),
        "std_median": std.median(),
        "collapsed": ((std.median() < COLLAPSED_STD * scale) | (rank < COLLAPSED_RANK)).float(),
    }
    sigreg = getattr(head, "sigreg", None)
    if isinstance(sigreg, SIGReg) and "sigreg" in result.parts:
        measured["sigreg_over_null"] = result.parts["sigreg"] / sigreg.null(result.projections)
        if sigreg.test == "epps_pulley":
            measured["aliased"] = _aliased(result.projections, sigreg, step)
    if isinstance(head, TorusHead):
        _, weights = head.frequencies(step)
        measured["uniformity_over_null"] = result.parts["uniformity"] / weights.sum()
    return {name: value.item() for name, value in measured.items()}


@in_float32
def _aliased(z: Tensor, sigreg: SIGReg, step: int) -> Tensor:
    """Return the share of the projections `z` (V, N, K) that are beyond SIGReg's grid in a step."""
    directions = sigreg.directions(z.shape[-1], step).to(z)
    return aliased_share(z @ directions, sigreg.t_max, sigreg.knots)


@in_float32
def effective_rank(matrix: Tensor) -> Tensor:
    """Return exp H(λ/Σλ) of a covariance matrix (D, D); 0 without variance, NaN if it holds NaN."""
    if not matrix.isfinite().all():
        return torch.full((), torch.nan)
    values = torch.linalg.eigvalsh(matrix).clamp(min=0)
    shares = values / values.sum().clamp(min=1e-30)
    return torch.where(values.sum() > 0, torch.special.entr(shares).sum().exp(), 0.0)


def warnings(row: dict[str, float]) -> list[str]:
    """Return warnings about a logged row, one line each."""
    lines = []
    if row.get("collapsed"):
        lines.append(
            f"step {row['step']}: the embedding has collapsed (effective rank {row['effective_rank']:.2f}, "
            f"median std {row['std_median']:.1e}); raise objective.weight or lower optimizer.lr"
        )
    if row.get("aliased"):
        lines.append(
            f"step {row['step']}: {row['aliased']:.1%} of the projections are beyond SIGReg's grid and look "
            "small to it; lower objective.sigreg.t_max or optimizer.lr"
        )
    return lines
