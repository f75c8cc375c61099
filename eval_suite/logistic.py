"""Multinomial logistic regression at a whole grid of L2 strengths, solved together to convergence.

One batched L-BFGS (Nocedal & Wright, algorithm 7.5) over all members of the grid: every evaluation is one
matrix product for the whole grid. Features are first rotated into the eigenbasis of their Gram matrix,
which changes nothing in the optimum (the penalty is rotation invariant), drops directions that carry no
data, and makes a diagonal bound of the Hessian (Böhning 1992) a good preconditioner.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

HISTORY = 10


class Solution(NamedTuple):
    """Weights (grid, d, columns), biases (grid, columns) and whether each member converged (grid,).

    `columns` is the number of classes, or 1 for two classes: then it is the log-odds of class 1.
    """

    weight: Tensor
    bias: Tensor
    converged: Tensor


def solve(
    x: Tensor,
    y: Tensor,
    l2: Sequence[float],
    sample_weight: Tensor,
    classes: int,
    *,
    max_iterations: int = 300,
    tolerance: float = 1e-8,
) -> Solution:
    """Minimise mean_i s_i·CE_i + l2/2·‖W‖² over x (n, d), y (n,) and s (n,), for each strength in `l2`.

    The bias is not penalised. scikit-learn's `LogisticRegression(C=1 / (l2 * n))` has the same optimum,
    its one-column parametrisation of two classes included. A member has converged when the decrease that
    the preconditioned gradient still promises is below `tolerance` times its loss.
    """
    basis = _basis(x)
    z = torch.cat([x @ basis, torch.ones_like(x[:, :1])], dim=1)
    strength = torch.tensor(l2, dtype=x.dtype, device=x.device)
    penalty = strength.repeat(z.shape[1], 1)
    penalty[-1] = 0
    curvature = (sample_weight[:, None] * z.square()).mean(0)[:, None] / 4 + penalty + 1e-12
    problem = _Problem(z, y, sample_weight, penalty, 1 if classes == 2 else classes)
    solution, converged = _minimise(problem, curvature, max_iterations, tolerance)
    weight = torch.einsum("dr,rgc->gdc", basis, solution[:-1])
    return Solution(weight, solution[-1], converged)


def probabilities(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Class probabilities (n, classes) of x (n, d) under one member's weight (d, columns) and bias."""
    logits = x @ weight + bias
    return (F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits).softmax(dim=1)


def _basis(x: Tensor) -> Tensor:
    """Orthonormal columns (d, r) that span the rows of x, by way of the smaller Gram matrix."""
    n, d = x.shape
    values, vectors = torch.linalg.eigh(x.T @ x if d <= n else x @ x.T)
    keep = values > values[-1].clamp_min(1e-30) * max(n, d) * torch.finfo(x.dtype).eps
    values, vectors = values[keep], vectors[:, keep]
    return vectors if d <= n else x.T @ vectors / values.sqrt()


class _Problem(NamedTuple):
    z: Tensor
    y: Tensor
    sample_weight: Tensor
    penalty: Tensor
    columns: int

    def value_and_gradient(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Objective (grid,) and its gradient, at parameters (r, grid, columns)."""
        r, grid, columns = parameters.shape
        n = len(self.z)
        value = 0.5 * (self.penalty[..., None] * parameters.square()).sum((0, 2))
        gradient = self.penalty[..., None] * parameters
        rows = max(1, 20_000_000 // (grid * columns))
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            z, y, s = self.z[part], self.y[part], self.sample_weight[part] / n
            logits = (z @ parameters.reshape(r, -1)).reshape(-1, grid, columns)
            if columns == 1:
                target = y[:, None].to(z.dtype).expand(-1, grid)
                loss = F.binary_cross_entropy_with_logits(logits[..., 0], target, reduction="none")
                residual = (logits[..., 0].sigmoid() - target)[..., None]
            else:
                log_p = logits.log_softmax(-1)
                target = y[:, None, None].expand(-1, grid, 1)
                loss = -log_p.gather(-1, target)[..., 0]
                residual = log_p.exp().scatter_add_(-1, target, -torch.ones_like(log_p[..., :1]))
            value = value + s @ loss
            weighted = (residual * s[:, None, None]).reshape(-1, grid * columns)
            gradient = gradient + (z.T @ weighted).reshape(r, grid, columns)
        return value, gradient


def _minimise(
    problem: _Problem, curvature: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Batched L-BFGS with Armijo backtracking, each member of the grid with its own step length.

    Members leave the batch as they finish, so that the hard ones do not pay for the easy ones.
    """
    grid = curvature.shape[1]
    solution = torch.zeros(
        (*curvature.shape, problem.columns), dtype=curvature.dtype, device=curvature.device
    )
    converged = torch.zeros(grid, dtype=torch.bool, device=curvature.device)
    live = torch.arange(grid, device=curvature.device)
    x = solution.clone()
    value, gradient = problem.value_and_gradient(x)
    stuck = torch.zeros_like(converged)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(max_iterations):
        done = stuck | (_dot(gradient, gradient / curvature[..., None]) <= tolerance * value)
        if done.any():
            solution[:, live[done]] = x[:, done]
            converged[live[done]] = True
            on = ~done
            live, x, value, gradient, curvature = (
                live[on],
                x[:, on],
                value[on],
                gradient[:, on],
                curvature[:, on],
            )
            problem = problem._replace(penalty=problem.penalty[:, on])
            history = [(moved[:, on], change[:, on], rho[on]) for moved, change, rho in history]
        if not len(live):
            return solution, converged
        direction = -_inverse_hessian(gradient, history, curvature)
        slope = _dot(direction, gradient)
        step = torch.ones_like(value)
        for _ in range(30):
            trial = x + step[:, None] * direction
            new_value, new_gradient = problem.value_and_gradient(trial)
            stuck = new_value > value + 1e-4 * step * slope
            if not stuck.any():
                break
            step = torch.where(stuck, step / 2, step)
        # Where rounding hides any further decrease the member stays as it is.
        trial = torch.where(stuck[:, None], x, trial)
        new_gradient = torch.where(stuck[:, None], gradient, new_gradient)
        moved, change = trial - x, new_gradient - gradient
        product = _dot(moved, change)
        history = [*history[1 - HISTORY :], (moved, change, torch.where(product > 0, 1 / product, 0.0))]
        x, value, gradient = trial, torch.where(stuck, value, new_value), new_gradient
    solution[:, live] = x
    return solution, converged


def _inverse_hessian(
    gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]], curvature: Tensor
) -> Tensor:
    """The two-loop recursion; pairs with rho 0 (a member that did not move) leave it unchanged."""
    q = gradient
    alphas = []
    for moved, change, rho in reversed(history):
        alpha = rho * _dot(moved, q)
        q = q - alpha[:, None] * change
        alphas.append(alpha)
    q = q / curvature[..., None]
    if history:
        moved, change, rho = history[-1]
        scale = _dot(change, change / curvature[..., None]) * rho
        q = q / torch.where(scale > 0, scale, 1.0)[:, None]
    for (moved, change, rho), alpha in zip(history, reversed(alphas), strict=True):
        q = q + (alpha - rho * _dot(change, q))[:, None] * moved
    return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over parameters and columns, one for each member (grid,)."""
    return (a * b).sum((0, 2))
