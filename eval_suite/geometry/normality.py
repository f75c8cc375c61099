"""Tests of how close an embedding is to a Gaussian: sliced Epps-Pulley (SIGReg) and Henze-Zirkler."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from eval_suite.geometry import centring
from isotorus import randomness
from isotorus.randomness import generator
from pretrain.objectives.characteristic_sums import characteristic_sums
from pretrain.objectives.sigreg import null_mean, statistic_from_sums

Array = NDArray[np.floating]

T_MAX, KNOTS = 3.0, 17
"""Upper end and number of knots of the integral in `epps_pulley`."""
SLICES = 256
"""Number of random directions of `sigreg`."""
ROWS = 2000
"""Largest number of rows for Henze-Zirkler, which compares all pairs."""
COMPONENTS = 10
"""Principal components for Henze-Zirkler; with many more its kernel vanishes between any two points."""


class HenzeZirkler(NamedTuple):
    """The statistic of Henze & Zirkler, and its p-value: the probability of a larger one for a Gaussian."""

    statistic: float
    p_value: float


def epps_pulley(x: Array) -> NDArray[np.float64]:
    """Return Epps & Pulley's statistic of each column of `x` (n, s) against N(0, 1), shape (s,).

    It is n ∫ |φ̂(t) - e^{-t²/2}|² e^{-t²/2} dt from -3 to 3, by the trapezoid rule with 17 knots in [0, 3]. φ̂
    is the empirical characteristic function of the column. Its mean for samples of N(0, 1) is `null_mean()`.
    SIGReg averages it over directions (Balestriero & LeCun 2025, arXiv:2511.08544).
    """
    columns = torch.from_numpy(np.asarray(x, dtype=np.float64)).T
    sums = characteristic_sums(columns, T_MAX / (KNOTS - 1), KNOTS, "angle")
    return statistic_from_sums(sums, len(x), T_MAX, KNOTS).numpy()


def sigreg(x: Array, slices: int = SLICES, *, seed: int = 0) -> float:
    """Return the mean of `epps_pulley` over random directions of `x` (n, d), divided by its mean for N(0, 1).

    It is about 1 for samples of N(0, I), and proportional to n for any other distribution.
    """
    return float(epps_pulley(_projected(np.asarray(x, dtype=np.float64), slices, seed)).mean() / null_mean())


def henze_zirkler(x: Array) -> HenzeZirkler:
    """Test with Henze & Zirkler (1990) whether `x` (n, d) is Gaussian, with any mean and covariance.

    The p-value comes from a log-normal distribution with the mean and variance that the statistic has for
    Gaussian samples. If the covariance is singular, the statistic is 4n and the p-value 0. Compares all
    pairs, with n² · 8 bytes of memory.
    """
    x = np.asarray(x, dtype=np.float64)
    n, d = x.shape
    x = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x / n)
    if n <= d or values[0] <= values[-1] * 1e-10:
        return HenzeZirkler(4.0 * n, 0.0)
    whitened = x @ (vectors / np.sqrt(values))
    beta = ((2 * d + 1) * n / 4) ** (1 / (d + 4)) / math.sqrt(2)
    b = beta**2
    norm = (whitened**2).sum(axis=1)
    between = np.maximum(norm[:, None] + norm - 2 * whitened @ whitened.T, 0)
    statistic = (
        np.exp(-b / 2 * between).sum() / n
        - 2 * (1 + b) ** (-d / 2) * np.exp(-b / (2 * (1 + b)) * norm).sum()
        + n * (1 + 2 * b) ** (-d / 2)
    )
    mean, variance = _henze_zirkler_null(d, b)
    spread = math.log1p(variance / mean**2)
    centre = math.log(mean) - spread / 2
    z = (math.log(max(statistic, 1e-300)) - centre) / math.sqrt(spread)
    return HenzeZirkler(float(statistic), 0.5 * math.erfc(z / math.sqrt(2)))


def summary(x: Array, *, seed: int = 0) -> dict[str, Any]:
    """Return all measures of normality of `x` (n, d), ready for JSON.

    - `sigreg`: `x` against N(0, I); depends on scale, isotropy and shape;
    - `isotropy`: the same statistic after centring and one common scale, divided by its value on Gaussian
      draws; depends on differences in width between directions, and on shape;
    - `shape`: the same after standardising each direction, divided by its value on Gaussian draws; depends
      on shape alone;
    - `henze_zirkler` and its `p_value`, from `rows` (at most 2,000) and the leading `components`.

    All but the first are None for fewer than three rows and for rows that are equal up to rounding. Raises
    UserError as `centring.checked` does.
    """
    x = centring.checked(x)
    measured: dict[str, Any] = {"samples": len(x), "sigreg": sigreg(x, seed=seed)}
    if len(x) < 3 or centring.collapsed(x):
        return measured | dict.fromkeys(["isotropy", "shape", "henze_zirkler", "p_value"])
    centred = centring.centred(x)
    scale = math.sqrt((centred**2).mean())
    projected = _projected(centred / scale, SLICES, seed)
    draws = generator(seed, 1).standard_normal((len(x), SLICES))
    draws -= draws.mean(axis=0)
    # Estimating means and scales lowers the statistic, so the Gaussian draws are treated in the same way.
    measured["isotropy"] = float(epps_pulley(projected).mean() / epps_pulley(draws).mean())
    measured["shape"] = float(
        epps_pulley(_standardised(projected)).mean() / epps_pulley(_standardised(draws)).mean()
    )
    part = centred[randomness.rows(len(x), ROWS, seed)]
    _, _, directions = np.linalg.svd(part - part.mean(axis=0), full_matrices=False)
    components = min(COMPONENTS, len(directions), max(1, len(part) // 10))
    test = henze_zirkler(part @ directions[:components].T)
    measured |= {"henze_zirkler": test.statistic, "p_value": test.p_value}
    return measured | {"rows": len(part), "components": components}


def _projected(x: NDArray[np.float64], slices: int, seed: int) -> NDArray[np.float64]:
    """Project `x` (n, d) onto random unit directions; returns (n, slices)."""
    random = generator(seed)
    directions = random.standard_normal((x.shape[1], slices))
    projected: NDArray[np.float64] = x @ (directions / np.linalg.norm(directions, axis=0))
    return projected


def _standardised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each column mean 0 and standard deviation 1; a constant column becomes 0."""
    std = x.std(axis=0)
    result: NDArray[np.float64] = (x - x.mean(axis=0)) / np.where(std > 0, std, 1)
    return result


def _henze_zirkler_null(d: int, b: float) -> tuple[float, float]:
    """Return mean and variance of Henze & Zirkler's statistic for Gaussian samples (1990), with b = β²."""
    a = 1 + 2 * b
    w = (1 + b) * (1 + 3 * b)
    mean = 1 - a ** (-d / 2) * (1 + d * b / a + d * (d + 2) * b**2 / (2 * a**2))
    variance = (
        2 * (1 + 4 * b) ** (-d / 2)
        + 2 * a**-d * (1 + 2 * d * b**2 / a**2 + 3 * d * (d + 2) * b**4 / (4 * a**4))
        - 4 * w ** (-d / 2) * (1 + 3 * d * b**2 / (2 * w) + d * (d + 2) * b**4 / (2 * w**2))
    )
    return mean, variance
