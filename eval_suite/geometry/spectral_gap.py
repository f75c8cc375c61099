"""The spectrum of a nearest-neighbour graph, compared with those of a flat torus and of a Gaussian.

The torus has a known signature: its smallest eigenvalue has multiplicity four, and so has the next, twice as
large.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import graph, nearest, rank
from isotorus import randomness
from isotorus.randomness import generator

Array = NDArray[np.floating]

COUNT = 10
"""Number of eigenvalues that are reported."""
BAND = 4
"""Multiplicity of the first eigenvalue of a square flat torus."""
REFERENCE_ROWS = 10_000
"""Largest number of rows of a sampled reference.

For more rows its eigenvalues are scaled, as they are proportional to (k / n)^(2 / dimension).
"""
REFERENCE_WORK = 8_000
"""Number of rows in all draws of a reference together: 16 draws at n = 500, one from n = 8,000 on."""
MAX_GAUSSIAN_DIMENSION = 64
"""Largest dimension of the Gaussian reference: in more dimensions its graph hardly changes any more."""


def summary(
    x: Array, k: int = 15, *, subsamples: int = 10, seed: int = 0, recall: float = nearest.RECALL
) -> dict[str, Any]:
    """Return the spectrum of the graph of `x` (n, d) and what follows from it, ready for JSON.

    - `components`: number of components; `largest`: share of the rows in the largest one;
    - `eigenvalues`: the ten smallest without the zero modes; `gap`: the first of them;
    - `torus`, `gaussian`: eigenvalues of references with as many points (`torus_reference`,
      `gaussian_reference`); `gaussian_dimension`: the rounded effective rank of `x`, at most 64;
    - `torus_ratio`, `gaussian_ratio`: mean of the first four eigenvalues over that of the reference;
    - `spread`: fourth eigenvalue over the first, 1 for a square flat torus;
    - `second_band`: mean of eigenvalues 5 to 8 over mean of 1 to 4, 2 for a square flat torus;
    - `gaps`: ratio of each eigenvalue to the one before;
    - `intervals`: for gap, torus_ratio, spread and second_band, from `subsamples` halves of the rows.

    `k` is the number of neighbours and `recall` the share of them that the search must find. The result
    depends on the data and `seed` only. Raises UserError as `graph.knn_graph` does.
    """
    neighbours = nearest.neighbours(x, k, recall=recall)
    spectrum, largest = _spectrum(neighbours.ids)
    n = len(x)
    torus = torus_reference(n, k, seed=seed)
    dimension = int(np.clip(round(rank.effective_rank(x)), 1, MAX_GAUSSIAN_DIMENSION))
    gaussian = gaussian_reference(n, k, dimension, seed=seed)
    values = spectrum.eigenvalues
    measured = measures(values, torus)
    return {
        "samples": n,
        "k": k,
        "recall": neighbours.recall,
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
    """Return gap, torus_ratio, spread and second_band of ascending `eigenvalues`, as `summary` explains them.

    `torus` holds the eigenvalues of the torus reference with the same n and k.
    """
    first = eigenvalues[:BAND]
    return {
        "gap": float(first[0]) if len(first) else float("nan"),
        "torus_ratio": _ratio(band(eigenvalues), band(torus)),
        "spread": _ratio(float(first[-1]), float(first[0])) if len(first) == BAND else float("nan"),
        "second_band": _ratio(band(eigenvalues[BAND:]), band(eigenvalues)),
    }


def band(eigenvalues: NDArray[np.float64]) -> float:
    """Return the mean of the first four eigenvalues; nan for fewer.

    On a torus these four are equal, and sampling splits them. So their mean is closer to the closed form πk /
    (2n) than the first eigenvalue: at n = 500 and k = 10 the mean is 0.97 ± 0.04 of it, the first 0.85 ±
    0.05.
    """
    return float(eigenvalues[:BAND].mean()) if len(eigenvalues) >= BAND else float("nan")


def torus_reference(n: int, k: int, count: int = COUNT, *, seed: int = 0) -> NDArray[np.float64]:
    """Return eigenvalues (count,) of the k-NN graph of `n` uniform points of the flat torus in R⁴, ascending.

    They are the mean of enough random draws that the first four are known to about 1 %. The closed form
    πk / (2n) is not used: it holds for n → ∞ with k / n → 0 and is up to 5 % wrong at n = 500 to 20,000.
    """

    def draw(rows: int, random: np.random.Generator) -> NDArray[np.float64]:
        angles = random.uniform(0, 2 * np.pi, (rows, 2))
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    return _reference(draw, 2, n, k, count, seed)


def gaussian_reference(
    n: int, k: int, dimension: int, count: int = COUNT, *, seed: int = 0
) -> NDArray[np.float64]:
    """Return eigenvalues (count,) of the k-NN graph of `n` points of an isotropic Gaussian, ascending.

    Like those of `torus_reference`, they are the mean of random draws.
    """

    def draw(rows: int, random: np.random.Generator) -> NDArray[np.float64]:
        return random.standard_normal((rows, dimension))

    return _reference(draw, dimension, n, k, count, seed)


def _reference(draw: Any, dimension: int, n: int, k: int, count: int, seed: int) -> NDArray[np.float64]:
    """Return the mean eigenvalues of several clouds from `draw(rows, generator)`, scaled to `n` rows."""
    rows = min(n, REFERENCE_ROWS)
    spectra = []
    for index in range(max(1, REFERENCE_WORK // rows)):
        random = generator(seed, index)
        ids = nearest.neighbours(draw(rows, random), k, recall=1).ids
        spectra.append(graph.laplacian_spectrum(graph.from_neighbours(ids), count).eigenvalues)
    length = min(map(len, spectra))
    mean: NDArray[np.float64] = np.mean([values[:length] for values in spectra], axis=0)
    return mean * (rows / n) ** (2 / dimension)


def _intervals(
    x: Array, k: int, subsamples: int, seed: int, measured: dict[str, float], torus: NDArray[np.float64]
) -> dict[str, list[float]]:
    """Return a 90 % interval [low, high] for each measure, by subsampling; none if a half has too few rows.

    The measure of a random half of the rows scatters around the mean over such halves as the measure of all
    rows scatters around the true value (Politis, Romano & Wolf 1999, ch. 2). The interval is the value times
    the 5th and 95th percentile of the halves over their mean; only this relative scatter is used, because the
    graph of half as many points has another gap.
    """
    half = len(x) // 2
    if half <= k or not subsamples:
        return {}
    halves: list[dict[str, float]] = []
    for index in range(subsamples):
        rows = randomness.rows(len(x), half, seed, index)
        spectrum, _ = _spectrum(nearest.neighbours(x[rows], k).ids)
        halves.append(measures(spectrum.eigenvalues, torus))
    intervals = {}
    for name, value in measured.items():
        values = np.array([half_measures[name] for half_measures in halves])
        intervals[name] = [float(value * q / values.mean()) for q in np.percentile(values, [5, 95])]
    return intervals


def _spectrum(ids: NDArray[np.int64]) -> tuple[graph.Spectrum, float]:
    """Return the spectrum of the graph of neighbours `ids` (n, k), and the share of its largest component."""
    adjacency = graph.from_neighbours(ids)
    _, label = graph.connected_components(adjacency, directed=False)
    return graph.laplacian_spectrum(adjacency, COUNT), float(np.bincount(label).max() / len(ids))


def _ratio(above: float, below: float) -> float:
    """Return above / below, or nan if `below` is not positive."""
    return above / below if below > 0 else float("nan")
