"""The largest eigenvalues of a sparse symmetric matrix whose spectrum lies in [-1, 1].

This solver replaces scipy's `eigsh` (ARPACK), which works with one vector and can miss copies of a multiple
eigenvalue. Figures beside `eigsh` are in benchmarks/RESULTS.md, "k-NN graph and its spectrum".
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from numpy.typing import NDArray

from isotorus.randomness import generator

Block = NDArray[np.floating]

DENSE_BELOW = 1000
"""Number of rows up to which dense LAPACK is faster than an iteration."""
ACCURACY = 1e-6
"""Largest error of an accepted eigenvalue θ, as a share of the distance from 1 to the last one wanted.

The error is at most the square of the residual ‖Ax - θx‖ over the distance from θ to the eigenvalues outside
the block (Saad 2011, §3.2). The distance to the block's smallest Ritz value stands for the latter.
"""
TOLERANCE = 1e-7
"""Residual ‖Ax - θx‖, with a unit vector x, that is accepted in any case."""
DEGREE = 80
"""Highest degree of the polynomial between two orthogonalisations."""
GROWTH = {np.dtype(np.float32): 1e4, np.dtype(np.float64): 1e8}
"""Largest factor by which the polynomial may amplify one wanted vector more than another.

A larger factor would let rounding errors of the first one cover the other.
"""
ROUNDS = 500
"""Number of orthogonalisations after which the iteration gives up."""


def largest(matrix: scipy.sparse.csr_array, top: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the `count` largest eigenvalues of `matrix` (n, n) without the known one, descending.

    `top` (n,) is the unit eigenvector of the known eigenvalue 1. A multiple eigenvalue appears as often as
    its multiplicity. Small matrices go to dense LAPACK. Others get a subspace iteration with a Chebyshev
    filter (Saad, Numerical Methods for Large Eigenvalue Problems, 2011, §7.4): a polynomial of the matrix
    separates eigenvalues that are crowded near 1, as on the neighbour graph of a manifold, so that few
    orthogonalisations are needed. LAPACK's eigenvalues are exact to rounding. Those of the iteration err by
    at most `ACCURACY` times the distance of the last one from 1, or by at most `TOLERANCE`. Raises
    `numpy.linalg.LinAlgError` if the iteration does not converge.
    """
    n = len(top)
    count = min(count, n - 1)
    if n <= max(DENSE_BELOW, 10 * count):
        return scipy.linalg.eigvalsh(matrix.toarray())[::-1][1 : count + 1]
    random = generator(0)
    block = _orthonormal(random.standard_normal((n, 2 * count + 4)), top)
    edge, upper, last = -0.5, 1.0, np.inf
    dtype: type[np.floating] = np.float32
    for _ in range(ROUNDS):
        with _threads_of_torch():
            filtered = _filtered(matrix, block.astype(dtype), top, edge, upper)
        block = _orthonormal(filtered, top)
        image = matrix @ block
        values, rotation = scipy.linalg.eigh(block.T @ image)
        block, image = block @ rotation, image @ rotation
        residual = np.linalg.norm(image - block * values, axis=0)[-count:]
        wanted = values[-count:]
        error = residual**2 / np.maximum(wanted - values[0], np.finfo(np.float64).tiny)
        if residual.max() < TOLERANCE or error.max() < ACCURACY * (1 - wanted[0]):
            return wanted[::-1]
        if residual.max() > last / 2:  # residuals in float32 stay above about 3e-7, which may be too large
            dtype = np.float64
        last = residual.max()
        # Ritz values are lower bounds of eigenvalues, so all wanted ones lie above the smallest Ritz value.
        # The polynomial grows above that edge and stays within ±1 below it.
        edge, upper = values[0], min(1.0, values[-1] + residual[-1])
    raise np.linalg.LinAlgError(
        f"eigenvalues of a matrix of {n} rows: residual {residual.max():.1e} is not small"
    )


def _filtered(matrix: scipy.sparse.csr_array, block: Block, top: Block, edge: float, upper: float) -> Block:
    """Multiply `block` (n, m) by the Chebyshev polynomial of the matrix that is within ±1 on [-1, edge].

    `upper` is an upper bound of the wanted eigenvalues; it decides the degree. The direction `top` is
    removed.
    """
    half, middle = (edge + 1) / 2, (edge - 1) / 2
    rate = math.acosh(max((upper - middle) / half, 1 + 1e-9))
    degree = int(np.clip(math.log(GROWTH[block.dtype]) / rate, 2, DEGREE))
    number, top = block.dtype.type, top.astype(block.dtype)
    data, shift = matrix.data.astype(block.dtype), number(middle)
    before, now = (
        block,
        _next(matrix.indptr, matrix.indices, data, block, np.zeros_like(block), shift, number(1 / half)),
    )
    for step in range(1, degree):
        before = _next(matrix.indptr, matrix.indices, data, now, before, shift, number(2 / half))
        before, now = now, before
        if step % 16 == 0:  # rounding brings the known eigenvector back, and it grows fastest
            before -= np.outer(top, top @ before)
            now -= np.outer(top, top @ now)
    return now


@contextmanager
def _threads_of_torch() -> Iterator[None]:
    """Give numba as many threads as torch has, and leave torch as many as it had.

    Both use OpenMP. When numba starts its threads, it sets OpenMP's number of threads for the whole process
    to the number of cores, whatever OMP_NUM_THREADS says. On busy cores that makes torch many times slower.
    """
    threads = torch.get_num_threads()
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(threads, most))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile a function with numba, for all cores, and keep the result on disk where that is possible."""
    try:
        return numba.njit(parallel=True, fastmath=True, cache=True)(function)
    except RuntimeError:  # no folder is writable for the compiled code
        return numba.njit(parallel=True, fastmath=True)(function)


@_compiled
def _next(
    indptr: NDArray[np.int32],
    indices: NDArray[np.int32],
    data: NDArray[np.floating],
    now: Block,
    before: Block,
    middle: np.floating,
    scale: np.floating,
) -> Block:
    """Compute scale · (A - middle) · now - before and write it over `before`.

    A is the sparse matrix of `indptr`, `indices` and `data`; this is one step of the Chebyshev recursion.
    """
    for row in numba.prange(len(now)):
        for column in range(now.shape[1]):
            before[row, column] = -before[row, column] - scale * middle * now[row, column]
        for place in range(indptr[row], indptr[row + 1]):
            weight = scale * data[place]
            other = np.uint32(indices[place])  # unsigned: numba then does not look for negative indices
            for column in range(now.shape[1]):
                before[row, column] += weight * now[other, column]
    return before


def _orthonormal(block: Block, top: Block) -> Block:
    """Return an orthonormal basis (n, m) of the span of `block`, orthogonal to `top` (n,)."""
    block = block.astype(np.float64)
    block /= np.linalg.norm(block, axis=0)
    block -= np.outer(top, top @ block)
    basis, _ = scipy.linalg.qr(block, mode="economic", check_finite=False)
    return np.ascontiguousarray(basis)
