"""How near an embedding is to a Gaussian: the sliced Epps-Pulley statistic over its null, Henze-Zirkler."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from isotorus import randomness
from isotorus.randomness import generator
from pretrain.objectives.characteristic_sums import characteristic_sums
from pretrain.objectives.sigreg import null_mean, statistic_from_sums

Array = NDArray[np.floating]

T_MAX, KNOTS = 3.0, 17
SLICES = 256
ROWS = 2000
"""Most rows of Henze-Zirkler, which compares all pairs."""
COMPONENTS = 10
"""Principal components for Henze-Zirkler: in many more its kernel is 0 between any two points."""


class HenzeZirkler(NamedTuple):
    """The statistic, and the probability of a larger one under normality."""

    statistic: float
    p_value: float


def epps_pulley(x: Array) -> NDArray[np.float64]:
    """Epps & Pulley's statistic of each column of `x` (n, s) against N(0, 1), (s,).

    n ∫ |φ̂(t) - e^{-t²/2}|² e^{-t²/2} dt by the trapezoid rule on 17 knots in [0, 3], doubled: what SIGReg
    averages (Balestriero & LeCun 2025, arXiv:2511.08544).
    """
    columns = torch.from_numpy(np.asarray(x, dtype=np.float64)).T
    sums = characteristic_sums(columns, T_MAX / (KNOTS - 1), KNOTS, "angle")
    return statistic_from_sums(sums, len(x), T_MAX, KNOTS).numpy()


def sigreg(x: Array, slices: int = SLICES, *, seed: int = 0) -> float:
    """The mean of `epps_pulley` over random directions of `x` (n, d), over its null: 1 for N(0, I) draws.

    For any other distribution it grows with n, in proportion.
    """
    return float(epps_pulley(_projected(np.asarray(x, dtype=np.float64), slices, seed)).mean() / null_mean())


def henze_zirkler(x: Array) -> HenzeZirkler:
    """Henze & Zirkler's test (1990) of multivariate normality of `x` (n, d), with any mean and covariance.

    The p-value is of the log-normal distribution with the null's mean and variance. Where the covariance is
    singular the statistic is 4n and the p-value 0. All pairs: memory n² · 8 bytes.
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
    """Of `x` (n, d), ready for JSON.

    - `sigreg`: against N(0, I), as `x` is: scale, isotropy and shape together;
    - `isotropy`: after centring and one common scale, over the same of Gaussian draws: width of the
      directions, and shape;
    - `shape`: every direction standardised for itself, over the same of Gaussian draws: shape alone;
    - `henze_zirkler`, with `p_value`, on at most 2,000 `rows` and the leading `components`.

    A constant embedding has None for all but the first.
    """
    x = np.asarray(x, dtype=np.float64)
    found: dict[str, Any] = {"samples": len(x), "sigreg": sigreg(x, seed=seed)}
    centred = x - x.mean(axis=0)
    scale = math.sqrt((centred**2).mean())
    if scale <= 1e-12 * np.abs(x).max() or len(x) < 3:
        return found | dict.fromkeys(["isotropy", "shape", "henze_zirkler", "p_value"])
    projected = _projected(centred / scale, SLICES, seed)
    draws = generator(seed, 1).standard_normal((len(x), SLICES))
    draws -= draws.mean(axis=0)
    # Estimated means and scales bring the statistic down, so the null is that of draws treated alike.
    found["isotropy"] = float(epps_pulley(projected).mean() / epps_pulley(draws).mean())
    found["shape"] = float(
        epps_pulley(_standardised(projected)).mean() / epps_pulley(_standardised(draws)).mean()
    )
    part = centred[randomness.rows(len(x), ROWS, seed)]
    _, _, directions = np.linalg.svd(part - part.mean(axis=0), full_matrices=False)
    components = min(COMPONENTS, len(directions), max(1, len(part) // 10))
    test = henze_zirkler(part @ directions[:components].T)
    found |= {"henze_zirkler": test.statistic, "p_value": test.p_value}
    return found | {"rows": len(part), "components": components}


def _projected(x: NDArray[np.float64], slices: int, seed: int) -> NDArray[np.float64]:
    random = generator(seed)
    directions = random.standard_normal((x.shape[1], slices))
    projected: NDArray[np.float64] = x @ (directions / np.linalg.norm(directions, axis=0))
    return projected


def _standardised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    std = x.std(axis=0)
    result: NDArray[np.float64] = (x - x.mean(axis=0)) / np.where(std > 0, std, 1)
    return result


def _henze_zirkler_null(d: int, b: float) -> tuple[float, float]:
    """Mean and variance under normality, Henze & Zirkler 1990, with b = β²."""
    a = 1 + 2 * b
    w = (1 + b) * (1 + 3 * b)
    mean = 1 - a ** (-d / 2) * (1 + d * b / a + d * (d + 2) * b**2 / (2 * a**2))
    variance = (
        2 * (1 + 4 * b) ** (-d / 2)
        + 2 * a**-d * (1 + 2 * d * b**2 / a**2 + 3 * d * (d + 2) * b**4 / (4 * a**4))
        - 4 * w ** (-d / 2) * (1 + 3 * d * b**2 / (2 * w) + d * (d + 2) * b**4 / (2 * w**2))
    )
    return mean, variance
