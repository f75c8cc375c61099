"""The verdict on a cloud of embeddings: flat torus, circle, sphere, isotropic Gaussian, or none of these.

A shape is the verdict if each of a few measured quantities lies in its range (`RULES`). docs/verdict.md lists
how often the verdict is wrong on spaces of known shape, and `error_rates` has these counts.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import centring, dimension, error_rates, graph, homology, landmarks, normality, rank
from eval_suite.geometry.error_rates import ErrorRate
from isotorus.errors import UserError

Array = NDArray[np.floating]

NONE = "none of these"
GAUSSIAN = "isotropic Gaussian"
NEIGHBOURS = 15
"""Number of neighbours of each sample in the graph whose spectrum is used."""
EIGENVALUES = 10
"""Number of eigenvalues of that graph."""
NULL_DRAWS = 20
"""Number of shuffled clouds that the bars of homology are compared with."""
FEWEST = 200
"""Smallest number of distinct samples for a verdict."""


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
    """The ten smallest eigenvalues of that graph's normalised Laplacian, without its zero modes."""
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


@dataclass(frozen=True)
class Verdict:
    """The name of a shape, with the criteria that led to it."""

    name: str
    """A key of `RULES`, `GAUSSIAN` or `NONE`."""
    evidence: dict[str, list[Criterion]]
    """The criteria of every shape, met or not."""
    topology: str
    """Spaces that have these Betti numbers, such as a torus that need not be flat; empty if none is known."""

    error_rate: ErrorRate | None
    """Its error rate at the calibrated setting nearest to this cloud's; None if none is near."""
    calibration: str
    """That setting, or why the error rate is None, as text; empty for `NONE`."""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict, its error rate and its evidence for JSON."""
        return {
            "name": self.name,
            "topology": self.topology,
            "error_rate": self.error_rate.to_json() if self.error_rate else None,
            "calibration": self.calibration,
            "evidence": {shape: [row._asdict() for row in rows] for shape, rows in self.evidence.items()},
        }


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
    "flat torus T²": Shape((1, 2, 1), (1.2, 2.4), (4, 4), 2.0),
    "circle": Shape((1, 1, 0), (0.6, 1.65), (2, 2), 4.0),
    "sphere": Shape((1, 0, 1), (1.2, 2.4), (3, 5), 3.0),
}
"""The manifolds that can be a verdict."""
SPREAD = 1.6
"""Largest allowed ratio of two eigenvalues that are equal on the manifold, from `SPREAD_SAMPLES` samples on.

Sampling splits them by an amount like 1/√n, so fewer samples are allowed more; see `_spread`.
"""
SPREAD_SAMPLES = 1_000
RATIO_TOLERANCE = 0.2
"""Allowed relative error of `Shape.ratio`."""
ISOTROPY = (0.95, 1.05)
"""Range of `Measured.isotropy` of a Gaussian."""
RADIAL = (0.85, 1.15)
"""Range of `Measured.radial` of a Gaussian."""
NORMALITY = (0.0, 1.0)
"""Range of `Measured.normality` of a Gaussian; near 0.3 is typical, since mean and variance are fitted."""


class Evidence(NamedTuple):
    """The measured quantities, with the homology and the points that they come from."""

    measured: Measured
    homology: homology.Homology
    cloud: landmarks.Cloud


def measure(
    x: Array,
    *,
    count: int | None = None,
    draws: int = NULL_DRAWS,
    memory: int = homology.MEMORY,
    jobs: int = 1,
    seed: int = 0,
) -> Evidence:
    """Measure all quantities of the cloud `x` (n, d) that `decide` needs.

    `count`, `draws`, `memory`, `jobs` and `seed` are those of `homology.betti`. Raises UserError as that
    function does, and for fewer than `FEWEST` distinct rows.
    """
    reduced = landmarks.reduce(x, seed=seed)
    if len(reduced) < FEWEST:
        raise UserError(f"{len(reduced)} distinct samples are too few for a verdict; give {FEWEST} or more")
    cloud = landmarks.cloud(reduced, count)
    holes = homology.betti(cloud, draws=draws, memory=memory, jobs=jobs, seed=seed)
    spectrum = graph.laplacian_spectrum(graph.knn_graph(reduced, NEIGHBOURS), EIGENVALUES)
    isotropy, radial = _second_moments(centring.centred(x))
    measured = Measured(
        samples=len(reduced),
        width=np.shape(x)[1],
        landmarks=len(cloud.landmarks),
        null_draws=draws,
        betti={str(field): numbers for field, numbers in holes.betti.items()},
        components=spectrum.components,
        eigenvalues=spectrum.eigenvalues.tolist(),
        dimension=_dimension(cloud.denoised),
        two_nn=dimension.two_nn(reduced),
        isotropy=isotropy,
        radial=radial,
        normality=_normality(reduced),
    )
    return Evidence(measured, holes, cloud)


def decide(measured: Measured) -> Verdict:
    """Return the shape whose criteria are all met; there is at most one, as their Betti numbers differ."""
    evidence = {name: _manifold(measured, shape) for name, shape in RULES.items()}
    evidence[GAUSSIAN] = _gaussian(measured)
    names = [name for name, rows in evidence.items() if all(row.met for row in rows)]
    assert len(names) < 2, names
    name = names[0] if names else NONE
    return Verdict(name, evidence, _topology(measured), *_calibration(name, measured))


def _calibration(name: str, measured: Measured) -> tuple[ErrorRate | None, str]:
    """Return the error rate of the verdict `name` near the settings of `measured`, and words for the two."""
    if name == NONE:
        return None, ""
    usual = landmarks.default_count(measured.samples), NULL_DRAWS
    if (measured.landmarks, measured.null_draws) != usual:
        return None, (
            f"not calibrated for {measured.landmarks} landmarks and {measured.null_draws} null draws; "
            f"the default of these samples is {usual[0]} and {usual[1]}"
        )
    rate = error_rates.nearest(name, measured.samples, measured.width)
    if rate is None:
        return None, f"not calibrated near {measured.samples:,} samples with {measured.width} features"
    return rate, f"calibrated with {rate.samples:,} samples and {rate.width} features"


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


def _within(quantity: str, value: float, limits: tuple[float, float]) -> Criterion:
    """Return the criterion that a value lies within limits, both included."""
    low, high = limits
    return Criterion(quantity, value, f"{low:.3g} to {high:.3g}", bool(low <= value <= high))


def _topology(measured: Measured) -> str:
    """Name spaces with the measured Betti numbers; empty if none is known or the fields differ otherwise."""
    if measured.betti["2"] == [1, 2, 1] and measured.betti["3"] == [1, 1, 0]:
        return "Klein bottle"
    if len({tuple(numbers) for numbers in measured.betti.values()}) > 1:
        return ""
    known = {(1, 2, 1): "torus, or S¹∨S¹∨S²", (1, 1, 0): "circle", (1, 0, 1): "sphere", (1, 0, 0): "no holes"}
    return known.get(tuple(measured.betti["2"]), "")  # type: ignore[arg-type]


def _bands(eigenvalues: list[float], bands: tuple[int, int]) -> tuple[Array, Array]:
    """Split ascending eigenvalues into the first two bands, of these numbers of eigenvalues."""
    # A nearly disconnected graph has eigenvalues near 0: the lower limit keeps ratios finite, and too large.
    values = np.maximum(eigenvalues, 1e-12)
    return values[: bands[0]], values[bands[0] : sum(bands)]


def _dimension(denoised: NDArray[np.float64]) -> float:
    """Return the dimension of a denoised cloud (n, d), denoised once more; 0 for fewer than three points."""
    smooth = landmarks.denoise(denoised)
    # Means of the same points are equal except for rounding.
    smooth = np.unique(np.round(smooth / smooth.std(), 6), axis=0)
    return dimension.mle(smooth, max(len(smooth) // 10, 2)) if len(smooth) > 2 else 0.0


def _second_moments(x: NDArray[np.float64]) -> tuple[float, float]:
    """Return `Measured.isotropy` and `Measured.radial` of the centred rows `x` (n, d)."""
    n, d = x.shape
    squared_radius = np.square(x).sum(axis=1)
    isotropy = rank.participation_ratio(x) * (1 / d + 1 / n)
    return isotropy, float(squared_radius.var() * d / (2 * squared_radius.mean() ** 2))


def _normality(reduced: NDArray[np.float64]) -> float:
    """Return `Measured.normality` of the principal components `reduced` (n, components)."""
    standardised = (reduced - reduced.mean(axis=0)) / reduced.std(axis=0)
    return float(normality.epps_pulley(standardised).mean() / normality.null_mean())
