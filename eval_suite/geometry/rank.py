"""Rank measures: how many directions an embedding uses, from the eigenvalues of its covariance.

All functions take float32 or float64 arrays and compute in float64. They raise UserError as
`centring.checked` does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import centring

Array = NDArray[np.floating]

ALPHA_RANGE = (11, 500)
"""First and last index of the eigenvalues that α-ReQ is fitted to: after the leading ones, before noise."""

NEARLY_A_LINE = 1.5
"""Effective rank below which a cloud is nearly a line; while training, `collapsed` has the same limit."""
NEARLY_A_POINT = 1e-3
"""Deviation, as a share of the vectors' length (both root mean squares), below which they are nearly one."""


def eigenspectrum(x: Array) -> NDArray[np.float64]:
    """Return the eigenvalues (d,) of the covariance of `x` (n, d), descending.

    All are 0 if the rows are equal up to rounding, whose directions mean nothing.
    """
    x = centring.checked(x)
    if centring.collapsed(x):
        return np.zeros(x.shape[1])
    values = _squared_singular_values(centring.centred(x)) / max(len(x) - 1, 1)
    return np.pad(values, (0, x.shape[1] - len(values)))


def effective_rank(x: Array) -> float:
    """Return the effective rank of `x` (n, d): exp of the entropy of its covariance's eigenvalues.

    The eigenvalues are divided by their sum first. It is d for an isotropic cloud and 0 for a single point.
    Roy & Vetterli 2007 define it with singular values; this uses eigenvalues, their squares.
    """
    return exp_entropy(eigenspectrum(x))


def participation_ratio(x: Array) -> float:
    """Return (tr C)² / ‖C‖²_F for the covariance C of `x` (n, d).

    It counts directions like `effective_rank`, with less weight on small eigenvalues: d for an isotropic
    cloud, 0 for a single point.
    """
    return _participation(eigenspectrum(x))


def rankme(x: Array, *, centred: bool = False, epsilon: float = 1e-7) -> float:
    """Return RankMe of `x` (n, d), Garrido et al. 2023, arXiv:2210.02885.

    It is exp of the entropy of p = σ / Σσ + ε, with the singular values σ of `x`. The paper does not centre
    `x`, so a large mean vector lowers it; `centred` subtracts the mean first.
    """
    if centred:
        return exp_entropy(np.sqrt(eigenspectrum(x)[: min(x.shape)]), epsilon)
    x = centring.checked(x).astype(np.float64)
    return exp_entropy(np.sqrt(_squared_singular_values(x)), epsilon)


def alpha_req(x: Array, first: int = ALPHA_RANGE[0], last: int = ALPHA_RANGE[1]) -> float:
    """Return α-ReQ of `x` (n, d): the exponent of the decay of its covariance's eigenvalues.

    Agrawal et al. 2022 find good encoders near 1. It is minus the slope of log eigenvalue over log index, by
    least squares over the indices `first` … `last`, counted from 1 and cut at the numerical rank; nan if
    fewer than three indices remain.
    """
    return _decay(eigenspectrum(x), first, last)


def lidar(x: Array, delta: float = 1e-4, epsilon: float = 1e-7) -> float:
    """Return LiDAR of `x` (images, views, d): how many directions distinguish images from each other.

    Thilak et al. 2024, arXiv:2312.04000: exp of the entropy of the eigenvalues of Σ_w^{-½} Σ_b Σ_w^{-½}. Σ_b
    is the covariance of the images' mean vectors, and Σ_w the mean covariance of one image's views plus δI.
    It is 0 if all vectors are equal up to rounding. Raises ValueError for fewer than two images or views.
    """
    x = np.asarray(x)
    if x.ndim != 3 or x.shape[0] < 2 or x.shape[1] < 2:
        raise ValueError(f"lidar takes (objects, views, d) with two or more of the first two, not {x.shape}")
    objects, views, width = x.shape
    if centring.collapsed(centring.checked(x.reshape(-1, width))):
        return 0.0
    x = centring.centred(x.reshape(-1, width)).reshape(x.shape)
    means = x.mean(axis=1)
    within = (x - means[:, None]).reshape(-1, width)
    between = means - means.mean(axis=0)
    values, vectors = np.linalg.eigh(within.T @ within / (objects * (views - 1)))
    whiten = vectors / np.sqrt(np.maximum(values, 0) + delta)
    return exp_entropy(_squared_singular_values(between @ whiten), epsilon)


def summary(x: Array) -> dict[str, Any]:
    """Return all rank measures of `x` (n, d) that need no augmented views, ready for JSON."""
    spectrum = eigenspectrum(x)
    return {
        "samples": len(x),
        "effective_rank": exp_entropy(spectrum),
        "participation_ratio": _participation(spectrum),
        "rankme": rankme(x),
        "rankme_centred": exp_entropy(np.sqrt(spectrum[: min(x.shape)]), 1e-7),
        "alpha_req": _decay(spectrum, *ALPHA_RANGE),
        "alpha_range": list(ALPHA_RANGE),
        "eigenspectrum": spectrum.tolist(),
    }


def nearly_collapsed(x: Array, measured: Mapping[str, Any]) -> str | None:
    """Say how `x` (n, d) has nearly collapsed, given its `summary`; None if it has not.

    It has if its vectors are nearly one point, relative to their length, or nearly on a line though they have
    4 or more features. Vectors that are equal up to rounding have collapsed, not nearly.
    """
    variance, rank, width = sum(measured["eigenspectrum"]), measured["effective_rank"], x.shape[1]
    if not variance:
        return None
    place = float(np.square(x.mean(axis=0, dtype=np.float64)).sum())
    deviation = float(np.sqrt(variance / (place + variance)))
    if deviation < NEARLY_A_POINT:
        return f"the vectors differ by {deviation:.1e} of their length"
    if rank < NEARLY_A_LINE and min(len(x) - 1, width) > 3:
        return f"the vectors lie nearly on a line: effective rank {rank:.2f} of {width}"
    return None


def exp_entropy(values: Array, epsilon: float = 0.0) -> float:
    """Return exp of the entropy of p = values / Σ values + ε: m for m equal values, 0 if all values are 0."""
    total = values.sum()
    if total <= 0:
        return 0.0
    p = values / total + epsilon
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def _participation(spectrum: Array) -> float:
    """Return (Σλ)² / Σλ² of eigenvalues λ, or 0 if all are 0."""
    energy = float(np.square(spectrum).sum())
    return float(spectrum.sum() ** 2 / energy) if energy else 0.0


def _decay(spectrum: Array, first: int, last: int) -> float:
    """Return the exponent of a power law fitted to descending eigenvalues; see `alpha_req`."""
    usable = int((spectrum > spectrum[0] * 1e-10).sum()) if spectrum[0] > 0 else 0
    index = np.arange(first, min(last, usable) + 1)
    if len(index) < 3:
        return float("nan")
    slope, _ = np.polyfit(np.log(index), np.log(spectrum[index - 1]), 1)
    return float(-slope)


def _squared_singular_values(x: Array) -> NDArray[np.float64]:
    """Return the squared singular values (min(n, d),) of x (n, d), descending, by its smaller Gram matrix."""
    gram = x.T @ x if x.shape[1] <= len(x) else x @ x.T
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
