"""Statements of docs/theorems.md about the grid torus, in integers, fractions and symbols."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import sympy
from sympy import QQ, cos, oo, pi, sin, symbols

from pretrain.geometry import cells, torus

SIZES = range(2, 9)
POWER = sympy.Symbol("x")


def whole(matrix) -> np.ndarray:
    """A float64 tensor of integers as Python integers."""
    values = matrix.numpy()
    assert (values == np.round(values)).all()
    return values.astype(int).astype(object)


def grid(size: int) -> np.ndarray:
    return whole(torus.laplacian(size))


def twice_cosines(size: int) -> list[tuple[Fraction, ...]]:
    """2 cos(2πk/N) = ζ^k + ζ^-k for k = 0 … N - 1, as coordinates in the field Q(ζ): equal iff equal."""
    cyclotomic = sympy.Poly(sympy.cyclotomic_poly(size, POWER), POWER, domain=QQ)
    found = []
    for k in range(size):
        power = sympy.Poly(POWER**k + POWER ** ((-k) % size), POWER, domain=QQ).rem(cyclotomic)
        found.append(tuple(Fraction(str(power.nth(i))) for i in range(cyclotomic.degree())))
    return found


# --- the grid Z_N × Z_N ---


@pytest.mark.parametrize("size", SIZES)
def test_laplacian_is_symmetric_with_zero_row_sums_and_trace_4n2(size):
    matrix = grid(size)
    assert (matrix == matrix.T).all() and not matrix.sum(axis=1).any()
    assert np.trace(matrix) == 4 * size**2


@pytest.mark.parametrize("size", SIZES)
def test_laplacian_is_a_sum_of_squares_over_the_edges(size):
    """L = ∂₁∂₁ᵀ, so xᵀLx = Σ_edges (x_i - x_j)² ≥ 0: positive semidefinite."""
    boundary = cells.torus(size).boundary_1.astype(object)
    # Vertex (x, y) of the complex is x·N + y; either direction may be called first.
    assert (boundary @ boundary.T == grid(size)).all()


def test_characters_are_eigenvectors_for_every_size():
    """L e^{2πi(ax + by)/N} = (4 - 2cos(2πa/N) - 2cos(2πb/N)) e^{2πi(ax + by)/N}, N, a, b symbols."""
    a, b, x, y = symbols("a b x y", integer=True)
    size = symbols("N", integer=True, positive=True)

    def character(x, y):
        return sympy.exp(2 * pi * sympy.I * (a * x + b * y) / size)

    around = sum(character(x + dx, y + dy) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)))
    value = 4 - 2 * cos(2 * pi * a / size) - 2 * cos(2 * pi * b / size)
    difference = ((4 * character(x, y) - around) / character(x, y) - value).rewrite(sympy.exp)
    assert sympy.simplify(sympy.expand(sympy.powsimp(sympy.expand(difference)))) == 0
    # Going round once changes nothing: it is a function on the torus.
    assert sympy.simplify(character(x + size, y) / character(x, y)) == 1


@pytest.mark.parametrize("size", SIZES)
def test_there_are_no_other_eigenvalues(size):
    """The ring's characteristic polynomial is 2(T_N(x/2 - 1) - (-1)^N), whose roots are 2 - 2cos(2πk/N)."""
    identity = np.eye(size, dtype=int)
    ring = 2 * identity - np.roll(identity, 1, 0) - np.roll(identity, -1, 0)
    matrix = sympy.Matrix(ring.tolist())
    chebyshev = 2 * (sympy.chebyshevt(size, POWER / 2 - 1) - (-1) ** size)
    assert sympy.expand(matrix.charpoly(POWER).as_expr() - chebyshev) == 0
    kronecker_sum = np.kron(ring, identity) + np.kron(identity, ring)
    assert (kronecker_sum == grid(size)).all()


@pytest.mark.parametrize("size", range(2, 17))
def test_gap_has_multiplicity_4_and_the_next_eigenvalue_is_twice_it(size):
    """Counted in the cyclotomic field. At N = 2 the multiplicity is 2; at N = 4 that of 2λ₁ is 6."""
    cosines = twice_cosines(size)
    values = {}
    for a, b in itertools.product(range(size), repeat=2):
        key = tuple(-x - y for x, y in zip(cosines[a], cosines[b], strict=True))
        # 4 is added to the first coordinate: equal keys are equal eigenvalues.
        key = (key[0] + 4, *key[1:])
        about = 4 - 2 * math.cos(2 * math.pi * a / size) - 2 * math.cos(2 * math.pi * b / size)
        values.setdefault(key, []).append(about)
    ordered = sorted(values, key=lambda key: values[key][0])
    zero, gap, second = ordered[:3]
    # Rounding cannot have put different ones in the wrong order: they are far apart.
    abouts = [values[key][0] for key in ordered]
    assert all(b - a > 1e-3 for a, b in itertools.pairwise(abouts))
    assert not any(zero) and len(values[zero]) == 1
    assert len(values[gap]) == (2 if size == 2 else 4)
    assert second == tuple(2 * x for x in gap)
    assert len(values[second]) == {2: 1, 4: 6}.get(size, 4)


def test_twice_the_gap_comes_next_for_every_size_from_5():
    """The ring's second eigenvalue exceeds 2λ₁ by 4c(1 - c), c = cos(2π/N), positive iff N > 4."""
    t = symbols("t", positive=True)
    excess = (2 - 2 * cos(2 * t)) - 2 * (2 - 2 * cos(t))
    assert sympy.simplify(excess - 4 * cos(t) * (1 - cos(t))) == 0


def test_gap_falls_with_the_size_and_its_multiple_tends_to_4pi2():
    size = symbols("N", positive=True)
    gap = 2 - 2 * cos(2 * pi / size)
    assert sympy.limit(gap * size**2, size, oo) == 4 * pi**2
    # The derivative is negative as long as 0 < 2π/N < π; N = 2 and 3 by themselves.
    assert sympy.simplify(sympy.diff(gap, size) + 4 * pi / size**2 * sin(2 * pi / size)) == 0
    assert gap.subs(size, 2) == 4 and gap.subs(size, 3) == 3


@pytest.mark.parametrize("size", SIZES)
def test_checkerboard_reaches_8_on_even_grids_alone(size):
    x, y = np.divmod(np.arange(size**2), size)
    board = ((-1) ** (x + y)).astype(object)
    assert (grid(size) @ board == 8 * board).all() == (size % 2 == 0)


# --- what the spectral gap does and does not bound ---


@pytest.mark.parametrize("size", [3, 4])
def test_poincare_bounds_variance_from_above_by_energy(size):
    """L - λ₁(I - J/n) is positive semidefinite: zᵀLz ≥ λ₁‖z - z̄1‖² for every z."""
    gap = {3: 3, 4: 2}[size]  # 2 - 2 cos(2π/N), rational for these
    n = size**2
    matrix = [
        [Fraction(entry) - gap * (Fraction(i == j) - Fraction(1, n)) for j, entry in enumerate(row)]
        for i, row in enumerate(grid(size))
    ]
    assert all(pivot >= 0 for pivot in pivots(matrix))
    # One unit more of the gap and it fails: the bound is sharp.
    sharper = [
        [m - (Fraction(i == j) - Fraction(1, n)) for j, m in enumerate(row)] for i, row in enumerate(matrix)
    ]
    assert any(pivot < 0 for pivot in pivots(sharper))


def pivots(matrix: list[list[Fraction]]) -> list[Fraction]:
    """Return the pivots of symmetric elimination: all ≥ 0 iff the matrix is positive semidefinite.

    A pivot of 0 whose row is not 0 is given as -1.
    """
    rows, found = [list(row) for row in matrix], []
    for k in range(len(rows)):
        pivot = rows[k][k]
        if pivot == 0:
            found.append(Fraction(-1) if any(rows[k][k:]) else Fraction(0))
            continue
        found.append(pivot)
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / pivot
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return found


def toroidal_energy(covariance: np.ndarray, weights: np.ndarray, size: int) -> Fraction:
    """E = Σ_{i≠j} W[site i, site j] C_ij² / (D(D-1)), site d = d mod N²."""
    width = len(covariance)
    return sum(
        (
            Fraction(weights[i % size**2, j % size**2]) * Fraction(covariance[i, j]) ** 2
            for i in range(width)
            for j in range(width)
            if i != j
        ),
        Fraction(0),
    ) / (width * (width - 1))


def distance_weights(size: int) -> np.ndarray:
    apart = whole(torus.distance(size))
    return np.array([[Fraction(int(d), int(apart.max())) for d in row] for row in apart], dtype=object)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_distance_weighting_does_not_bound_the_rank(size):
    """Copies of one dimension at its own site cost nothing: loss 0 at rank N², whatever D."""
    copies = 3
    covariance = np.tile(np.eye(size**2, dtype=int).astype(object), (copies, copies))
    assert toroidal_energy(covariance, distance_weights(size), size) == 0
    assert sympy.Matrix(covariance.tolist()).rank() == size**2 < copies * size**2


@pytest.mark.parametrize("size", [2, 4, 6])
def test_laplacian_weighting_does_not_bound_the_rank(size):
    """A checkerboard of two sets of equal dimensions has rank 2 and costs nothing, N even."""
    x, y = np.divmod(np.arange(size**2), size)
    colour = (x + y) % 2
    covariance = (colour[:, None] == colour).astype(int).astype(object)
    weights = np.abs(grid(size))
    assert toroidal_energy(covariance, weights, size) == 0
    assert np.linalg.matrix_rank(covariance.astype(float)) == 2


@pytest.mark.parametrize("size", [2, 3])
def test_participation_ratio_has_a_lower_bound_under_distance_weighting(size):
    """(tr C)²/‖C‖² ≥ D²/(S + D(D-1)E/w_min) for unit variances; C from signs, so exactly rational."""
    random = np.random.default_rng(0)
    width = 2 * size**2 + 1
    site = np.arange(width) % size**2
    same_site = int((site[:, None] == site).sum())
    smallest = Fraction(1, 2 * (size // 2))
    for rows in (1, 2, 5, 20):
        signs = random.choice([-1, 1], (rows, width))
        covariance = np.array(
            [[Fraction(int(v), rows) for v in row] for row in signs.T @ signs], dtype=object
        )
        ratio = Fraction(width**2) / (covariance**2).sum()
        energy = toroidal_energy(covariance, distance_weights(size), size)
        assert ratio >= width**2 / (same_site + width * (width - 1) * energy / smallest)
