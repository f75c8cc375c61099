"""What the spectrum of a k-NN graph says: gap, references, multiplicities, and an interval for each."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import graph, nearest, rank
from isotorus import randomness
from isotorus.randomness import generator

Array = NDArray[np.floating]

COUNT = 10
"""Eigenvalues that are reported."""
BAND = 4
"""Multiplicity of a square flat torus's first eigenvalue."""
REFERENCE_ROWS = 10_000
"""Rows of the largest reference that is sampled; beyond it eigenvalues go as (k / n)^(2 / dimension)."""
REFERENCE_WORK = 8_000
"""Rows of all draws of a small reference together: 16 draws at n = 500, one from n = 8,000 on."""
MAX_GAUSSIAN_DIMENSION = 64
"""A Gaussian of more dimensions has the same graph to within the scatter of a draw, at a higher price."""


def summary(
    x: Array, k: int = 15, *, subsamples: int = 10, seed: int = 0, recall: float = nearest.RECALL
) -> dict[str, Any]:
    """The graph of `x` (n, d) and all that is read off its spectrum, ready for JSON.

    - `components`, and `largest`, the share of the rows in the largest one;
    - `eigenvalues`: the first ten beside the zero modes; `gap`: the first of them;
    - `torus`, `gaussian`: the eigenvalues of the references (`torus_reference`, `gaussian_reference`, of the
      dimension `gaussian_dimension`), with `torus_ratio` and `gaussian_ratio` from `band` of either;
    - `spread`: λ₄ / λ₁, 1 for a square flat torus, and `second_band`: mean λ₅₋₈ / mean λ₁₋₄, 2 for it;
    - `gaps`: ratios of each eigenvalue to the one before;
    - `intervals` of gap, torus_ratio, spread and second_band, from `subsamples` halves of the rows.

    Deterministic in `seed`. Raises UserError as `graph.knn_graph` does.
    """
    found = nearest.neighbours(x, k, recall=recall)
    spectrum, largest = _spectrum(found.ids)
    n = len(x)
    torus = torus_reference(n, k, seed=seed)
    dimension = int(np.clip(round(rank.effective_rank(x)), 1, MAX_GAUSSIAN_DIMENSION))
    gaussian = gaussian_reference(n, k, dimension, seed=seed)
    values = spectrum.eigenvalues
    measured = measures(values, torus)
    return {
        "samples": n,
        "k": k,
        "recall": found.recall,
        "components": spectrum.components,
        "largest": largest,
        "eigenvalues": values.tolist(),
        **measured,
        "gaussian_ratio": _ratio(band(values), band(gaussian)),
        "gaussian_dimension": dimension,
        "torus": torus.tolist(),
        "gaussian": gaussian.tolist(),
        "gaps": [_ratio(float(b), float(a)) for a, b in pairwise(values)],
        "intervals": _intervals(x, k, subsamples, seed, measured, torus),
    }


def measures(eigenvalues: NDArray[np.float64], torus: NDArray[np.float64]) -> dict[str, float]:
    """What is read off ascending `eigenvalues`, `torus` being those of the reference of the same n and k."""
    first = eigenvalues[:BAND]
    return {
        "gap": float(first[0]) if len(first) else float("nan"),
        "torus_ratio": _ratio(band(eigenvalues), band(torus)),
        "spread": _ratio(float(first[-1]), float(first[0])) if len(first) == BAND else float("nan"),
        "second_band": _ratio(band(eigenvalues[BAND:]), band(eigenvalues)),
    }


def band(eigenvalues: NDArray[np.float64]) -> float:
    """The mean of the first four; nan for fewer.

    On a torus they are one four-fold eigenvalue that sampling splits: at n = 500 and k = 10 the first lies
    0.85 ± 0.05 times the closed form, their mean 0.97 ± 0.04.
    """
    return float(eigenvalues[:BAND].mean()) if len(eigenvalues) >= BAND else float("nan")


def torus_reference(n: int, k: int, count: int = COUNT, *, seed: int = 0) -> NDArray[np.float64]:
    """Eigenvalues (count,) of the k-NN graph of `n` points drawn uniformly from the flat torus in R⁴.

    Sampled rather than the closed form πk / (2n), which holds as n → ∞ with k / n → 0 and is up to 5 % off
    between n = 500 and 20,000. The mean of enough draws that the first four are known to about 1 %.
    """

    def draw(rows: int, random: np.random.Generator) -> NDArray[np.float64]:
        angles = random.uniform(0, 2 * np.pi, (rows, 2))
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    return _reference(draw, 2, n, k, count, seed)


def gaussian_reference(
    n: int, k: int, dimension: int, count: int = COUNT, *, seed: int = 0
) -> NDArray[np.float64]:
    """Eigenvalues (count,) of the k-NN graph of `n` points of an isotropic Gaussian; sampled likewise."""

    def draw(rows: int, random: np.random.Generator) -> NDArray[np.float64]:
        return random.standard_normal((rows, dimension))

    return _reference(draw, dimension, n, k, count, seed)


def _reference(draw: Any, dimension: int, n: int, k: int, count: int, seed: int) -> NDArray[np.float64]:
    rows = min(n, REFERENCE_ROWS)
    found = []
    for index in range(max(1, REFERENCE_WORK // rows)):
        random = generator(seed, index)
        ids = nearest.neighbours(draw(rows, random), k, recall=1).ids
        found.append(graph.laplacian_spectrum(graph.from_neighbours(ids), count).eigenvalues)
    length = min(map(len, found))
    mean: NDArray[np.float64] = np.mean([values[:length] for values in found], axis=0)
    return mean * (rows / n) ** (2 / dimension)


def _intervals(
    x: Array, k: int, subsamples: int, seed: int, measured: dict[str, float], torus: NDArray[np.float64]
) -> dict[str, list[float]]:
    """[low, high] of each measure: its value times the 5th and 95th percentile of half over mean of halves.

    A random half drawn without replacement scatters about the halves' mean as the whole does about the truth
    (Politis, Romano & Wolf 1999, ch. 2). Only the relative scatter is carried over, since a graph of half
    as many points has another gap. Empty where a half has too few rows.
    """
    half = len(x) // 2
    if half <= k or not subsamples:
        return {}
    found: list[dict[str, float]] = []
    for index in range(subsamples):
        rows = randomness.rows(len(x), half, seed, index)
        spectrum, _ = _spectrum(nearest.neighbours(x[rows], k).ids)
        found.append(measures(spectrum.eigenvalues, torus))
    intervals = {}
    for name, value in measured.items():
        halves = np.array([row[name] for row in found])
        intervals[name] = [float(value * q / halves.mean()) for q in np.percentile(halves, [5, 95])]
    return intervals


def _spectrum(ids: NDArray[np.int64]) -> tuple[graph.Spectrum, float]:
    adjacency = graph.from_neighbours(ids)
    _, label = graph.connected_components(adjacency, directed=False)
    return graph.laplacian_spectrum(adjacency, COUNT), float(np.bincount(label).max() / len(ids))


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else float("nan")
