"""How many directions an embedding uses: rank measures of a feature matrix, and its eigenspectrum.

All take float32 or float64 arrays and compute in float64.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

ALPHA_RANGE = (11, 500)
"""Indices of the eigenspectrum that α-ReQ is fitted over: past the few leading ones, before the noise."""


def eigenspectrum(x: Array) -> NDArray[np.float64]:
    """Eigenvalues of the covariance of `x` (n, d), centred, descending; shape (d,)."""
    x = np.asarray(x, dtype=np.float64)
    values = _squared_singular_values(x - x.mean(axis=0)) / max(len(x) - 1, 1)
    return np.pad(values, (0, x.shape[1] - len(values)))


def effective_rank(x: Array) -> float:
    """exp of the entropy of the centred covariance's normalised eigenvalues, for `x` (n, d).

    Roy & Vetterli 2007, on eigenvalues rather than singular values: an isotropic cloud gives d, a cloud
    of one point 0.
    """
    return exp_entropy(eigenspectrum(x))


def participation_ratio(x: Array) -> float:
    """(tr C)² / ‖C‖²_F of the centred covariance C of `x` (n, d); 0 for a cloud of one point."""
    return _participation(eigenspectrum(x))


def rankme(x: Array, *, centred: bool = False, epsilon: float = 1e-7) -> float:
    """RankMe of `x` (n, d): exp H(p), p = σ / Σσ + ε over the singular values of `x` itself.

    Garrido et al. 2023, arXiv:2210.02885. The paper does not centre; `centred` does, which takes the
    mean vector's share out.
    """
    x = np.asarray(x, dtype=np.float64)
    if centred:
        x = x - x.mean(axis=0)
    return exp_entropy(np.sqrt(_squared_singular_values(x)), epsilon)


def alpha_req(x: Array, first: int = ALPHA_RANGE[0], last: int = ALPHA_RANGE[1]) -> float:
    """α-ReQ of `x` (n, d): minus the slope of log eigenvalue over log index; good encoders are near 1.

    Agrawal et al. 2022. Fitted by least squares over indices `first`…`last`, counted from 1 and cut at
    the numerical rank; nan when fewer than three remain.
    """
    return _decay(eigenspectrum(x), first, last)


def lidar(x: Array, delta: float = 1e-4, epsilon: float = 1e-7) -> float:
    """LiDAR of `x` (objects, views, d), the views of one image grouped: the rank of what tells images apart.

    Thilak et al. 2024, arXiv:2312.04000: exp H of the eigenvalues of Σ_w^{-½} Σ_b Σ_w^{-½}, where Σ_b is
    the covariance of the objects' means and Σ_w the mean covariance within an object plus δI. Raises
    ValueError for fewer than two objects or views.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 3 or x.shape[0] < 2 or x.shape[1] < 2:
        raise ValueError(f"lidar takes (objects, views, d) with two or more of the first two, not {x.shape}")
    objects, views, width = x.shape
    means = x.mean(axis=1)
    within = (x - means[:, None]).reshape(-1, width)
    between = means - means.mean(axis=0)
    values, vectors = np.linalg.eigh(within.T @ within / (objects * (views - 1)))
    whiten = vectors / np.sqrt(np.maximum(values, 0) + delta)
    return exp_entropy(_squared_singular_values(between @ whiten), epsilon)


def summary(x: Array) -> dict[str, object]:
    """Every measure of `x` (n, d) that needs no views, ready for JSON."""
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


def exp_entropy(values: Array, epsilon: float = 0.0) -> float:
    """exp H(p) with p = values / Σ values + ε: how many equal values there seem to be; 0 when all are 0."""
    total = values.sum()
    if total <= 0:
        return 0.0
    p = values / total + epsilon
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def _participation(spectrum: Array) -> float:
    energy = float(np.square(spectrum).sum())
    return float(spectrum.sum() ** 2 / energy) if energy else 0.0


def _decay(spectrum: Array, first: int, last: int) -> float:
    usable = int((spectrum > spectrum[0] * 1e-10).sum()) if spectrum[0] > 0 else 0
    index = np.arange(first, min(last, usable) + 1)
    if len(index) < 3:
        return float("nan")
    slope, _ = np.polyfit(np.log(index), np.log(spectrum[index - 1]), 1)
    return float(-slope)


def _squared_singular_values(x: Array) -> NDArray[np.float64]:
    """Of x (n, d), descending, (min(n, d),), from the smaller of its two Gram matrices."""
    gram = x.T @ x if x.shape[1] <= len(x) else x @ x.T
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
