"""Statements of docs/theorems.md about surfaces, loops and curvature, in integers, fractions and symbols."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import sympy
import torch
from sympy import cos, pi, sin, symbols

from pretrain.geometry import cells
from pretrain.geometry.winding import winding


@pytest.mark.parametrize("size", range(1, 9))
def test_euler_characteristic_and_boundaries_of_boundaries(size):
    for surface, expected in ((cells.torus, 0), (cells.klein_bottle, 0), (cells.sphere, 2)):
        complex_ = surface(size)
        assert complex_.euler_characteristic == expected
        assert not (complex_.boundary_1 @ complex_.boundary_2).any()
    n = symbols("N", positive=True)
    assert sympy.expand(n**2 - 2 * n**2 + n**2) == 0
    assert cells.torus(size).counts == (size**2, 2 * size**2, size**2)
    assert cells.sphere(size).counts == ((size - 1) ** 2 + 1, 2 * size * (size - 1), size**2)


@pytest.mark.parametrize("size", range(1, 9))
def test_homology_by_smith_normal_form(size):
    complex_ = cells.torus(size)
    assert complex_.homology() == ((1, ()), (2, ()), (1, ()))
    assert complex_.betti(2) == complex_.betti(3) == (1, 2, 1)
    klein = cells.klein_bottle(size)
    assert klein.homology() == ((1, ()), (1, (2,)), (0, ()))
    sphere = cells.sphere(size)
    assert sphere.homology() == ((1, ()), (0, ()), (1, ()))
    assert sphere.betti(2) == sphere.betti(3) == (1, 0, 1)


@pytest.mark.parametrize("size", range(1, 9))
def test_betti_numbers_over_two_elements_do_not_tell_a_torus_from_a_klein_bottle(size):
    klein = cells.klein_bottle(size)
    assert klein.betti(2) == cells.torus(size).betti(2) == (1, 2, 1)
    assert klein.betti(3) == (1, 1, 0)


def test_betti_numbers_over_no_field_tell_a_torus_from_a_wedge():
    """S¹ ∨ S¹ ∨ S² is two loops and a sphere at one vertex: boundary matrices as the torus has at N = 1."""
    wedge = cells.CellComplex(np.zeros((1, 2), dtype=np.int64), np.zeros((2, 1), dtype=np.int64))
    smallest = cells.torus(1)
    assert (wedge.boundary_1 == smallest.boundary_1).all() and (wedge.boundary_2 == smallest.boundary_2).all()
    assert wedge.homology() == cells.torus(5).homology()


def crossings(size: int) -> np.ndarray:
    """(2, edges): how often each edge of the torus crosses the seam in direction x and in direction y."""
    found = np.zeros((2, 2 * size**2), dtype=np.int64)
    for along in range(size):
        found[0, (size - 1) * size + along] = 1
        found[1, size**2 + along * size + size - 1] = 1
    return found


@pytest.mark.parametrize("size", range(1, 9))
def test_loops_are_homologous_iff_their_winding_vectors_are_equal(size):
    """Seam crossings vanish on boundaries and are the identity on two generators: H₁ ≅ Z², and π₁ = H₁."""
    complex_, seams = cells.torus(size), crossings(size)
    assert not (seams @ complex_.boundary_2).any()
    generators = np.zeros((2 * size**2, 2), dtype=np.int64)
    generators[[x * size for x in range(size)], 0] = 1
    generators[[size**2 + y for y in range(size)], 1] = 1
    assert not (complex_.boundary_1 @ generators).any()
    assert (seams @ generators == np.eye(2)).all()
    assert complex_.homology()[1] == (2, ())


def walk(size: int, word: list[tuple[int, int]]) -> np.ndarray:
    """The edges (2N²,) of a loop from (0, 0): steps (direction, ±1), then straight on until it is home."""
    place, chain = [0, 0], np.zeros(2 * size**2, dtype=np.int64)
    for across in (0, 1):
        word = word + [(across, 1)] * (-sum(sign for direction, sign in word if direction == across) % size)
    for direction, sign in word:
        # A step back runs over the edge that begins where it ends.
        place[direction] -= sign < 0
        chain[direction * size**2 + place[0] % size * size + place[1] % size] += sign
        place[direction] += sign > 0
    return chain


def test_random_loops_with_winding_zero_are_boundaries():
    """Integer elimination shows it; loops with another winding number are no boundaries."""
    size, random = 4, np.random.default_rng(0)
    complex_, seams = cells.torus(size), crossings(size)
    filled = cells.smith_diagonal(complex_.boundary_2)
    seen = set()
    for _ in range(60):
        word = zip(random.integers(2, size=30), random.choice([-1, 1], 30), strict=True)
        chain = walk(size, [(int(direction), int(sign)) for direction, sign in word])
        assert not (complex_.boundary_1 @ chain).any()
        winding = tuple(int(w) for w in seams @ chain)
        extended = cells.smith_diagonal(np.column_stack([complex_.boundary_2, chain]))
        assert (extended == filled) == (winding == (0, 0))
        seen.add(winding)
    assert (0, 0) in seen and len(seen) > 3


def straight(p: int, q: int, offset: tuple[Fraction, Fraction]):
    """Return the closed line offset + t(p, q) as (begin, end) pairs, cut where it leaves the unit square."""
    cuts = {Fraction(0), Fraction(1)}
    for speed, start in ((p, offset[0]), (q, offset[1])):
        if speed:
            low, high = sorted((start, start + speed))
            cuts |= {(k - start) / speed for k in range(math.ceil(low), math.floor(high) + 1)}
    pieces = []
    for t0, t1 in itertools.pairwise(sorted(t for t in cuts if 0 <= t <= 1)):
        middle = [math.floor(o + v * (t0 + t1) / 2) for o, v in zip(offset, (p, q), strict=True)]
        pieces.append(
            tuple(
                tuple(o + v * t - m for o, v, m in zip(offset, (p, q), middle, strict=True)) for t in (t0, t1)
            )
        )
    return pieces


def crossing_signs(first, second) -> list[int]:
    """Return +1 or -1 for each crossing of two families of segments, computed in fractions."""
    found = []
    for ((ax, ay), (bx, by)), ((cx, cy), (dx, dy)) in itertools.product(first, second):
        ux, uy, vx, vy = bx - ax, by - ay, dx - cx, dy - cy
        turn = ux * vy - uy * vx
        if turn:
            s = ((cx - ax) * vy - (cy - ay) * vx) / turn
            t = ((cx - ax) * uy - (cy - ay) * ux) / turn
            # Half open, so that a crossing where a piece ends is counted with the next piece alone.
            if 0 <= s < 1 and 0 <= t < 1:
                found.append(1 if turn > 0 else -1)
    return found


def test_curves_cross_as_often_as_their_determinant():
    """|pq' - p'q| crossings of straight (p, q) and (p', q') curves, all of one sign, counted in fractions."""
    coprime = [(p, q) for p in range(-4, 5) for q in range(-4, 5) if math.gcd(p, q) == 1]
    for (p, q), (r, s) in itertools.product(coprime[::2], coprime[1::3]):
        first = straight(p, q, (Fraction(1, 101), Fraction(2, 103)))
        second = straight(r, s, (Fraction(1, 37), Fraction(5, 41)))
        signs = crossing_signs(first, second)
        determinant = p * s - q * r
        assert sum(signs) == determinant and len(signs) == abs(determinant)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 3), (3, 3), (4, 1)])
def test_multiplying_both_angles_is_a_cover_and_no_class(p, q):
    """(θ, φ) ↦ (pθ, qφ) reaches every point of the torus pq times: the same torus, and all of it."""
    points = 12  # a multiple of every p and q: angles in twelfths of a turn, preimages in twelfths of that
    reached = {}
    for a, b in itertools.product(range(points * p), range(points * q)):
        place = (Fraction(a, points * p) * p % 1, Fraction(b, points * q) * q % 1)
        reached[place] = reached.get(place, 0) + 1
    assert len(reached) == points**2 and set(reached.values()) == {p * q}
    # On loops it is diag(p, q), not the vector (p, q): the two generators go to different classes.
    around = 2 * math.pi * torch.arange(24, dtype=torch.float64) / 24
    still = torch.zeros_like(around)
    generators = torch.stack([torch.stack([around, still], -1), torch.stack([still, around], -1)])
    found = winding(generators * torch.tensor([p, q]), closed=True)
    assert found.number.tolist() == [[p, 0], [0, q]]


# --- curvature ---


def test_curvature_of_the_torus_of_revolution():
    """K, H and dA from the first and second fundamental forms; ∫K dA = 0 for every R > r > 0."""
    large, small = symbols("R r", positive=True)
    phi, theta = symbols("phi theta", real=True)
    rho = large + small * cos(theta)
    point = sympy.Matrix([rho * cos(phi), rho * sin(phi), small * sin(theta)])
    along, tube = point.diff(phi), point.diff(theta)
    outward = along.cross(tube) / (small * rho)
    assert sympy.simplify(outward.dot(outward)) == 1

    def form(rows):
        return sympy.Matrix(2, 2, rows).applyfunc(sympy.simplify)

    first = form([along.dot(along), along.dot(tube), along.dot(tube), tube.dot(tube)])
    second = form([-outward.dot(point.diff(a, b)) for a in (phi, theta) for b in (phi, theta)])
    shape = first.inv() * second
    assert sympy.simplify(shape.det() - cos(theta) / (small * rho)) == 0
    assert sympy.simplify(shape.trace() / 2 - (large + 2 * small * cos(theta)) / (2 * small * rho)) == 0
    assert sympy.simplify(first.det() - (small * rho) ** 2) == 0
    density = sympy.simplify(shape.det() * small * rho)
    assert sympy.integrate(density, (theta, 0, 2 * pi), (phi, 0, 2 * pi)) == 0
    assert sympy.integrate(small * rho, (theta, 0, 2 * pi), (phi, 0, 2 * pi)) == 4 * pi**2 * large * small


def test_the_flat_torus_is_flat_where_the_embedded_one_is_not():
    """(cos θ, sin θ, cos φ, sin φ) has the identity as its metric, so K = 0 at every point."""
    theta, phi = symbols("theta phi", real=True)
    point = sympy.Matrix([cos(theta), sin(theta), cos(phi), sin(phi)])
    jacobian = point.jacobian([theta, phi])
    assert sympy.simplify(jacobian.T * jacobian) == sympy.eye(2)
