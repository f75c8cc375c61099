"""Univariate tests of N(0, 1), by name, that SIGReg can use instead of Epps-Pulley.

Each test takes this rank's rows `x` (N, S) and returns the statistic (S,) of the rows of all ranks,
differentiable, in float32 (float64 stays). Small values mean close to N(0, 1). N is the global count, x_(i)
the i-th smallest value, Φ the normal distribution function. `null_mean` gives the mean under N(0, 1).
Shapiro-Wilk and Jarque-Bera ignore location and scale, so alone they do not prevent collapse.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from isotorus.device import constant, numbers, to_device
from pretrain.distributed import gather_over_ranks, sum_over_ranks, sum_together
from pretrain.objectives.batch import in_float32, own_count

# A smaller variance is taken to be 0.
SMALLEST_VARIANCE = 1e-12


@in_float32
def anderson_darling(x: Tensor) -> Tensor:
    """Return A² = -N - (1/N) Σ_i (2i - 1) [log Φ(x_(i)) + log(1 - Φ(x_(N+1-i)))].

    Anderson & Darling 1954.
    """
    x = _sorted(x)
    count = len(x)
    log_below = torch.special.log_ndtr(x)
    log_above = torch.special.log_ndtr(-x).flip(0)
    odd = 2 * _ranks(x) - 1
    return -count - (odd * (log_below + log_above)).sum(0) / count


@in_float32
def cramer_von_mises(x: Tensor) -> Tensor:
    """Return W² = 1/(12N) + Σ_i ((2i - 1)/(2N) - Φ(x_(i)))² (Cramér 1928, von Mises 1931)."""
    return _distance_to_normal(_sorted(x))


@in_float32
def watson(x: Tensor) -> Tensor:
    """Return U² = W² - N (mean Φ(x) - 1/2)², where W² is `cramer_von_mises` (Watson 1961)."""
    x = _sorted(x)
    return _distance_to_normal(x) - len(x) * (torch.special.ndtr(x).mean(0) - 0.5).square()


@in_float32
def shapiro_wilk(x: Tensor) -> Tensor:
    """Return N(1 - W) with W = (Σ_i a_i x_(i))² / Σ_i (x_i - x̄)² (Shapiro & Wilk 1965).

    The coefficients a are Royston's approximation (1992, algorithm AS R94). A sample without variance has W =
    0. Raises `ValueError` for fewer than 3 samples.
    """
    x = _sorted(x)
    count = len(x)
    if count < 3:
        raise ValueError(f"Shapiro-Wilk needs at least 3 samples, got {count}")
    centered = x - x.mean(0)
    spread = centered.square().sum(0)
    equal = spread < count * SMALLEST_VARIANCE
    coefficients = _royston_coefficients_on(x.device, x.dtype, count)
    w = (coefficients @ centered).square() / spread.masked_fill(equal, 1.0)
    return count * (1 - w.masked_fill(equal, 0.0))


@in_float32
def jarque_bera(x: Tensor) -> Tensor:
    """Return N/6 · (g² + (κ - 3)²/4), with the sample's skewness g and kurtosis κ (Jarque & Bera 1980).

    Moments are divided by N. A sample without variance counts as g = κ = 0.
    """
    count, _, variance, third, fourth = _central_moments(x)
    variance = variance.clamp(min=SMALLEST_VARIANCE)
    skewness = third / variance**1.5
    kurtosis = fourth / variance**2
    return count * (skewness.square() + (kurtosis - 3).square() / 4) / 6


@in_float32
def extended_jarque_bera(x: Tensor) -> Tensor:
    """Return Jarque-Bera + N x̄² + (N - 1)(s² - 1)²/2, which also tests for mean 0 and variance 1.

    s² is the variance divided by N - 1. A single sample has none, and that term is 0.
    """
    count, mean, variance, _, _ = _central_moments(x)
    unbiased = variance * count / (count - 1).clamp(min=1)
    return jarque_bera(x) + count * mean.square() + (count - 1) * (unbiased - 1).square() / 2


@in_float32
def moments(x: Tensor) -> Tensor:
    """Return N Σ_{k=1}^4 (mean xᵏ - E Zᵏ)² / Var Zᵏ for Z ~ N(0, 1); each of the four terms has mean 1."""
    sums, count = sum_together(torch.stack([(x**k).sum(0) for k in (1, 2, 3, 4)]), own_count(x))
    expected = numbers(x.device, 0.0, 1.0, 0.0, 3.0)[:, None]
    variance = numbers(x.device, 1.0, 2.0, 15.0, 96.0)[:, None]
    return count * ((sums / count - expected).square() / variance).sum(0)


TESTS: dict[str, Callable[[Tensor], Tensor]] = {
    "anderson_darling": anderson_darling,
    "cramer_von_mises": cramer_von_mises,
    "watson": watson,
    "shapiro_wilk": shapiro_wilk,
    "jarque_bera": jarque_bera,
    "extended_jarque_bera": extended_jarque_bera,
    "moments": moments,
}


def null_mean(test: str, samples: Tensor) -> Tensor | float:
    """Return the mean of a test's statistic over `samples` draws of N(0, 1), a scalar on any device.

    Exact, except for Shapiro-Wilk: it uses Royston's log-normal approximation of 1 - W (1992), which was made
    for 12 to 2000 samples.
    """
    n = samples
    if test == "shapiro_wilk":
        log = n.log()
        mean = 0.0038915 * log**3 - 0.083751 * log**2 - 0.31082 * log - 1.5861
        deviation = (0.0030302 * log**2 - 0.082676 * log - 0.4803).exp()
        return n * (mean + deviation**2 / 2).exp()
    # Moments of skewness and kurtosis of normal samples: Fisher 1930.
    skewness = 6 * (n - 2) / ((n + 1) * (n + 3))
    kurtosis = 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5)) + (6 / (n + 1)) ** 2
    bera = n / 6 * (skewness + kurtosis / 4)
    means: dict[str, Tensor | float] = {
        "anderson_darling": 1.0,
        "cramer_von_mises": 1 / 6,
        "watson": 1 / 12,
        "jarque_bera": bera,
        "extended_jarque_bera": bera + 2,
        "moments": 4.0,
    }
    return means[test]


def _sorted(x: Tensor) -> Tensor:
    """Return the rows of all ranks, each column sorted."""
    own_count(x)  # refuses an empty batch
    return gather_over_ranks(x).sort(dim=0).values


def _distance_to_normal(x: Tensor) -> Tensor:
    """Return the Cramér-von Mises statistic of sorted columns."""
    count = len(x)
    return 1 / (12 * count) + ((2 * _ranks(x) - 1) / (2 * count) - torch.special.ndtr(x)).square().sum(0)


def _ranks(x: Tensor) -> Tensor:
    """Return 1 … N as a column (N, 1)."""
    return torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device)[:, None]


def _central_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return count, mean and the central moments 2, 3 and 4, divided by N, of the rows of all ranks."""
    total, count = sum_together(x.sum(0), own_count(x))
    mean = total / count
    centered = x - mean
    powers = torch.stack([(centered**k).sum(0) for k in (2, 3, 4)])
    variance, third, fourth = (sum_over_ranks(powers) / count).unbind()
    return count, mean, variance, third, fourth


@constant
def _royston_coefficients_on(device: torch.device, dtype: torch.dtype, count: int) -> Tensor:
    """Return `_royston_coefficients` on a device."""
    return to_device(_royston_coefficients(count).to(dtype), device)


def _royston_coefficients(count: int) -> Tensor:
    """Return the Shapiro-Wilk coefficients a (count,) in float64, antisymmetric and of length 1."""
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    scores = torch.special.ndtri((ranks - 0.375) / (count + 0.25))
    square = scores @ scores
    if count == 3:
        return torch.tensor([-math.sqrt(0.5), 0.0, math.sqrt(0.5)], dtype=torch.float64)
    u = 1 / math.sqrt(count)
    ends = [scores[-1] / square.sqrt() + _polynomial(u, 0.221157, -0.147981, -2.071190, 4.434685, -2.706056)]
    if count > 5:
        ends += [
            scores[-2] / square.sqrt() + _polynomial(u, 0.042981, -0.293762, -1.752461, 5.682633, -3.582633)
        ]
    fixed = len(ends)
    rest = square - 2 * scores[-fixed:].square().sum()
    coefficients = scores * ((1 - 2 * sum(end**2 for end in ends)) / rest).sqrt()
    for i, end in enumerate(ends):
        coefficients[i], coefficients[-1 - i] = -end, end
    return coefficients


def _polynomial(u: float, *coefficients: float) -> float:
    """Return Σ_i c_i u^i for i = 1, 2, …."""
    return sum(c * u ** (i + 1) for i, c in enumerate(coefficients))
