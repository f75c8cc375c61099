"""The verdict on a cloud of embeddings: flat torus, circle, sphere, isotropic Gaussian, or none of these.

A shape is the verdict if each of a few measured quantities lies in its range. docs/verdict.md lists how
often the verdict is wrong on spaces of known shape, and `error_rates` has these counts.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import (
    centring,
    criteria,
    dimension,
    error_rates,
    graph,
    homology,
    landmarks,
    normality,
    rank,
)
from eval_suite.geometry.criteria import FLAT_TORI, GAUSSIAN, RECTANGULAR, RULES, SQUARE, Criterion, Measured
from eval_suite.geometry.error_rates import ErrorRate
from eval_suite.geometry.flat_torus import fitted, shortened
from isotorus.errors import UserError

__all__ = [
    "FLAT_TORI",
    "GAUSSIAN",
    "NONE",
    "RECTANGULAR",
    "RULES",
    "SQUARE",
    "Criterion",
    "Measured",
]

Array = NDArray[np.floating]

NONE = "none of these"
NEIGHBOURS = 15
"""Number of neighbours of each sample in the graph whose spectrum is used."""
EIGENVALUES = fitted.COUNT
"""Number of eigenvalues of that graph."""
NULL_DRAWS = 20
"""Number of shuffled clouds that the bars of homology are compared with."""
FEWEST = 200
"""Smallest number of distinct samples for a verdict."""


@dataclass(frozen=True)
class Verdict:
    """The name of a shape, with the criteria that led to it."""

    name: str
    """A key of `evidence`, or `NONE`."""
    evidence: dict[str, list[Criterion]]
    """The criteria of every shape, met or not."""
    topology: str
    """Spaces that have these Betti numbers, such as a torus that need not be flat; empty if none is known."""
    flat_torus: fitted.Fit | None
    """The product of two circles whose spectrum fits best; None if the graph is not connected."""
    nearest: str
    """What the cloud is near to, and what it lacks, if the verdict is `NONE`; else empty."""
    error_rate: ErrorRate | None
    """Its error rate at the calibrated setting nearest to this cloud's; None if none is near."""
    calibration: str
    """That setting, or why the error rate is None, as text; empty for `NONE`."""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict, its error rate and its evidence for JSON."""
        return {
            "name": self.name,
            "topology": self.topology,
            "flat_torus": self.flat_torus.to_json() if self.flat_torus else None,
            "nearest": self.nearest,
            "error_rate": self.error_rate.to_json() if self.error_rate else None,
            "calibration": self.calibration,
            "evidence": {shape: [row._asdict() for row in rows] for shape, rows in self.evidence.items()},
        }


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
    neighbours = graph.knn_graph(reduced, NEIGHBOURS)
    spectrum = graph.laplacian_spectrum(neighbours, EIGENVALUES)
    factor = criteria.shortening(spectrum.eigenvalues, spectrum.components, len(reduced))
    compact = reduced if factor == 1 else shortened.shortened(reduced, neighbours, factor)
    cloud = landmarks.cloud(compact, count)
    holes = homology.betti(cloud, draws=draws, memory=memory, jobs=jobs, seed=seed)
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
        shortened=factor,
    )
    return Evidence(measured, holes, cloud)


def decide(measured: Measured) -> Verdict:
    """Return the shape whose criteria are all met.

    Shapes of other Betti numbers exclude each other. A torus that is square within the tolerances of
    `criteria.RULES` is `SQUARE`, even if it is `RECTANGULAR` too.
    """
    fit = criteria.fitted_torus(measured)
    evidence = criteria.criteria(measured, fit)
    names = [name for name, rows in evidence.items() if all(row.met for row in rows)]
    name = names[0] if names else NONE
    nearest = "" if names else criteria.nearest(measured, evidence)
    return Verdict(name, evidence, _topology(measured), fit, nearest, *_calibration(name, measured))


def _calibration(name: str, measured: Measured) -> tuple[ErrorRate | None, str]:
    """Return the error rate of the verdict `name` near the settings of `measured`, and a text about it."""
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


def _topology(measured: Measured) -> str:
    """Name spaces with the measured Betti numbers over all fields; empty if no such space is known."""
    if measured.betti["2"] == [1, 2, 1] and measured.betti["3"] == [1, 1, 0]:
        return "Klein bottle"
    if len({tuple(numbers) for numbers in measured.betti.values()}) > 1:
        return ""
    known = {(1, 2, 1): "torus, or S¹∨S¹∨S²", (1, 1, 0): "circle", (1, 0, 1): "sphere", (1, 0, 0): "no holes"}
    return known.get(tuple(measured.betti["2"]), "")  # type: ignore[arg-type]


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
