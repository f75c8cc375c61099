"""Persistent homology: barcodes of a cloud of points, and Betti numbers with p-values.

Betti number k counts the k-dimensional holes: components (0), loops (1), voids (2). A bar is the range of
distances (birth to death) at which a hole exists in the Rips complex of the points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import NDArray
from ripser import ripser
from scipy.sparse import coo_array
from scipy.spatial.distance import pdist, squareform

from eval_suite.geometry import centring, landmarks
from eval_suite.geometry.edge_collapse import collapse
from isotorus.errors import UserError

Array = NDArray[np.floating]
Barcodes = list[NDArray[np.float64]]

FIELDS = (2, 3)
"""Fields Z/p of the Betti numbers: over Z/2 a Klein bottle has those of a torus, over Z/3 it has not."""
MEMORY = 2 * 2**30
"""Bytes of memory that homology may use in all its processes together."""
BYTES_PER_TRIANGLE = 100
"""Bytes that ripser needs in dimension 2 for each triangle; 72 to 96 on tori and spheres of 300 to 1,000
points."""
COARSE = 100
"""Number of points up to which `last_death` computes a barcode up to the enclosing radius."""
PERSISTENCE = 1.3
"""Smallest ratio death / birth of a bar that counts.

It excludes the short-lived 2-spheres that the complex of a circle has near √3 times its radius (ratio 1.03).
"""
JOINED = 0.9
"""Landmarks count as joined at the distance at which this share of their components has merged."""
GAPS = 1.45
"""A hole that closes before this many times `Homology.joined` + `Homology.gap_radius` is a gap.

The largest gap of a flat torus closed at 1.05 to 1.41 times that sum, in 96 draws of 300 to 3,000 samples
with 100 to 300 landmarks. Its two loops closed at 1.8 to 3.3 times that sum from 1,000 samples on, and at 1.5
to 1.7 times with 300 samples; under noise of 0.15 in 768 dimensions they closed at 1.2 times.
"""
CLOSED = 2 * 3**0.5
"""A hole that closes before this many times `Homology.gap_radius` is a gap, for any number of landmarks.

A hole of radius r closes in the Rips complex when an inscribed triangle has its sides, √3 r. Denoising moves
the points around a gap away from it and at most doubles its radius.
"""
SHOWN = 8
"""Number of longest bars in each dimension whose p-values are kept."""


@dataclass(frozen=True)
class Homology:
    """Betti numbers with their evidence: lists by dimension, dictionaries by field (2 stands for Z/2)."""

    betti: dict[int, list[int]]
    """Number of components at the distance `resolution`, then by dimension the number of bars that count.

    A bar counts if its p-value is at most `alpha`, it dies after `resolution`, and its death is at least
    `PERSISTENCE` times its birth.
    """
    p_values: dict[int, list[list[float]]]
    """p-values of the `SHOWN` longest bars: (1 + draws with a bar at least as long) / (1 + draws).

    The list of dimension 0 is empty: shuffling keeps a gap along one column, so it is no null there.
    """
    largest_gap: dict[int, list[int]]
    """For comparison only: number of bars before the largest drop in length; in dimension 0 one more."""
    bars: dict[int, Barcodes]
    """Births and deaths (m, 2), longest bar first; the death is infinite for bars alive at `threshold`."""
    null_longest: list[list[float]]
    """Length of the longest bar over Z/2, by dimension and null draw."""
    alpha: float
    """Significance level of a bar."""
    threshold: float
    """Largest distance of the filtration; holes that are born later are not seen."""
    resolution: float
    """Holes that close up to this distance are gaps.

    It is `GAPS` times the sum of `joined` and `gap_radius`, but at least `CLOSED` times `gap_radius`.
    """
    joined: float
    """Distance at which the share `JOINED` of the landmarks' components has merged."""
    gap_radius: float
    """Radius of the largest gap that chance leaves between samples; see `landmarks.gap_radius`."""
    landmarks: int
    """Number of landmarks."""
    samples: int
    """Number of distinct points that the landmarks were chosen from."""

    @property
    def agreed(self) -> list[int] | None:
        """The Betti numbers by dimension if all fields give the same, else None."""
        first, *others = self.betti.values()
        return first if all(numbers == first for numbers in others) else None

    def to_json(self) -> dict[str, Any]:
        """Return all fields for JSON, with the `SHOWN` longest bars and with None for an infinite death."""

        def shown(bars: Barcodes) -> list[list[list[float | None]]]:
            return [[[b, d if np.isfinite(d) else None] for b, d in rows[:SHOWN].tolist()] for rows in bars]

        texts = {
            name: {str(field): values for field, values in getattr(self, name).items()}
            for name in ("betti", "p_values", "largest_gap")
        }
        return {
            **texts,
            "bars": {str(field): shown(bars) for field, bars in self.bars.items()},
            "null_longest": self.null_longest,
            "alpha": self.alpha,
            "threshold": self.threshold,
            "resolution": self.resolution,
            "joined": self.joined,
            "gap_radius": self.gap_radius,
            "landmarks": self.landmarks,
            "samples": self.samples,
        }


def barcodes(
    x: Array, max_dim: int = 2, coeff: int = 2, threshold: float | None = None, *, memory: int = MEMORY
) -> Barcodes:
    """Return births and deaths (m, 2) in dimensions 0 … `max_dim` of the Rips filtration of `x` (n, d).

    Homology is over Z/`coeff`, for a prime, and up to the distance `threshold`. The default is the enclosing
    radius min_i max_j |x_i − x_j|, beyond which the complex is a cone and has no holes. The death of a bar
    that is alive at the threshold is infinite; bars of length zero are left out. Computed by ripser (Bauer
    2021) on the edges that `edge_collapse.collapse` keeps. Raises UserError as `centring.checked`
    does and when the estimated memory exceeds `memory` bytes.
    """
    x = centring.checked(x).astype(np.float64)
    distances = squareform(pdist(x - x[0]))
    return _barcodes(distances, max_dim, coeff, enclosing_radius(distances, threshold), memory)


def betti(
    x: Array | landmarks.Cloud,
    max_dim: int = 2,
    *,
    count: int | None = None,
    components: int = landmarks.COMPONENTS,
    draws: int = 20,
    alpha: float = 0.05,
    fields: Sequence[int] = FIELDS,
    threshold: float | None = None,
    memory: int = MEMORY,
    jobs: int = 1,
    seed: int = 0,
) -> Homology:
    """Return the Betti numbers of the cloud `x` (n, d) over several fields, with p-values.

    `x` is reduced to `components` principal components and denoised, and `count` landmarks are chosen; if
    that is None, `landmarks.default_count` says how many. A cloud that `landmarks.cloud` prepared is used as
    it is. Each of the `draws` null draws permutes every reduced column on its own and repeats all that
    follows. If `threshold` is None, `last_death` chooses one for each cloud. `jobs` processes share `memory`
    bytes. Raises UserError for clouds that `landmarks.reduce` refuses, for too much memory, and for too few
    `draws` to reach the significance level `alpha`.
    """
    if isinstance(x, landmarks.Cloud):
        cloud = x
    else:
        cloud = landmarks.cloud(landmarks.reduce(x, components, seed), count)
    if (draws + 1) * alpha < 1:
        need = int(np.ceil(1 / alpha)) - 1
        raise UserError(f"{draws} null draws cannot show significance at level {alpha}; take {need} or more")
    count = len(cloud.landmarks)
    if count < 3:
        raise UserError(f"{count} landmarks have no shape; ask for 100 or more")
    distances = squareform(pdist(cloud.denoised[cloud.landmarks]))
    limit = _limit(distances, max_dim, threshold, memory)
    bars = {field: _barcodes(distances, max_dim, field, limit, memory) for field in fields}
    merged = bars[fields[0]][0][1:, 1]
    merged = merged[np.isfinite(merged)]
    if not len(merged):
        raise UserError(f"threshold = {threshold} joins none of {count} landmarks; raise it or leave it out")
    joined, gap_radius = float(np.quantile(merged, JOINED)), landmarks.gap_radius(cloud.denoised)
    resolution = max(GAPS * (joined + gap_radius), CLOSED * gap_radius)
    share = memory // effective_n_jobs(jobs)
    null = Parallel(n_jobs=jobs)(
        delayed(_null_longest)(cloud.reduced, count, max_dim, threshold, share, seed, draw)
        for draw in range(draws)
    )
    longest = np.array(null)
    lengths = {field: [_lengths(rows, limit, k) for k, rows in enumerate(bars[field])] for field in fields}
    p = {field: [_p_values(rows, longest[:, k]) for k, rows in enumerate(lengths[field])] for field in fields}

    def counted(field: int, k: int) -> int:
        births, deaths = bars[field][k].T
        if k == 0:
            return int((deaths > resolution).sum())
        # A bar that is alive at the threshold has an infinite death, which passes both tests.
        return int(((p[field][k] <= alpha) & (deaths > resolution) & (deaths >= PERSISTENCE * births)).sum())

    return Homology(
        betti={field: [counted(field, k) for k in range(max_dim + 1)] for field in fields},
        p_values={field: [[], *(values[:SHOWN].tolist() for values in p[field][1:])] for field in fields},
        largest_gap={
            field: [_largest_gap(rows) + (k == 0) for k, rows in enumerate(lengths[field])]
            for field in fields
        },
        bars=bars,
        null_longest=longest.T.tolist(),
        alpha=alpha,
        threshold=limit,
        resolution=resolution,
        joined=joined,
        gap_radius=gap_radius,
        landmarks=count,
        samples=len(cloud.reduced),
    )


def enclosing_radius(distances: NDArray[np.float64], threshold: float | None = None) -> float:
    """Return min_i max_j of `distances` (n, n), or `threshold` if that is smaller.

    Beyond this distance the Rips complex is a cone, so it has no holes.
    """
    radius = float(distances.max(axis=1).min())
    return radius if threshold is None else min(radius, threshold)


def last_death(distances: NDArray[np.float64], max_dim: int, memory: int = MEMORY) -> float:
    """Return a threshold beyond which no hole is left: the last death among the first half of the points.

    `distances` (m, m) are those of farthest points, so the first half covers the same cloud more coarsely and
    its bars die no earlier. The threshold of the half comes from its own half, and so on down to `COARSE`
    points. Beyond the threshold the complex of a torus becomes costly without new holes in dimensions up to
    `max_dim`. A bar that is still alive at the threshold is given the length that it has there.
    """
    few = -(-len(distances) // 2)
    coarse = distances[:few, :few]
    limit = enclosing_radius(coarse) if few <= COARSE else last_death(coarse, max_dim, memory)
    bars = _barcodes(coarse, max_dim, 2, limit, memory)
    deaths = np.concatenate([bars[0][1:, 1], *(rows[:, 1] for rows in bars[1:])])
    return enclosing_radius(distances, min(limit, float(deaths.max(initial=0))))


def _limit(distances: NDArray[np.float64], max_dim: int, threshold: float | None, memory: int) -> float:
    """Return the largest distance of the filtration: `threshold` or, if that is None, `last_death`."""
    if threshold is None:
        return last_death(distances, max_dim, memory)
    return enclosing_radius(distances, threshold)


def _barcodes(
    distances: NDArray[np.float64], max_dim: int, coeff: int, threshold: float, memory: int
) -> Barcodes:
    """Return the bars (m, 2) of each dimension, longest first; raises UserError as `barcodes` does."""
    if max_dim not in (0, 1, 2):
        raise UserError(f"homology in dimension {max_dim}; dimensions 0, 1 and 2 can be had")
    if coeff < 2 or any(coeff % divisor == 0 for divisor in range(2, isqrt(coeff) + 1)):
        raise UserError(f"homology over Z/{coeff}, which is no field; give a prime, such as 2 or 3")
    # ripser computes in float32, which very large and small distances leave. A power of two changes no digit.
    exponent = int(np.frexp(distances.max())[1])
    edges = collapse(np.ldexp(distances, -exponent), float(np.ldexp(threshold, -exponent)))
    if max_dim > 1:
        _refuse_memory(edges, threshold, exponent, memory)
    rows = [np.ldexp(bars, exponent) for bars in _rips(edges, max_dim, coeff)]
    return [bars[np.argsort(bars[:, 0] - bars[:, 1], kind="stable")] for bars in rows]


def _rips(edges: coo_array, max_dim: int, coeff: int) -> Barcodes:
    """Return the bars of a sparse filtration, by giotto-ph if it is installed and else by ripser.

    Both give the same bars. giotto-ph takes 0.6 of ripser's time, but its licence (AGPL) keeps it optional.
    """
    try:
        from gph import ripser_parallel
    except ImportError:
        return ripser(edges, maxdim=max_dim, coeff=coeff, distance_matrix=True)["dgms"]
    return ripser_parallel(edges, maxdim=max_dim, coeff=coeff, metric="precomputed")["dgms"]


def _refuse_memory(edges: coo_array, threshold: float, exponent: int, memory: int) -> None:
    """Raise UserError, with a threshold that fits, if homology of these edges would exceed `memory` bytes.

    The lengths of `edges` are the distances divided by 2^`exponent`; `threshold` is not divided.
    """
    edges = coo_array((np.ldexp(edges.data.astype(np.float64), exponent), edges.coords), shape=edges.shape)
    need = BYTES_PER_TRIANGLE * _triangles(edges, threshold)
    if need <= memory:
        return
    fits, too_much = 0.0, threshold
    while too_much - fits > 0.01 * threshold:
        middle = (fits + too_much) / 2
        if BYTES_PER_TRIANGLE * _triangles(edges, middle) <= memory:
            fits = middle
        else:
            too_much = middle
    raise UserError(
        f"homology of {edges.shape[0]} points up to distance {threshold:.4g} would take about "
        f"{need / 2**30:.1f} GiB, more than the {memory / 2**30:.1f} GiB allowed; "
        f"set threshold={fits:.4g}, take fewer points, or allow more memory"
    )


def _triangles(edges: coo_array, threshold: float) -> int:
    """Return the number of triangles among the edges no longer than `threshold`."""
    kept = edges.data <= threshold
    ones = np.ones(kept.sum())
    graph = coo_array((ones, (edges.row[kept], edges.col[kept])), shape=edges.shape).tocsr()
    return int((graph @ graph).multiply(graph).sum())


def _null_longest(
    reduced: NDArray[np.float64],
    count: int,
    max_dim: int,
    threshold: float | None,
    memory: int,
    seed: int,
    draw: int,
) -> list[float]:
    """Return the length of the longest bar of each dimension in null draw number `draw`."""
    cloud = landmarks.cloud(landmarks.shuffled(reduced, seed, draw), count)
    distances = squareform(pdist(cloud.denoised[cloud.landmarks]))
    limit = _limit(distances, max_dim, threshold, memory)
    bars = _barcodes(distances, max_dim, 2, limit, memory)
    return [float(_lengths(rows, limit, k).max(initial=0)) for k, rows in enumerate(bars)]


def _lengths(bars: NDArray[np.float64], threshold: float, dimension: int) -> NDArray[np.float64]:
    """Return the lengths of `bars` up to the threshold, longest first.

    In dimension 0 the first bar is left out: one component never dies.
    """
    return (np.minimum(bars[:, 1], threshold) - bars[:, 0])[dimension == 0 :]


def _p_values(lengths: NDArray[np.float64], null_longest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each length the share of draws whose longest bar reaches it: null draws and the data."""
    reached = (null_longest[None, :] >= lengths[:, None]).sum(axis=1)
    return (1 + reached) / (1 + len(null_longest))


def _largest_gap(lengths: NDArray[np.float64]) -> int:
    """Return how many of the longest `lengths` come before the largest drop between two of them."""
    # A bar that is alive at the threshold comes first, even if it is short by then.
    descending = -np.sort(-lengths)
    return int(np.argmax(-np.diff(descending, append=0))) + 1 if len(lengths) else 0
