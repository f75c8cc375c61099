"""The shapes that a cloud can have, and the criteria of each: measured quantities and their ranges."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry.flat_torus import fitted

Array = NDArray[np.floating]

GAUSSIAN = "isotropic Gaussian"
CIRCLE = "circle"
SQUARE = "flat torus T²"
RECTANGULAR = "rectangular flat torus T²"
FLAT_TORI = (SQUARE, RECTANGULAR)
"""The verdicts on flat tori; in the second one the circles have different radii."""


@dataclass(frozen=True)
class Measured:
    """The measured quantities that a verdict depends on, ready for JSON."""

    samples: int
    """Number of distinct samples."""
    width: int
    """Number of features of a sample."""
    landmarks: int
    """Number of landmarks that homology was computed on."""
    null_draws: int
    """Number of shuffled clouds that the bars of homology were compared with."""
    betti: dict[str, list[int]]
    """Betti numbers in dimensions 0, 1 and 2, over the fields "2" (Z/2) and "3" (Z/3)."""
    components: int
    """Number of components of the graph of the 15 nearest neighbours of the principal components."""
    eigenvalues: list[float]
    """The smallest eigenvalues of that graph's normalised Laplacian, without its zero modes.

    There are sixteen; results of earlier versions have ten.
    """
    dimension: float
    """Maximum likelihood dimension after denoising twice, with a tenth of the samples as neighbours."""
    two_nn: float
    """TwoNN dimension of the principal components; no rule uses it, as noise counts as dimensions here."""
    isotropy: float
    """Participation ratio over that of n samples of an isotropic Gaussian in R^d, 1 / (1/d + 1/n)."""
    radial: float
    """Variance of the squared distance to the mean, over that of an isotropic Gaussian, 2 (tr C)² / d."""
    normality: float
    """Mean Epps-Pulley statistic of the standardised principal components over its mean for N(0, 1)."""
    shortened: float = 1.0
    """Factor by which the long circle of a torus was shortened before homology (`flat_torus.shortened`)."""


class Criterion(NamedTuple):
    """One condition of a shape: a quantity with its value and range."""

    quantity: str
    """Name of the quantity."""
    value: Any
    """Its measured value."""
    expected: str
    """The range or value that the shape demands, as text."""
    met: bool
    """Whether the value is in that range."""


class Shape(NamedTuple):
    """Known properties of a closed manifold: Betti numbers, dimension, and spectrum of its Laplacian."""

    betti: tuple[int, int, int]
    """Betti numbers in dimensions 0, 1 and 2."""
    dimension: tuple[float, float]
    """Range of the measured dimension."""
    bands: tuple[int, int]
    """Multiplicities of the first two distinct eigenvalues above 0."""
    ratio: float
    """The second of these eigenvalues over the first."""


RULES = {
    SQUARE: Shape((1, 2, 1), (1.2, 2.4), (4, 4), 2.0),
    CIRCLE: Shape((1, 1, 0), (0.6, 1.65), (2, 2), 4.0),
    "sphere": Shape((1, 0, 1), (1.2, 2.4), (3, 5), 3.0),
}
"""The manifolds that are judged by two bands of eigenvalues."""
SPREAD = 1.6
"""Largest allowed ratio of two eigenvalues that are equal on the manifold, from `SPREAD_SAMPLES` samples on.

Sampling splits them by an amount like 1/√n, so fewer samples are allowed more; see `_spread`.
"""
SPREAD_SAMPLES = 1_000
"""Number of samples from which on `SPREAD` and `FIT_ERROR` apply unchanged."""
RATIO_TOLERANCE = 0.2
"""Allowed relative error of `Shape.ratio`."""
CIRCLE_EIGENVALUES, CIRCLE_ERROR = 8, 0.28
"""Number of eigenvalues that are compared with those of a circle, and the largest error (`_circle_error`)."""
RATIOS = (1.0, 3.5)
"""Range of the ratio of a rectangular torus; beyond it a spectrum is hard to tell from a circle's."""
FIT_ERROR = 0.063
"""Largest error of the fit of a rectangular torus (`fitted.Fit.error`), from `SPREAD_SAMPLES` samples on.

With fewer samples it grows like 1/√n, as `SPREAD` does.
"""
SHORTENED_FROM = 1.25
"""Ratio of a fitted torus from which its long circle is shortened before homology."""
ISOTROPY = (0.95, 1.05)
"""Range of `Measured.isotropy` of a Gaussian."""
RADIAL = (0.85, 1.15)
"""Range of `Measured.radial` of a Gaussian."""
NORMALITY = (0.0, 1.0)
"""Range of `Measured.normality` of a Gaussian; near 0.3 is typical, since mean and variance are fitted."""


def criteria(measured: Measured, fit: fitted.Fit | None) -> dict[str, list[Criterion]]:
    """Return the criteria of every shape, met or not; `fit` is that of `fitted_torus`."""
    return {
        **{name: _manifold(measured, shape) for name, shape in RULES.items()},
        CIRCLE: [*_manifold(measured, RULES[CIRCLE]), _circle(measured)],
        RECTANGULAR: _rectangular(measured, fit),
        GAUSSIAN: _gaussian(measured),
    }


def fitted_torus(measured: Measured) -> fitted.Fit | None:
    """Return the rectangular torus that fits the measured eigenvalues; None if the graph is not connected."""
    if measured.components > 1 or len(measured.eigenvalues) < fitted.FEWEST:
        return None
    return fitted.rectangle(measured.eigenvalues, measured.samples)


def shortening(eigenvalues: Array, components: int, samples: int) -> float:
    """Return the factor by which a cloud is shortened: 1 unless its spectrum fits a rectangular torus."""
    if components > 1 or len(eigenvalues) < fitted.FEWEST:
        return 1.0
    fit = fitted.rectangle(eigenvalues, samples)
    oblong = fit.error <= _most(samples) and SHORTENED_FROM <= fit.ratio <= RATIOS[1]
    return fit.ratio if oblong else 1.0


def nearest(measured: Measured, evidence: dict[str, list[Criterion]]) -> str:
    """Say which shape the cloud is nearest to and what it lacks; empty if nothing is near."""
    fields = len(measured.betti)
    homology = [name for name, rows in evidence.items() if all(row.met for row in rows[:fields])]
    if SQUARE in homology:
        skew = measured.components == 1 and fitted.lattice(measured.eigenvalues, measured.samples)
        if skew and skew.skew and skew.error <= _most(measured.samples):
            return (
                "a flat torus that is not rectangular: a torus's homology and the spectrum of a lattice of "
                f"angle {skew.angle:.0f}°"
            )
        return f"a torus's homology, not a flat one's spectrum: {_lacking(evidence[RECTANGULAR])}"
    if any(all(row.met for row in evidence[name][fields:]) for name in FLAT_TORI):
        return f"a flat torus's spectrum, not its homology: {_lacking(evidence[RECTANGULAR][:fields])}"
    if homology and homology[0] != GAUSSIAN:  # no holes are no sign of a Gaussian
        return f"{homology[0]} by its homology, but {_lacking(evidence[homology[0]])}"
    return ""


def _manifold(measured: Measured, shape: Shape) -> list[Criterion]:
    """Return the criteria of a closed manifold."""
    first, second = _bands(measured.eigenvalues, shape.bands)
    ratio = float(second.mean() / first.mean())
    spread = _spread(measured.samples)
    low, high = (shape.ratio * (1 + sign * RATIO_TOLERANCE) for sign in (-1, 1))
    return [
        *_betti(measured, shape.betti),
        _within("intrinsic dimension", measured.dimension, shape.dimension),
        Criterion("components of the graph", measured.components, "1", measured.components == 1),
        _within(f"spread of λ₁…λ{shape.bands[0]}", float(first.max() / first.min()), (1, spread)),
        _within(f"spread of the next {shape.bands[1]}", float(second.max() / second.min()), (1, spread)),
        _within("ratio of these bands", ratio, (low, high)),
    ]


def _circle(measured: Measured) -> Criterion:
    """Return the criterion that tells a circle from a Möbius strip, which has the same first two bands."""
    error = _circle_error(measured.eigenvalues)
    return _within(f"error of λ₁…λ{CIRCLE_EIGENVALUES} against a circle's", error, (0, CIRCLE_ERROR))


def _circle_error(eigenvalues: Array | list[float]) -> float:
    """Return the standard deviation of log(λ / k²), where k² are a circle's: 1, 1, 4, 4, 9, 9, 16, 16."""
    known = np.maximum(eigenvalues[:CIRCLE_EIGENVALUES], 1e-12)
    squares = np.square(np.arange(len(known)) // 2 + 1)
    return float(np.log(known / squares).std())


def _rectangular(measured: Measured, fit: fitted.Fit | None) -> list[Criterion]:
    """Return the criteria of a product of two circles, with the torus that fits best."""
    return [
        *_betti(measured, RULES[SQUARE].betti),
        _within("intrinsic dimension", measured.dimension, RULES[SQUARE].dimension),
        Criterion("components of the graph", measured.components, "1", measured.components == 1),
        _within("ratio of the circles", fit and fit.ratio, RATIOS),
        _within("error of the fitted spectrum", fit and fit.error, (0, _most(measured.samples))),
    ]


def _most(samples: int) -> float:
    """Return the largest allowed error of the fit of a rectangular torus."""
    return FIT_ERROR * max(1.0, math.sqrt(SPREAD_SAMPLES / samples))


def _lacking(rows: list[Criterion]) -> str:
    """List the criteria that are not met, with their values and ranges."""

    def short(value: Any) -> str:
        return f"{value:.2g}" if isinstance(value, float) else str(value)

    return "; ".join(f"{row.quantity} {short(row.value)}, not {row.expected}" for row in rows if not row.met)


def _spread(samples: int) -> float:
    """Return the largest allowed ratio of two eigenvalues that are equal on the manifold."""
    return 1 + (SPREAD - 1) * max(1.0, math.sqrt(SPREAD_SAMPLES / samples))


def _gaussian(measured: Measured) -> list[Criterion]:
    """Return the criteria of an isotropic Gaussian."""
    return [
        *_betti(measured, (1, 0, 0)),
        _within("isotropy of the covariance", measured.isotropy, ISOTROPY),
        _within("variance of the squared radius over a Gaussian's", measured.radial, RADIAL),
        _within("Epps-Pulley over its null", measured.normality, NORMALITY),
    ]


def _betti(measured: Measured, expected: tuple[int, int, int]) -> list[Criterion]:
    """Return a criterion for each field: the Betti numbers in dimensions 0, 1 and 2."""
    return [
        Criterion(f"Betti numbers over Z/{field}", numbers, str(list(expected)), numbers == list(expected))
        for field, numbers in measured.betti.items()
    ]


def _within(quantity: str, value: float | None, limits: tuple[float, float]) -> Criterion:
    """Return the criterion that a value lies within limits, both included; a missing value fails it."""
    low, high = limits
    return Criterion(
        quantity, value, f"{low:.3g} to {high:.3g}", value is not None and bool(low <= value <= high)
    )


def _bands(eigenvalues: list[float], bands: tuple[int, int]) -> tuple[Array, Array]:
    """Split ascending eigenvalues into the first two bands, which have these numbers of eigenvalues."""
    # A nearly disconnected graph has eigenvalues near 0: the lower limit keeps ratios finite, and too large.
    values = np.maximum(eigenvalues, 1e-12)
    return values[: bands[0]], values[bands[0] : sum(bands)]
