"""The largest eigenvalues of a sparse symmetric matrix whose spectrum lies in [-1, 1]."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

from isotorus.randomness import generator

Block = NDArray[np.floating]

DENSE_BELOW = 1000
"""Rows up to which LAPACK finds eigenvalues sooner than an iteration does."""
TOLERANCE = 1e-7
"""Of the residual ‖Ax - θx‖; the error of θ is its square over the distance to the rest of the spectrum."""
DEGREE = 80
"""Most that the polynomial has between two orthogonalisations."""
GROWTH = {np.dtype(np.float32): 1e4, np.dtype(np.float64): 1e8}
"""Most that the polynomial may favour one wanted vector over another, lest rounding drown the other."""
SINGLE = 1e-5
"""Residual down to which float32 serves."""
ROUNDS = 500


def largest(matrix: scipy.sparse.csr_array, top: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The `count` largest eigenvalues of `matrix` (n, n) besides the known one, descending.

    `top` (n,) is the unit eigenvector of the eigenvalue 1. Multiplicities count: a block of vectors, unlike
    the single one of ARPACK, finds all copies of an eigenvalue. Dense LAPACK for small matrices, else
    subspace iteration with a Chebyshev filter (Saad, Numerical Methods for Large Eigenvalue Problems, 2011,
    §7.4): where the wanted eigenvalues crowd at 1, as those of a graph that samples a manifold do, the
    polynomial tells them apart with few orthogonalisations, all of its work being products of the matrix
    with the block. Raises RuntimeError if that does not converge.
    """
    n = len(top)
    count = min(count, n - 1)
    if n <= max(DENSE_BELOW, 10 * count):
        return scipy.linalg.eigvalsh(matrix.toarray())[::-1][1 : count + 1]
    random = generator(0)
    block = _orthonormal(random.standard_normal((n, 2 * count + 4)), top)
    edge, upper = -0.5, 1.0
    dtype: type[np.floating] = np.float32
    for _ in range(ROUNDS):
        block = _orthonormal(_filtered(matrix, block.astype(dtype), top, edge, upper), top)
        image = matrix @ block
        values, rotation = scipy.linalg.eigh(block.T @ image)
        block, image = block @ rotation, image @ rotation
        residual = np.linalg.norm(image - block * values, axis=0)[-count:]
        if residual.max() < TOLERANCE:
            return values[::-1][:count]
        if residual.max() < SINGLE:
            dtype = np.float64
        # Ritz values bound eigenvalues from below: all wanted ones lie above the least, where the polynomial
        # increases, and what lies below stays within ±1.
        edge, upper = values[0], min(1.0, values[-1] + residual[-1])
    raise np.linalg.LinAlgError(
        f"eigenvalues of a matrix of {n} rows: residual {residual.max():.1e} is not small"
    )


def _filtered(matrix: scipy.sparse.csr_array, block: Block, top: Block, edge: float, upper: float) -> Block:
    """The Chebyshev polynomial of the matrix that is within ±1 on [-1, edge], times `block`."""
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
        if step % 4 == 0:  # the known eigenvector grows fastest of all, from rounding
            before -= np.outer(top, top @ before)
            now -= np.outer(top, top @ now)
    return now


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(parallel=True, fastmath=True, cache=True)(function)
    except RuntimeError:  # there is no folder to keep what was compiled
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
    """scale (A - middle) now - before, written over `before`."""
    for row in numba.prange(len(now)):
        for column in range(now.shape[1]):
            before[row, column] = -before[row, column] - scale * middle * now[row, column]
        for place in range(indptr[row], indptr[row + 1]):
            weight = scale * data[place]
            other = indices[place]
            for column in range(now.shape[1]):
                before[row, column] += weight * now[other, column]
    return before


def _orthonormal(block: Block, top: Block) -> Block:
    """A basis of the span of `block`, orthogonal to `top`."""
    block = block.astype(np.float64)
    block /= np.linalg.norm(block, axis=0)
    block -= np.outer(top, top @ block)
    basis, _ = scipy.linalg.qr(block, mode="economic", check_finite=False)
    return np.ascontiguousarray(basis)
