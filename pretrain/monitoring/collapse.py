"""Measures of collapse for the log, computed at each logged step on its embeddings."""

import logging
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isotorus.device import to_device
from pretrain.engines.step import StepResult
from pretrain.methods.supervised import SupervisedHead
from pretrain.methods.torus import TorusHead
from pretrain.objectives.batch import covariance_and_sums, in_float32
from pretrain.objectives.sigreg import SIGReg, aliased_share

log = logging.getLogger(__name__)

COLLAPSED_STD = 0.01
"""Standard deviation below which an embedding is as useless as a point, relative to its size."""
COLLAPSED_RANK = 1.5
"""Effective rank below which an embedding is as useless as a line."""


class Measured(NamedTuple):
    """Measures over all ranks, still on the device and equal on every rank."""

    scalars: dict[str, Tensor]
    covariance: Tensor
    """Covariance (D, D) of the encoder's output, with all views pooled."""


@torch.no_grad()
def measure(head: nn.Module, result: StepResult, step: int) -> Measured:
    """Return measures of the global batch; every rank calls it, because it sums over ranks.

    `std_min` and `std_median` (over dimensions) describe the encoder's output, with all views pooled, and
    `scale` is the root of the mean square of its numbers. `sigreg_over_null` and `uniformity_over_null` are 1
    for the target distribution. `aliased` is the share of projections that the quadrature's grid mistakes for
    smaller ones.
    """
    embeddings = result.embeddings.flatten(0, -2).float()
    matrix, count, squares = covariance_and_sums(embeddings, embeddings.square().sum())
    std = matrix.diagonal().clamp(min=0).sqrt()
    scalars = {
        "scale": (squares / (count * embeddings.shape[1])).sqrt(),
        "std_min": std.min(),
        "std_median": std.median(),
    }
    if isinstance(head, SupervisedHead):
        del scalars["scale"]  # vectors of few classes may well lie on a line, which is no collapse
    gaussian, projections = head, result.projections
    if isinstance(head, TorusHead) and head.content is not None:
        gaussian, projections = head.content, head.content_projections(projections)
    sigreg = getattr(gaussian, "sigreg", None)
    if isinstance(sigreg, SIGReg) and "sigreg" in result.parts:
        scalars["sigreg_over_null"] = result.parts["sigreg"] / sigreg.null(projections)
        if sigreg.test == "epps_pulley":
            scalars["aliased"] = _aliased(projections, sigreg, step)
    if isinstance(head, TorusHead):
        _, weights = head.frequencies(step)
        scalars["uniformity_over_null"] = result.parts["uniformity"] / float(weights.sum())
    return Measured(scalars, matrix)


def conclude(scalars: dict[str, float], covariance: Tensor) -> dict[str, float]:
    """Return the row of the log that follows from the values of `measure`, on the CPU.

    `effective_rank` is exp of the entropy of the covariance's eigenvalues (Roy & Vetterli 2007), and left out
    where these cannot be computed. `collapsed` is 1 when the embedding is a point or a line; it is left out
    where `measure` gave no `scale`, as for training with labels.
    """
    row = dict(scalars)
    judged = "scale" in row
    collapsed = row["std_median"] < COLLAPSED_STD * row.pop("scale", 0.0)
    try:
        row["effective_rank"] = effective_rank(covariance)
        collapsed |= row["effective_rank"] < COLLAPSED_RANK
    except torch.linalg.LinAlgError as error:  # a measure must not end a run
        log.warning("the effective rank is left out: %s", str(error).split("\n", 1)[0])
    return row | ({"collapsed": float(collapsed)} if judged else {})


@in_float32
def _aliased(z: Tensor, sigreg: SIGReg, step: int) -> Tensor:
    """Return the share of the projections `z` (V, N, K) that are beyond SIGReg's grid in a step."""
    directions = to_device(sigreg.directions(z.shape[-1], step), z.device).to(z.dtype)
    return aliased_share(z @ directions, sigreg.t_max, sigreg.knots)


def effective_rank(covariance: Tensor) -> float:
    """Return exp H(λ/Σλ) of a covariance matrix (D, D) on the CPU; 0 without variance, NaN if it holds NaN.

    It is computed in float64, because solvers in float32 have failed for matrices of low rank. Raises
    `torch.linalg.LinAlgError` if the solver does not converge.
    """
    if not covariance.isfinite().all():
        return math.nan
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


def warnings(row: dict[str, float]) -> list[str]:
    """Return warnings about a logged row, one line each."""
    lines = []
    if row.get("collapsed"):
        rank = f"effective rank {row['effective_rank']:.2f}, " if "effective_rank" in row else ""
        lines.append(
            f"step {row['step']}: the embedding has collapsed ({rank}median std {row['std_median']:.1e}); "
            "raise objective.weight or lower optimizer.lr"
        )
    if row.get("aliased"):
        lines.append(
            f"step {row['step']}: {row['aliased']:.1%} of the projections are beyond SIGReg's grid and look "
            "small to it; lower objective.sigreg.t_max or optimizer.lr"
        )
    return lines
