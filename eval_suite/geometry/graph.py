"""The graph of nearest neighbours of an embedding, and the spectrum of its normalised Laplacian."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from eval_suite.geometry import eigensolver, nearest

Array = NDArray[np.floating]


class Spectrum(NamedTuple):
    """Ascending eigenvalues of a normalised Laplacian without its zero modes, and how many those are."""

    eigenvalues: NDArray[np.float64]
    components: int


def knn_graph(x: Array, k: int = 15, *, recall: float = nearest.RECALL) -> scipy.sparse.csr_array:
    """Rows of `x` (n, d) joined to their `k` nearest by Euclidean distance: (n, n), symmetric, of ones.

    i and j are joined when either is among the other's neighbours (union), never i with itself, so a row
    has `k` entries or more. `recall` is the share of true neighbours that a large search may settle for
    (see `search.neighbours`; 1 is exact). Raises UserError for k < 1, n ≤ k, values that are not finite
    and rows that are all alike.
    """
    return from_neighbours(nearest.neighbours(x, k, recall=recall).ids)


def from_neighbours(ids: NDArray[np.integer]) -> scipy.sparse.csr_array:
    """The graph of the neighbours `ids` (n, k) of each row; -1 stands for none."""
    n, k = ids.shape
    rows = np.repeat(np.arange(n, dtype=np.int32), k)
    columns = ids.ravel().astype(np.int32)
    found = columns >= 0
    directed = scipy.sparse.csr_array(
        (np.ones(int(found.sum()), dtype=np.float32), (rows[found], columns[found])), shape=(n, n)
    )
    graph = directed.maximum(directed.T).tocsr()
    graph.sort_indices()
    return graph


def laplacian_spectrum(graph: scipy.sparse.sparray | scipy.sparse.spmatrix, count: int = 10) -> Spectrum:
    """The `count` smallest eigenvalues of L = I - D^-½ A D^-½ (Chung 1997) beside its zero modes.

    `graph` is a symmetric adjacency (n, n) with weights ≥ 0. Every component has one zero mode, which is
    left out by its component and not by its size; the other eigenvalues of all components come together,
    ascending, in [0, 2], fewer than `count` where there are no more. A vertex without edges is a component
    by itself. Computed for each component from the largest eigenvalues of D^-½ A D^-½, since the inverse
    iterations that are usual for the smallest ones break down on a graph in pieces. Raises ValueError for
    a matrix that is no such adjacency.
    """
    graph = scipy.sparse.csr_array(graph).astype(np.float64)
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or count < 1:
        raise ValueError(
            f"laplacian_spectrum takes a square adjacency, count ≥ 1; not {graph.shape}, {count}"
        )
    if graph.nnz and (graph.data.min() < 0 or abs(graph - graph.T).max() > 1e-6 * graph.data.max()):
        raise ValueError("laplacian_spectrum takes a symmetric adjacency with weights ≥ 0")
    graph.eliminate_zeros()
    components, label = connected_components(graph, directed=False)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    normalised = _normalised(graph, degree)
    if components == 1:
        return Spectrum(_nonzero_modes(normalised, degree, count), 1)
    # Vertices of a component side by side, so that each is a slice of rows and columns.
    order = np.argsort(label, kind="stable")
    normalised, degree = normalised[order][:, order], degree[order]
    ends = np.cumsum(np.bincount(label))
    found = [
        _nonzero_modes(normalised[start:end, start:end], degree[start:end], count)
        for start, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)
        if end - start > 1
    ]
    return Spectrum(np.sort(np.concatenate(found or [np.zeros(0)]))[:count], int(components))


def _normalised(graph: scipy.sparse.csr_array, degree: NDArray[np.float64]) -> scipy.sparse.csr_array:
    """D^-½ A D^-½."""
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1))
    scaled = graph.copy()
    scaled.data *= np.repeat(scale, np.diff(graph.indptr)) * scale[graph.indices]
    return scaled


def _nonzero_modes(
    connected: scipy.sparse.csr_array, degree: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    zero_mode = np.sqrt(degree / degree.sum())
    return np.maximum(1 - eigensolver.largest(connected, zero_mode, count), 0.0)
