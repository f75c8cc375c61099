"""The linear probe: logistic regression on frozen features, its strength chosen on validation data."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval_suite.usefulness import logistic, selection
from eval_suite.usefulness.selection import Array, Candidate, FeatureSets

Labels = NDArray[np.integer]

L2_GRID = tuple(float(l2) for l2 in np.logspace(-4, 1, 11))
"""L2 strengths relative to the mean loss, from a nearly free fit to a nearly constant one."""
DOUBLE = 2_000_000
"""Number of training features (n × d) up to which the fit is in float64 with tolerance 1e-8. Above, it is in
float32 with tolerance 1e-6, which changes no probability by more than about 0.001."""


def linear_probe(
    train_x: FeatureSets,
    train_y: Labels,
    val_x: FeatureSets,
    val_y: Labels,
    test_x: FeatureSets,
    test_y: Labels,
    *,
    l2: Sequence[float] = L2_GRID,
    balanced: bool = True,
    classes: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Fit on train at every strength in `l2`, choose the strength on val, report scores on test.

    Features are (n, d), standardised by mean and deviation of train, or several sets of them by name: then
    val chooses a set together with the strength. Targets are class indices (n,) ≥ 0, and `balanced` gives all
    classes the same weight; or 0s and 1s (n, labels), and each label has its own regression. Best on val is
    the largest balanced accuracy, then AUROC (labels: AUROC, then average precision), then the strongest
    penalty. The result is deterministic.

    Returns what `selection.choose` does, with `l2` as the setting, and `converged`, whether every fit did;
    test_scores are probabilities (n, classes). Raises Unmeasurable when train has fewer than two classes.
    """
    selection.require_two_classes(train_y)
    classes = classes or selection.count_classes(train_y, val_y, test_y)
    converged: list[bool] = []

    def candidates() -> Iterator[Candidate]:
        val, test = selection.named(val_x), selection.named(test_x)
        for name, x in selection.named(train_x).items():
            fit = _Fit(x, train_y, l2, balanced, classes, device)
            converged.append(fit.converged)
            for member in np.argsort(l2, kind="stable"):
                yield Candidate(
                    {**selection.label(name), "l2": float(l2[member])},
                    fit.scores(val[name], member),
                    functools.partial(fit.scores, test[name], member),
                    functools.partial(fit.scores, x, member),
                )

    kind = "multiclass" if train_y.ndim == 1 else "multilabel"
    return {**selection.choose(candidates(), val_y, test_y, kind, train_y), "converged": all(converged)}


def predictions(
    x: Array,
    y: Labels,
    held: Array,
    l2: Sequence[float],
    *,
    balanced: bool = True,
    classes: int,
    device: str | torch.device = "cpu",
    tolerance: float | None = None,
    basis: torch.Tensor | None = None,
) -> tuple[list[NDArray[np.float64]], bool]:
    """Fit on `x` (n, d) and `y` as `linear_probe` does, at every strength in `l2`, or to another tolerance.

    `basis` is that of similar samples, to save computing one. Returns the probabilities of the samples `held`
    (m, d) for each strength, and whether every fit converged.
    """
    selection.require_two_classes(y)
    fit = _Fit(x, y, l2, balanced, classes, device, tolerance, basis)
    standardised = fit.tensor(held)
    return [fit.of_standardised(standardised, member) for member in range(len(l2))], fit.converged


def linear_layers(
    x: Array, y: Labels, l2: Sequence[float], *, classes: int, device: str | torch.device = "cpu"
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Fit on `x` (n, d) and `y` as `linear_probe` does, and return weight and bias for each strength in `l2`.

    Weights (columns, d) and biases (columns,) map features that are not standardised to the logits of the
    classes, or of the labels. The logit of a class that `y` lacks is constant: that of the least likely class
    at the mean of `x`.
    """
    selection.require_two_classes(y)
    fit = _Fit(x, y, l2, True, classes, device)
    return [fit.layer(member) for member in range(len(l2))]


def basis(x: Array, device: str | torch.device = "cpu") -> torch.Tensor:
    """Return the basis (d, d) in which the probe solves for features `x` (n, d), where n ≥ d."""
    standardised = selection.standardiser(x)(x)
    return logistic.eigenbasis(torch.as_tensor(standardised, dtype=torch.float64, device=device), whole=True)


class _Fit:
    """Logistic regressions on one feature set, one for each strength."""

    def __init__(
        self,
        x: Array,
        y: Labels,
        l2: Sequence[float],
        balanced: bool,
        classes: int,
        device: str | torch.device,
        tolerance: float | None = None,
        basis: torch.Tensor | None = None,
    ) -> None:
        self._device, self._classes = device, classes
        double = x.size <= DOUBLE
        self._dtype = torch.float64 if double else torch.float32
        self._standardise = selection.standardiser(x)
        weight = np.ones(len(y))
        self._present: Labels | None = None
        if y.ndim == 1:
            self._present, y = np.unique(y, return_inverse=True)
            counts = np.bincount(y)
            weight = (len(y) / (len(counts) * counts))[y] if balanced else weight
        self._solution = logistic.solve(
            self.tensor(x),
            torch.as_tensor(y, device=device),
            l2,
            torch.as_tensor(weight, dtype=self._dtype, device=device),
            None if self._present is None else len(self._present),
            tolerance=tolerance or (1e-8 if double else 1e-6),
            basis=basis,
        )
        self.converged = bool(self._solution.converged.all())

    def scores(self, x: Array, member: int) -> NDArray[np.float64]:
        """Return probabilities (m, classes) or (m, labels) for features (m, d) and strength `member`."""
        return self.of_standardised(self.tensor(x), member)

    def of_standardised(self, x: torch.Tensor, member: int) -> NDArray[np.float64]:
        """Return the same for features that `tensor` has standardised."""
        weight, bias = self._solution.weight[member], self._solution.bias[member]
        if self._present is None:
            return (x @ weight + bias).sigmoid().double().cpu().numpy()
        spread = np.zeros((len(x), self._classes))
        spread[:, self._present] = logistic.probabilities(x, weight, bias).double().cpu().numpy()
        return spread

    def layer(self, member: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weight (columns, d) and bias (columns,) that map features, not standardised, to logits."""
        weight = self._solution.weight[member].double().cpu().numpy().T
        bias = self._solution.bias[member].double().cpu().numpy()
        if self._present is not None:
            if len(weight) == 1:  # a single row gives the log-odds of the second of two classes
                weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
            spread, own = np.zeros((self._classes, weight.shape[1])), np.full(self._classes, bias.min())
            spread[self._present], own[self._present] = weight, bias
            weight, bias = spread, own
        return selection.unstandardised(weight, bias, self._standardise)

    def tensor(self, x: Array) -> torch.Tensor:
        """Return features (m, d), standardised by mean and deviation of the fitted features."""
        return torch.as_tensor(self._standardise(x), dtype=self._dtype, device=self._device)
