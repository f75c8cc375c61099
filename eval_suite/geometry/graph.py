"""The nearest-neighbour graph of an embedding, and the eigenvalues of its normalised Laplacian."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee

from eval_suite.geometry import eigensolver, nearest

Array = NDArray[np.floating]


class Spectrum(NamedTuple):
    """The smallest eigenvalues of a graph's normalised Laplacian, and the number of its components."""

    eigenvalues: NDArray[np.float64]
    """Ascending, without the zero modes: one eigenvalue 0 for each component is left out."""
    components: int


def knn_graph(x: Array, k: int = 15, *, recall: float = nearest.RECALL) -> scipy.sparse.csr_array:
    """Join each row of `x` (n, d) to its `k` nearest rows and return the adjacency matrix (n, n).

    Its entries are 1, and it is symmetric: i and j are joined if either is among the `k` nearest of the
    other by Euclidean distance. No row is joined to itself. `recall` is the share of true neighbours that a
    search of many rows must find; 1 is exact (see `nearest.neighbours`). Raises UserError for k < 1, n ≤ k,
    values that are not finite, and rows that are all equal.
    """
    return from_neighbours(nearest.neighbours(x, k, recall=recall).ids)


def from_neighbours(ids: NDArray[np.integer]) -> scipy.sparse.csr_array:
    """Return the adjacency matrix (n, n) of the graph that joins each row to its neighbours `ids` (n, k).

    An id of -1 stands for a missing neighbour. The matrix is symmetric by union, with entries 1.
    """
    n, k = ids.shape
    rows = np.repeat(np.arange(n, dtype=np.int32), k)
    columns = ids.ravel().astype(np.int32)
    present = columns >= 0
    directed = scipy.sparse.csr_array(
        (np.ones(int(present.sum()), dtype=np.float32), (rows[present], columns[present])), shape=(n, n)
    )
    graph = directed.maximum(directed.T).tocsr()
    graph.sort_indices()
    return graph


def laplacian_spectrum(graph: scipy.sparse.sparray | scipy.sparse.spmatrix, count: int = 10) -> Spectrum:
    """Return the `count` smallest eigenvalues of the Laplacian L = I - D^-½ A D^-½, without its zero modes.

    `graph` is the symmetric adjacency A (n, n) with weights ≥ 0, and D holds its row sums (Chung 1997). Each
    component has exactly one zero mode; it is left out, and the other eigenvalues of all components are
    merged, ascending, in [0, 2]. There are fewer than `count` if the graph has no more. A vertex without
    edges is a component of its own. The eigenvalues come from the largest ones of D^-½ A D^-½ of each
    component, because the usual inverse iteration fails on a graph of several components. Those of a
    component of at most `eigensolver.DENSE_BELOW` vertices are exact to rounding, and those of a larger one
    to 10⁻⁶ of the last one, as `eigensolver.largest` says. Raises ValueError for a matrix that is not such
    an adjacency.
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
    # With the vertices sorted by component, each component is a slice of rows and columns. Within it,
    # neighbours stand close to each other, so that products with the matrix find them in the cache.
    order = reverse_cuthill_mckee(graph, symmetric_mode=True)
    order = order[np.argsort(label[order], kind="stable")]
    graph = graph[order][:, order]
    degree = np.asarray(graph.sum(axis=1)).ravel()
    normalised = _normalised(graph, degree)
    if components == 1:
        return Spectrum(_nonzero_modes(normalised, degree, count), 1)
    ends = np.cumsum(np.bincount(label))
    by_component = [
        _nonzero_modes(normalised[start:end, start:end], degree[start:end], count)
        for start, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)
        if end - start > 1
    ]
    return Spectrum(np.sort(np.concatenate(by_component or [np.zeros(0)]))[:count], int(components))


def _normalised(graph: scipy.sparse.csr_array, degree: NDArray[np.float64]) -> scipy.sparse.csr_array:
    """Return D^-½ A D^-½ for the adjacency A and the row sums `degree` in D; an empty row stays empty."""
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1))
    scaled = graph.copy()
    scaled.data *= np.repeat(scale, np.diff(graph.indptr)) * scale[graph.indices]
    return scaled


def _nonzero_modes(
    connected: scipy.sparse.csr_array, degree: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """Return the `count` smallest Laplacian eigenvalues of one component, without its zero mode, ascending.

    `connected` is the component's D^-½ A D^-½, and `degree` (n,) the diagonal of D.
    """
    zero_mode = np.sqrt(degree / degree.sum())
    return np.maximum(1 - eigensolver.largest(connected, zero_mode, count), 0.0)
