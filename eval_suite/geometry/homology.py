"""Persistent homology: the barcodes of a cloud, and Betti numbers by significance against a shuffle null."""

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

from eval_suite.geometry import landmarks
from eval_suite.geometry.edge_collapse import collapse
from isotorus.errors import UserError

Array = NDArray[np.floating]
Barcodes = list[NDArray[np.float64]]

FIELDS = (2, 3)
"""Coefficients of Betti numbers: over Z/2 a Klein bottle looks like a torus, over Z/3 it does not."""
MEMORY = 2 * 2**30
"""Bytes that homology may take, over all its processes."""
BYTES_PER_TRIANGLE = 100
"""What ripser takes in dimension 2; 72 to 96 were measured on tori and spheres of 300 to 1,000 points."""
COARSE = 100
"""Points that may be few enough for a full barcode, which says beyond which distance nothing is left."""
PERSISTENCE = 1.3
"""Least death / birth of a bar that counts. The complex of a circle has 2-spheres near √3, of ratio 1.03."""
JOINED = 0.9
"""Share of the landmarks' merges that have happened where landmarks are said to join."""
SHOWN = 8
"""Longest bars of a dimension whose p-values are kept."""


@dataclass(frozen=True)
class Homology:
    """Betti numbers with their evidence. Lists go by dimension, dictionaries by field (2: Z/2)."""

    betti: dict[int, list[int]]
    """Components at `resolution`, then the bars that count: p-value ≤ `alpha`, dead after `resolution`,
    death / birth ≥ `PERSISTENCE`."""
    p_values: dict[int, list[list[float]]]
    """Of the `SHOWN` longest bars: the share of null draws, this one included, with one as long. None in
    dimension 0, since shuffled columns keep a gap that lies along one of them."""
    largest_gap: dict[int, list[int]]
    """Diagnostic: how many finite bars lie before the largest drop in length, plus 1 in dimension 0."""
    bars: dict[int, Barcodes]
    """(births, deaths) of shape (m, 2), longest first; death is inf for what lives at `threshold`."""
    null_longest: list[list[float]]
    """Length of the longest finite bar of each null draw, over Z/2."""
    alpha: float
    threshold: float
    """Largest distance of the filtration: nothing born later is seen."""
    resolution: float
    """Twice the distance at which landmarks join: holes that close earlier are gaps between landmarks."""
    landmarks: int
    samples: int
    """Distinct points that the landmarks were chosen from."""

    @property
    def agreed(self) -> list[int] | None:
        """The Betti numbers if both fields give the same, else None."""
        first, *others = self.betti.values()
        return first if all(numbers == first for numbers in others) else None

    def to_json(self) -> dict[str, Any]:
        """All but the full barcodes, of which the `SHOWN` longest bars stay; infinite deaths are None."""

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
            "landmarks": self.landmarks,
            "samples": self.samples,
        }


def barcodes(
    x: Array, max_dim: int = 2, coeff: int = 2, threshold: float | None = None, *, memory: int = MEMORY
) -> Barcodes:
    """Births and deaths (m, 2) in dimensions 0 … `max_dim` of the Rips filtration of the rows of `x` (n, d).

    Over Z/`coeff`, a prime, up to `threshold`: by default the enclosing radius min_i max_j |x_i − x_j|,
    past which the complex is a cone. Deaths are inf for what is alive there. Bars of length zero are left
    out. ripser (Bauer 2021) on the edges that `collapse` leaves. Raises UserError for what is not finite
    and when the estimate of the memory exceeds `memory` bytes.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
        raise UserError(f"barcodes of an array of shape {x.shape}; give finite points, (n, d) with n ≥ 1")
    distances = squareform(pdist(x))
    return _barcodes(distances, max_dim, coeff, enclosing_radius(distances, threshold), memory)


def betti(
    x: Array,
    max_dim: int = 2,
    *,
    count: int = 500,
    components: int = landmarks.COMPONENTS,
    draws: int = 20,
    alpha: float = 0.05,
    fields: Sequence[int] = FIELDS,
    threshold: float | None = None,
    memory: int = MEMORY,
    jobs: int = 1,
    seed: int = 0,
) -> Homology:
    """Betti numbers of the cloud `x` (n, d), over several fields, with p-values against a shuffle null.

    `x` is reduced to `components` principal components and denoised, and `count` landmarks are taken
    (`landmarks.cloud`). In each of `draws` null draws the reduced columns are permuted one by one and go
    the same way. `threshold` None chooses one for each draw (`last_death`). `jobs` processes share
    `memory` bytes. Raises UserError for what `landmarks.reduce` refuses, for too much memory, and when
    `draws` cannot reach the level `alpha`.
    """
    reduced = landmarks.reduce(x, components, seed)
    return significance(
        landmarks.cloud(reduced, count),
        max_dim,
        draws=draws,
        alpha=alpha,
        fields=fields,
        threshold=threshold,
        memory=memory,
        jobs=jobs,
        seed=seed,
    )


def significance(
    cloud: landmarks.Cloud,
    max_dim: int = 2,
    *,
    draws: int = 20,
    alpha: float = 0.05,
    fields: Sequence[int] = FIELDS,
    threshold: float | None = None,
    memory: int = MEMORY,
    jobs: int = 1,
    seed: int = 0,
) -> Homology:
    """`betti` of a cloud that is prepared already."""
    if (draws + 1) * alpha < 1:
        need = int(np.ceil(1 / alpha)) - 1
        raise UserError(f"{draws} null draws cannot show significance at level {alpha}; take {need} or more")
    count = len(cloud.landmarks)
    if count < 3:
        raise UserError(f"{count} landmarks have no shape; ask for 100 or more")
    distances = squareform(pdist(cloud.denoised[cloud.landmarks]))
    limit = _limit(distances, max_dim, threshold, memory)
    found = {field: _barcodes(distances, max_dim, field, limit, memory) for field in fields}
    joined = found[fields[0]][0][1:, 1]
    joined = joined[np.isfinite(joined)]
    if not len(joined):
        raise UserError(f"threshold = {threshold} joins none of {count} landmarks; raise it or leave it out")
    resolution = 2 * float(np.quantile(joined, JOINED))
    share = memory // effective_n_jobs(jobs)
    null = Parallel(n_jobs=jobs)(
        delayed(_null_longest)(cloud.reduced, count, max_dim, threshold, share, seed, draw)
        for draw in range(draws)
    )
    longest = np.array(null)
    lengths = {field: [_lengths(bars, limit, k) for k, bars in enumerate(found[field])] for field in fields}
    p = {field: [_p_values(rows, longest[:, k]) for k, rows in enumerate(lengths[field])] for field in fields}

    def counted(field: int, k: int) -> int:
        births, deaths = found[field][k].T
        if k == 0:
            return int((deaths > resolution).sum())
        # A bar that lives at the threshold dies later still.
        return int(((p[field][k] <= alpha) & (deaths > resolution) & (deaths >= PERSISTENCE * births)).sum())

    return Homology(
        betti={field: [counted(field, k) for k in range(max_dim + 1)] for field in fields},
        p_values={field: [[], *(values[:SHOWN].tolist() for values in p[field][1:])] for field in fields},
        largest_gap={
            field: [_largest_gap(rows) + (k == 0) for k, rows in enumerate(lengths[field])]
            for field in fields
        },
        bars=found,
        null_longest=longest.T.tolist(),
        alpha=alpha,
        threshold=limit,
        resolution=resolution,
        landmarks=count,
        samples=len(cloud.reduced),
    )


def enclosing_radius(distances: NDArray[np.float64], threshold: float | None = None) -> float:
    """min_i max_j of `distances` (n, n), or `threshold` if that is less."""
    radius = float(distances.max(axis=1).min())
    return radius if threshold is None else min(radius, threshold)


def last_death(distances: NDArray[np.float64], max_dim: int, memory: int = MEMORY) -> float:
    """A threshold past which nothing is left: the last death among the first half of the points.

    For `distances` (m, m) of farthest points, whose beginning covers the same cloud more coarsely, so that
    its bars die later if anything; the half's own threshold comes from its half, and so on down to `COARSE`.
    Past that distance a torus's complex is costly (its homotopy type has higher spheres in it), and nothing
    in dimensions up to `max_dim` comes of it. A bar that lives at the threshold all the same counts with
    the length that it has reached.
    """
    few = -(-len(distances) // 2)
    coarse = distances[:few, :few]
    limit = enclosing_radius(coarse) if few <= COARSE else last_death(coarse, max_dim, memory)
    bars = _barcodes(coarse, max_dim, 2, limit, memory)
    deaths = np.concatenate([bars[0][1:, 1], *(rows[:, 1] for rows in bars[1:])])
    return enclosing_radius(distances, min(limit, float(deaths.max(initial=0))))


def _limit(distances: NDArray[np.float64], max_dim: int, threshold: float | None, memory: int) -> float:
    if threshold is None:
        return last_death(distances, max_dim, memory)
    return enclosing_radius(distances, threshold)


def _barcodes(
    distances: NDArray[np.float64], max_dim: int, coeff: int, threshold: float, memory: int
) -> Barcodes:
    """Longest bars first."""
    if max_dim not in (0, 1, 2):
        raise UserError(f"homology in dimension {max_dim}; dimensions 0, 1 and 2 can be had")
    if coeff < 2 or any(coeff % divisor == 0 for divisor in range(2, isqrt(coeff) + 1)):
        raise UserError(f"homology over Z/{coeff}, which is no field; give a prime, such as 2 or 3")
    edges = collapse(distances, threshold)
    if max_dim > 1:
        _refuse_memory(edges, threshold, memory)
    rows = _rips(edges, max_dim, coeff)
    return [bars[np.argsort(bars[:, 0] - bars[:, 1], kind="stable")] for bars in rows]


def _rips(edges: coo_array, max_dim: int, coeff: int) -> Barcodes:
    """By giotto-ph where it is installed, which gives the same bars sooner; its licence keeps it optional."""
    try:
        from gph import ripser_parallel
    except ImportError:
        return ripser(edges, maxdim=max_dim, coeff=coeff, distance_matrix=True)["dgms"]
    return ripser_parallel(edges, maxdim=max_dim, coeff=coeff, metric="precomputed")["dgms"]


def _refuse_memory(edges: coo_array, threshold: float, memory: int) -> None:
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
    """How many triangles the edges up to `threshold` make."""
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
    """The longest bar of each dimension of one null draw."""
    cloud = landmarks.cloud(landmarks.shuffled(reduced, seed, draw), count)
    distances = squareform(pdist(cloud.denoised[cloud.landmarks]))
    limit = _limit(distances, max_dim, threshold, memory)
    bars = _barcodes(distances, max_dim, 2, limit, memory)
    return [float(_lengths(rows, limit, k).max(initial=0)) for k, rows in enumerate(bars)]


def _lengths(bars: NDArray[np.float64], threshold: float, dimension: int) -> NDArray[np.float64]:
    """Longest first, up to the threshold; without the component that never dies."""
    return (np.minimum(bars[:, 1], threshold) - bars[:, 0])[dimension == 0 :]


def _p_values(lengths: NDArray[np.float64], null_longest: NDArray[np.float64]) -> NDArray[np.float64]:
    reached = (null_longest[None, :] >= lengths[:, None]).sum(axis=1)
    return (1 + reached) / (1 + len(null_longest))


def _largest_gap(lengths: NDArray[np.float64]) -> int:
    return int(np.argmax(-np.diff(lengths, append=0))) + 1 if len(lengths) else 0
