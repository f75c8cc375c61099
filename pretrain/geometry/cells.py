"""Closed surfaces as cell complexes with integer boundary matrices, and their homology, exactly.

Each surface is a square of N × N cells whose rim is glued: opposite sides for a torus, one pair reversed for
a Klein bottle, the whole rim to one point for a sphere. Munkres 1984, Elements of Algebraic Topology, §6 and
§11. Smith normal forms are sympy's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sympy import ZZ
from sympy.polys.matrices import DomainMatrix
from sympy.polys.matrices.normalforms import invariant_factors

from isotorus.errors import UserError

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class CellComplex:
    """Vertices, edges and faces of a surface, and which lie on the boundary of which."""

    boundary_1: Integers
    """(vertices, edges): the column of an edge is its end minus its beginning."""
    boundary_2: Integers
    """(edges, faces): the column of a face counts how often its rim runs along each edge, with sign."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of vertices, edges and faces."""
        return (*self.boundary_1.shape, self.boundary_2.shape[1])

    @property
    def euler_characteristic(self) -> int:
        """Return vertices - edges + faces."""
        vertices, edges, faces = self.counts
        return vertices - edges + faces

    def homology(self) -> tuple["Group", "Group", "Group"]:
        """Return H₀, H₁ and H₂ over the integers, from the Smith normal forms of the boundary matrices."""
        first, second = (smith_diagonal(b) for b in (self.boundary_1, self.boundary_2))
        vertices, edges, faces = self.counts
        return (
            Group(vertices - len(first), tuple(d for d in first if d > 1)),
            Group(edges - len(first) - len(second), tuple(d for d in second if d > 1)),
            Group(faces - len(second), ()),
        )

    def betti(self, prime: int) -> tuple[int, int, int]:
        """Return the dimensions of H₀, H₁ and H₂ over the field Z/`prime`."""
        first, second = (
            sum(d % prime != 0 for d in smith_diagonal(b)) for b in (self.boundary_1, self.boundary_2)
        )
        vertices, edges, faces = self.counts
        return vertices - first, edges - first - second, faces - second


class Group(NamedTuple):
    """The group Z^rank ⊕ Z/t₁ ⊕ Z/t₂ …, where t₁, t₂, … are the `torsion`."""

    rank: int
    torsion: tuple[int, ...]


def torus(n: int) -> CellComplex:
    """Build n × n squares with opposite sides glued.

    Vertex, face and two edges at (x, y) have the index x·n + y; edges in direction x come first. Like the
    other surfaces here, it raises `UserError` for n below 1.
    """

    def vertex(x: int, y: int) -> int:
        return x % n * n + y % n

    def along_x(x: int, y: int) -> tuple[int, int]:
        return vertex(x, y), 1

    def along_y(x: int, y: int) -> tuple[int, int]:
        return n * n + vertex(x, y), 1

    return _glued(n, vertex, along_x, along_y)


def klein_bottle(n: int) -> CellComplex:
    """Build the same as `torus`, except that (n, y) is glued to (0, -y)."""

    def vertex(x: int, y: int) -> int:
        return x % n * n + (-y if x == n else y) % n

    def along_x(x: int, y: int) -> tuple[int, int]:
        return vertex(x, y), 1

    def along_y(x: int, y: int) -> tuple[int, int]:
        # The last column's edge from y to y + 1 is the first one's from -y to -y - 1.
        return (n * n + vertex(0, -y - 1), -1) if x == n else (n * n + vertex(x, y), 1)

    return _glued(n, vertex, along_x, along_y)


def sphere(n: int) -> CellComplex:
    """Build n × n squares whose whole rim is one point, vertex 0."""
    inner = {
        place: number + 1 for number, place in enumerate((x, y) for x in range(1, n) for y in range(1, n))
    }
    edges_x = {(x, y): number for number, (x, y) in enumerate((x, y) for x in range(n) for y in range(1, n))}
    edges_y = {
        (x, y): len(edges_x) + number
        for number, (x, y) in enumerate((x, y) for x in range(1, n) for y in range(n))
    }

    def vertex(x: int, y: int) -> int:
        return inner.get((x, y), 0)

    def along_x(x: int, y: int) -> tuple[int, int]:
        return edges_x.get((x, y), 0), int((x, y) in edges_x)

    def along_y(x: int, y: int) -> tuple[int, int]:
        return edges_y.get((x, y), 0), int((x, y) in edges_y)

    return _glued(n, vertex, along_x, along_y)


def smith_diagonal(matrix: Integers) -> tuple[int, ...]:
    """Return the non-zero entries d₁ | d₂ | … of the Smith normal form, all positive."""
    if 0 in matrix.shape:
        return ()
    rows = [[ZZ(int(entry)) for entry in row] for row in matrix]
    return tuple(abs(int(d)) for d in invariant_factors(DomainMatrix(rows, matrix.shape, ZZ)) if d)


def _glued(
    n: int,
    vertex: Callable[[int, int], int],
    along_x: Callable[[int, int], tuple[int, int]],
    along_y: Callable[[int, int], tuple[int, int]],
) -> CellComplex:
    """Build the boundaries of n × n squares from functions that number vertices and edges at 0 … n.

    An edge is (number, sign); the sign is -1 where gluing reverses it and 0 where it shrinks to a point.
    """
    if n < 1:
        raise UserError(f"n = {n}: a surface needs one cell a side or more")
    ends: dict[int, tuple[int, int]] = {}
    for x in range(n + 1):
        for y in range(n + 1):
            for (number, sign), head, inside in (
                (along_x(x, y), (x + 1, y), x < n),
                (along_y(x, y), (x, y + 1), y < n),
            ):
                if inside and sign == 1:
                    ends[number] = vertex(x, y), vertex(*head)
    vertices = {vertex(x, y) for x in range(n + 1) for y in range(n + 1)}
    boundary_1 = np.zeros((len(vertices), len(ends)), dtype=np.int64)
    for number, (begin, end) in ends.items():
        boundary_1[end, number] += 1
        boundary_1[begin, number] -= 1
    boundary_2 = np.zeros((len(ends), n * n), dtype=np.int64)
    for x in range(n):
        for y in range(n):
            rim = ((along_x(x, y), 1), (along_y(x + 1, y), 1), (along_x(x, y + 1), -1), (along_y(x, y), -1))
            for (number, sign), direction in rim:
                if sign:
                    boundary_2[number, x * n + y] += sign * direction
    return CellComplex(boundary_1, boundary_2)
