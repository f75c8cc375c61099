"""What an embedding's cloud is: a flat torus, a circle, a sphere, an isotropic Gaussian, or none of these.

A verdict is a conjunction of few measured quantities, each with a range (`RULES`). How often it errs on
spaces of known shape stands in docs/verdict.md.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import dimension, graph, homology, landmarks, normality, rank
from isotorus.errors import UserError

Array = NDArray[np.floating]

NONE = "none of these"
GAUSSIAN = "isotropic Gaussian"
NEIGHBOURS = 15
"""Of the graph whose spectrum is read."""
EIGENVALUES = 10
FEWEST = 200
"""Distinct samples below which nothing is said."""


@dataclass(frozen=True)
class Measured:
    """All that a verdict rests on, ready for JSON."""

    samples: int
    width: int
    landmarks: int
    betti: dict[str, list[int]]
    """Numbers in dimensions 0, 1, 2 by field, "2" and "3"."""
    components: int
    """Of the graph of 15 nearest neighbours in the principal components."""
    eigenvalues: list[float]
    """The ten smallest of the graph's normalised Laplacian, without its zero modes."""
    dimension: float
    """Maximum likelihood at the scale of a tenth of the samples, after denoising twice."""
    two_nn: float
    """TwoNN of the principal components: noise counts here, so no rule reads it."""
    isotropy: float
    """Participation ratio over that of as many samples of an isotropic Gaussian, 1 / (1/d + 1/n)."""
    radial: float
    """Variance of the squared radius over an isotropic Gaussian's, 2 (tr C)² / d."""
    normality: float
    """Mean Epps-Pulley statistic of the standardised principal components over its null."""


class Criterion(NamedTuple):
    """One quantity, its range, and whether it lies there."""

    quantity: str
    value: Any
    expected: str
    met: bool


class ErrorRate(NamedTuple):
    """Counts of the calibration in docs/verdict.md, at its number of samples, landmarks and noise."""

    found: int
    draws: int
    """Samples of the shape; `found` of them were called so."""
    wrong: int
    others: int
    """Samples of other spaces; `wrong` of them were called so."""


CALIBRATION = {
    "flat torus T²": ErrorRate(132, 132, 0, 440),
    "circle": ErrorRate(41, 44, 0, 528),
    "sphere": ErrorRate(44, 44, 0, 528),
    GAUSSIAN: ErrorRate(44, 44, 0, 528),
}


@dataclass(frozen=True)
class Verdict:
    name: str
    evidence: dict[str, list[Criterion]]
    """The criteria of every shape that could have been called."""
    topology: str
    """What the Betti numbers alone allow, such as a torus that is not flat; "" where they say nothing."""

    @property
    def error_rate(self) -> ErrorRate | None:
        """Of the shape that was called; None for none."""
        return CALIBRATION.get(self.name)

    def to_json(self) -> dict[str, Any]:
        evidence = {shape: [row._asdict() for row in rows] for shape, rows in self.evidence.items()}
        rate = self.error_rate._asdict() if self.error_rate else None
        return {"name": self.name, "topology": self.topology, "error_rate": rate, "evidence": evidence}


class Shape(NamedTuple):
    """A closed manifold: its Betti numbers, its dimension, and its Laplacian's first two eigenvalues."""

    betti: tuple[int, int, int]
    dimension: tuple[float, float]
    bands: tuple[int, int]
    """Multiplicities of the first two eigenvalues."""
    ratio: float
    """Second eigenvalue over the first."""


RULES = {
    "flat torus T²": Shape((1, 2, 1), (1.4, 2.4), (4, 4), 2.0),
    "circle": Shape((1, 1, 0), (0.6, 1.65), (2, 2), 4.0),
    "sphere": Shape((1, 0, 1), (1.4, 2.4), (3, 5), 3.0),
}
SPREAD = 1.6
"""Most that the eigenvalues of one band may differ, largest over smallest."""
RATIO_TOLERANCE = 0.2
"""Relative error of the ratio of the bands' means."""
ISOTROPY = (0.95, 1.05)
RADIAL = (0.85, 1.15)
NORMALITY = (0.0, 1.0)
"""Near 0.3 for a Gaussian, as mean and variance are fitted."""


class Evidence(NamedTuple):
    """What was measured, and the barcodes and the cloud that it was measured on."""

    measured: Measured
    homology: homology.Homology
    cloud: landmarks.Cloud


def measure(
    x: Array,
    *,
    count: int = 500,
    draws: int = 20,
    memory: int = homology.MEMORY,
    jobs: int = 1,
    seed: int = 0,
) -> Evidence:
    """What `decide` reads, of `x` (n, d).

    `count`, `draws`, `memory`, `jobs` and `seed` are those of `homology.betti`. Raises UserError as that
    does, and for fewer than `FEWEST` distinct rows.
    """
    reduced = landmarks.reduce(x, seed=seed)
    if len(reduced) < FEWEST:
        raise UserError(f"{len(reduced)} distinct samples are too few for a verdict; give {FEWEST} or more")
    cloud = landmarks.cloud(reduced, count)
    found = homology.significance(cloud, draws=draws, memory=memory, jobs=jobs, seed=seed)
    spectrum = graph.laplacian_spectrum(graph.knn_graph(reduced, NEIGHBOURS), EIGENVALUES)
    isotropy, radial = _second_moments(np.asarray(x, dtype=np.float64))
    measured = Measured(
        samples=len(reduced),
        width=np.shape(x)[1],
        landmarks=len(cloud.landmarks),
        betti={str(field): numbers for field, numbers in found.betti.items()},
        components=spectrum.components,
        eigenvalues=spectrum.eigenvalues.tolist(),
        dimension=_dimension(cloud.denoised),
        two_nn=dimension.two_nn(reduced),
        isotropy=isotropy,
        radial=radial,
        normality=_normality(reduced),
    )
    return Evidence(measured, found, cloud)


def decide(measured: Measured) -> Verdict:
    """The shape whose criteria are all met; the shapes exclude each other by their Betti numbers."""
    evidence = {name: _manifold(measured, shape) for name, shape in RULES.items()}
    evidence[GAUSSIAN] = _gaussian(measured)
    names = [name for name, rows in evidence.items() if all(row.met for row in rows)]
    assert len(names) < 2, names
    return Verdict(names[0] if names else NONE, evidence, _topology(measured))


def _manifold(measured: Measured, shape: Shape) -> list[Criterion]:
    first, second = _bands(measured.eigenvalues, shape.bands)
    ratio = float(second.mean() / first.mean())
    low, high = (shape.ratio * (1 + sign * RATIO_TOLERANCE) for sign in (-1, 1))
    return [
        *_betti(measured, shape.betti),
        _within("intrinsic dimension", measured.dimension, shape.dimension),
        Criterion("components of the graph", measured.components, "1", measured.components == 1),
        _within(f"spread of λ₁…λ{shape.bands[0]}", float(first.max() / first.min()), (1, SPREAD)),
        _within(f"spread of the next {shape.bands[1]}", float(second.max() / second.min()), (1, SPREAD)),
        _within("ratio of these bands", ratio, (low, high)),
    ]


def _gaussian(measured: Measured) -> list[Criterion]:
    return [
        *_betti(measured, (1, 0, 0)),
        _within("isotropy of the covariance", measured.isotropy, ISOTROPY),
        _within("variance of the squared radius over a Gaussian's", measured.radial, RADIAL),
        _within("Epps-Pulley over its null", measured.normality, NORMALITY),
    ]


def _betti(measured: Measured, numbers: tuple[int, int, int]) -> list[Criterion]:
    return [
        Criterion(f"Betti numbers over Z/{field}", found, str(list(numbers)), found == list(numbers))
        for field, found in measured.betti.items()
    ]


def _within(quantity: str, value: float, limits: tuple[float, float]) -> Criterion:
    low, high = limits
    return Criterion(quantity, value, f"{low:g} to {high:g}", bool(low <= value <= high))


def _topology(measured: Measured) -> str:
    if measured.betti["2"] == [1, 2, 1] and measured.betti["3"] == [1, 1, 0]:
        return "Klein bottle"
    if len({tuple(numbers) for numbers in measured.betti.values()}) > 1:
        return ""
    known = {(1, 2, 1): "torus, or S¹∨S¹∨S²", (1, 1, 0): "circle", (1, 0, 1): "sphere", (1, 0, 0): "no holes"}
    return known.get(tuple(measured.betti["2"]), "")  # type: ignore[arg-type]


def _bands(eigenvalues: list[float], bands: tuple[int, int]) -> tuple[Array, Array]:
    # A graph in pieces may have eigenvalues next to 0; the floor keeps ratios finite and far off.
    values = np.maximum(eigenvalues, 1e-12)
    return values[: bands[0]], values[bands[0] : sum(bands)]


def _dimension(denoised: NDArray[np.float64]) -> float:
    smooth = landmarks.denoise(denoised)
    # Points that took the same mean are copies, but for rounding.
    smooth = np.unique(np.round(smooth / smooth.std(), 6), axis=0)
    return dimension.mle(smooth, max(len(smooth) // 10, 2)) if len(smooth) > 2 else 0.0


def _second_moments(x: NDArray[np.float64]) -> tuple[float, float]:
    n, d = x.shape
    squared_radius = np.square(x - x.mean(axis=0)).sum(axis=1)
    isotropy = rank.participation_ratio(x) * (1 / d + 1 / n)
    return isotropy, float(squared_radius.var() * d / (2 * squared_radius.mean() ** 2))


def _normality(reduced: NDArray[np.float64]) -> float:
    standardised = (reduced - reduced.mean(axis=0)) / reduced.std(axis=0)
    return float(normality.epps_pulley(standardised).mean() / normality.null_mean())
