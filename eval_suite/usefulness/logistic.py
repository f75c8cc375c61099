"""Logistic regression for a whole grid of L2 strengths at once, solved to convergence.

Replaces scikit-learn's `LogisticRegression`, which fits one strength after another and only on the CPU; how
much faster this is was not measured. One batched L-BFGS (Nocedal & Wright, algorithm 7.5) fits all strengths,
so every evaluation is one matrix product for the whole grid. Features are first rotated into the eigenbasis
of their Gram matrix. This does not change the optimum, because the penalty is invariant to rotations; it
removes directions without variance and makes the diagonal of the Hessian a good preconditioner. That diagonal
is at first replaced by a bound (Böhning 1992), then evaluated every few iterations.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

HISTORY = 10
"""Steps that L-BFGS remembers."""
REFRESH = 8
"""Iterations between two evaluations of the Hessian's diagonal; one costs about half an iteration."""


class Solution(NamedTuple):
    """Weights (grid, d, columns), biases (grid, columns), and whether each strength converged (grid,).

    For classes there is a column for each class; two classes have a single column, the log-odds of class 1.
    For labels that may occur together each column is the log-odds of one label.
    """

    weight: Tensor
    bias: Tensor
    converged: Tensor


def solve(
    x: Tensor,
    y: Tensor,
    l2: Sequence[float],
    sample_weight: Tensor,
    classes: int | None = None,
    *,
    max_iterations: int = 300,
    tolerance: float = 1e-8,
    basis: Tensor | None = None,
) -> Solution:
    """Minimise mean_i s_i·CE_i + l2/2·‖W‖² for each strength in `l2`, with sample weights s (n,).

    Features are `x` (n, d). `y` holds class indices (n,) below `classes`, or 0s and 1s (n, labels); then CE_i
    is the sum of the labels' binary cross-entropies, so each label has its own regression. The bias is not
    penalised. scikit-learn's `LogisticRegression(C=1 / (l2 * n))` has the same optimum, also for two classes.
    A strength has converged when the decrease that the preconditioned gradient predicts is below `tolerance`
    times its loss. `basis` (d, r) has orthonormal columns that span the features. Every such basis gives the
    same optimum, and the closer it is to their `eigenbasis`, the faster the iterations are.
    """
    basis = eigenbasis(x) if basis is None else basis.to(x.dtype)
    z = torch.cat([x @ basis, torch.ones_like(x[:, :1])], dim=1)
    strength = torch.tensor(l2, dtype=x.dtype, device=x.device)
    penalty = strength.repeat(z.shape[1], 1)
    penalty[-1] = 0
    if y.ndim == 1 and classes == 2:
        y = y[:, None]
    columns = y.shape[1] if y.ndim == 2 else classes
    assert columns is not None
    problem = _Problem(z, y if y.ndim == 1 else y.to(x.dtype), sample_weight, penalty, columns)
    solution, converged = _minimise(problem, max_iterations, tolerance)
    weight = torch.einsum("dr,rgc->gdc", basis, solution[:-1])
    return Solution(weight, solution[-1], converged)


def probabilities(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return class probabilities (n, classes) of `x` (n, d) for one weight (d, columns) and bias."""
    logits = x @ weight + bias
    return (F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits).softmax(dim=1)


def eigenbasis(x: Tensor, whole: bool = False) -> Tensor:
    """Return orthonormal columns (d, r) that span the rows of `x` (n, d), from the smaller Gram matrix.

    With `whole`, for n ≥ d, directions without variance are kept, so that the columns span any other features
    too. Computed in float64, since rounding in float32 would hide directions with a deviation of a few
    percent.
    """
    dtype, x = x.dtype, x.double()
    n, d = x.shape
    values, vectors = torch.linalg.eigh(x.T @ x if d <= n else x @ x.T)
    if whole:
        assert d <= n
        return vectors.to(dtype)
    keep = values > values[-1].clamp_min(1e-30) * max(n, d) * torch.finfo(x.dtype).eps
    values, vectors = values[keep], vectors[:, keep]
    return (vectors if d <= n else x.T @ vectors / values.sqrt()).to(dtype)


class _Problem(NamedTuple):
    """The objective for the strengths of the grid that have not converged yet."""

    z: Tensor
    y: Tensor
    sample_weight: Tensor
    penalty: Tensor
    columns: int

    def value_and_gradient(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective (grid,) and its gradient at parameters (r, grid, columns)."""
        value = 0.5 * (self.penalty[..., None] * parameters.square()).sum((0, 2))
        gradient = self.penalty[..., None] * parameters
        for z, y, s, logits in self._parts(parameters):
            if y.ndim == 2:
                target = y[:, None].expand_as(logits)
                loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
                residual = logits.sigmoid() - target
            else:
                log_p = logits.log_softmax(-1)
                of_class = y[:, None, None].expand(-1, logits.shape[1], 1)
                loss = -log_p.gather(-1, of_class)[..., 0]
                residual = log_p.exp().scatter_add_(-1, of_class, -torch.ones_like(log_p[..., :1]))
            value = value + s @ loss
            weighted = (residual * s[:, None, None]).flatten(1)
            gradient = gradient + (z.T @ weighted).reshape(parameters.shape)
        return value, gradient

    def curvature(self, parameters: Tensor | None = None) -> Tensor:
        """Return the Hessian's diagonal (r, grid, columns) at the parameters; without any, an upper bound."""
        bound = (self.sample_weight[:, None] * self.z.square()).mean(0)[:, None] / 4 + self.penalty + 1e-12
        if parameters is None:
            return bound[..., None].expand(-1, -1, self.columns)
        diagonal = self.penalty[..., None].expand_as(parameters).clone()
        for z, y, s, logits in self._parts(parameters):
            p = logits.sigmoid() if y.ndim == 2 else logits.softmax(-1)
            weighted = ((p - p.square()) * s[:, None, None]).flatten(1)
            diagonal += (z.square().T @ weighted).reshape(parameters.shape)
        return torch.maximum(diagonal, 0.01 * bound[..., None])

    def _parts(self, parameters: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield features, targets, weights and logits (m, grid, columns) for parts of the samples."""
        r, grid, columns = parameters.shape
        rows = max(1, 20_000_000 // (grid * columns))
        for start in range(0, len(self.z), rows):
            part = slice(start, start + rows)
            z = self.z[part]
            logits = (z @ parameters.reshape(r, -1)).reshape(-1, grid, columns)
            yield z, self.y[part], self.sample_weight[part] / len(self.z), logits


def _minimise(problem: _Problem, max_iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Run batched L-BFGS with Armijo backtracking; each strength has its own step length.

    A strength leaves the batch when it has converged. Returns the parameters (r, grid, columns) and whether
    each strength converged (grid,).
    """
    curvature = problem.curvature()
    solution = torch.zeros_like(curvature, memory_format=torch.contiguous_format)
    converged = torch.zeros(curvature.shape[1], dtype=torch.bool, device=curvature.device)
    live = torch.arange(curvature.shape[1], device=curvature.device)
    x = solution.clone()
    value, gradient = problem.value_and_gradient(x)
    stuck = torch.zeros_like(converged)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for iteration in range(max_iterations):
        if iteration and iteration % REFRESH == 0:
            curvature = problem.curvature(x)
        done = stuck | (_dot(gradient, gradient / curvature) <= tolerance * value)
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
        # A strength whose loss cannot decrease any more, because of rounding, stays where it is.
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
    """Multiply the gradient by the inverse Hessian of L-BFGS (two-loop recursion).

    A strength that did not move has rho = 0, so its pairs change nothing.
    """
    q = gradient
    alphas = []
    for moved, change, rho in reversed(history):
        alpha = rho * _dot(moved, q)
        q = q - alpha[:, None] * change
        alphas.append(alpha)
    q = q / curvature
    if history:
        moved, change, rho = history[-1]
        scale = _dot(change, change / curvature) * rho
        q = q / torch.where(scale > 0, scale, 1.0)[:, None]
    for (moved, change, rho), alpha in zip(history, reversed(alphas), strict=True):
        q = q + (alpha - rho * _dot(change, q))[:, None] * moved
    return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return inner products over parameters and columns, (grid,)."""
    return (a * b).sum((0, 2))
