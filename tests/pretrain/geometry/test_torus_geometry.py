"""Tori in numbers: embedded and flat, paths that wind, cells. Exact statements are in test_theorems.py."""

import math

import numpy as np
import pytest
import torch
from sympy import GF, ZZ
from sympy.polys.matrices import DomainMatrix

from isotorus.errors import UserError
from pretrain.geometry import cells, flat_torus, torus
from pretrain.geometry.torus_of_revolution import TorusOfRevolution, winding_angles
from pretrain.geometry.winding import unwrapped, winding

TURN = 2 * math.pi
CIRCLE = TURN * torch.arange(200, dtype=torch.float64) / 200


def angles(*shape: int, seed: int = 0) -> torch.Tensor:
    return TURN * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_grid_eigenvalues_are_those_of_the_matrix():
    for size in (2, 3, 6, 7):
        measured = torch.linalg.eigvalsh(torus.laplacian(size))
        torch.testing.assert_close(torus.eigenvalues(size).flatten().sort().values, measured)
    with pytest.raises(UserError, match="at least 2 sites"):
        torus.eigenvalues(1)


def test_embedded_torus_by_sums_over_a_grid():
    surface = TorusOfRevolution(R=2.0, r=0.7)
    cell = (TURN / 200) ** 2 * 200  # the sum over φ is 200 times alike
    area = surface.area_element(CIRCLE)
    assert float(area.sum() * cell) == pytest.approx(surface.area)
    assert float((area * surface.gaussian_curvature(CIRCLE)).sum() * cell) == pytest.approx(0, abs=1e-10)
    willmore = float((area * surface.mean_curvature(CIRCLE) ** 2).sum() * cell)
    assert willmore == pytest.approx(math.pi**2 * 4 / (0.7 * math.sqrt(4 - 0.49)))
    # Principal curvatures: the tube's circle, and the circle about the axis seen along the normal.
    tube, around = 1 / 0.7, CIRCLE.cos() / (2 + 0.7 * CIRCLE.cos())
    torch.testing.assert_close(surface.gaussian_curvature(CIRCLE), tube * around)
    torch.testing.assert_close(surface.mean_curvature(CIRCLE), (tube + around) / 2)
    # The inside is a saddle, the outside is not; that of the flat torus would be 0 throughout.
    assert (
        surface.gaussian_curvature(torch.tensor(math.pi)) < 0 < surface.gaussian_curvature(torch.tensor(0.0))
    )
    x, y, z = surface.point(angles(50), angles(50, seed=1)).unbind(-1)
    torch.testing.assert_close((torch.hypot(x, y) - 2) ** 2 + z**2, torch.full_like(x, 0.49))


@pytest.mark.parametrize(("R", "r"), [(1, 1), (1, 2), (1, 0), (0, -1), (math.nan, 1), (math.inf, 1)])
def test_a_tube_that_meets_itself_is_refused(R, r):
    with pytest.raises(UserError, match="needs 0 < r < R"):
        TorusOfRevolution(R, r)


@pytest.mark.parametrize(("p", "q"), [(2, 3), (1, 0), (0, -1), (-5, 3), (7, 2)])
def test_a_curve_winds_by_its_name_and_lies_on_the_torus(p, q):
    surface = TorusOfRevolution(R=3.0, r=1.0)
    x, y, z = surface.curve(p, q, CIRCLE).unbind(-1)
    around, tube = torch.atan2(y, x), torch.atan2(z, torch.hypot(x, y) - 3)
    found = winding(torch.stack([around, tube], -1), closed=True)
    assert found.number.tolist() == [p, q] and not found.ambiguous.any()
    torch.testing.assert_close(found.margin, math.pi - torch.tensor([p, q]).abs().double() * TURN / 200)


@pytest.mark.parametrize(("p", "q", "say"), [(2, 4, "2 times over"), (0, 3, "3 times"), (0, 0, "is a point")])
def test_curves_that_are_no_curves_are_refused(p, q, say):
    with pytest.raises(UserError, match=say):
        winding_angles(p, q, CIRCLE)


def test_flat_torus_distances_logarithm_and_exponential():
    a, b = angles(300, 5) * 4 - TURN, angles(300, 5, seed=1)
    v = flat_torus.log(a, b)
    assert v.abs().max() <= math.pi
    torch.testing.assert_close(flat_torus.exp(a, v).cos(), b.cos())
    torch.testing.assert_close(flat_torus.exp(a, v).sin(), b.sin())
    far = flat_torus.geodesic(a, b)
    torch.testing.assert_close(far, torch.linalg.vector_norm(v, dim=1))
    pairs = [torch.stack([x.cos(), x.sin()], -1).flatten(1) for x in (a, b)]
    near = flat_torus.chordal(a, b)
    torch.testing.assert_close(near, torch.linalg.vector_norm(pairs[0] - pairs[1], dim=1))
    assert (near <= far).all() and (near >= 2 / math.pi * far - 1e-12).all()
    opposite = flat_torus.geodesic(torch.zeros(5), torch.full((5,), math.pi))
    assert float(opposite) == pytest.approx(math.pi * math.sqrt(5))
    # Broadcasting gives all pairs, and tiny distances keep their digits.
    assert flat_torus.geodesic(a[:, None], b).shape == (300, 300)
    assert float(flat_torus.geodesic(torch.tensor([0.0]), torch.tensor([1e-12]))) == pytest.approx(1e-12)


def test_circular_mean_knows_the_seam_and_where_there_is_none():
    assert float(flat_torus.circular_mean(torch.tensor([0.1, TURN - 0.3]), 0)) == pytest.approx(
        -0.1, abs=1e-6
    )
    assert float(torch.tensor([0.1, TURN - 0.3]).mean()) == pytest.approx(math.pi - 0.1, abs=1e-6)
    assert flat_torus.circular_mean(torch.tensor([0.0, math.pi]), 0).isnan()
    assert flat_torus.circular_mean(CIRCLE, 0).isnan()
    x, w = angles(40, 3), angles(40, 1, seed=2)
    found = flat_torus.circular_mean(x, 0, w)
    torch.testing.assert_close(found, (w * torch.exp(1j * x)).sum(0).angle())
    # Turning the points turns their mean.
    turned = flat_torus.circular_mean(x + 1, 0, w)
    assert flat_torus.geodesic(turned, found + 1) < 1e-12


def test_winding_of_open_paths_and_of_many_at_once():
    turns = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.25, 0.5]], dtype=torch.float64)
    path = angles(2, 1, 3) + TURN * turns[:, None] * torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    open_path = winding(path.remainder(TURN), closed=False)
    torch.testing.assert_close(open_path.number, turns)
    assert open_path.margin.shape == open_path.ambiguous.shape == (2, 3)
    torch.testing.assert_close(unwrapped(path.remainder(TURN), closed=False)[:, -1], turns)
    closed = winding(path[:, :-1], closed=True)
    assert closed.number.tolist()[0] == [0, 1, -2] and closed.number.tolist()[1][0] == 3


def test_steps_of_half_a_turn_are_flagged():
    two = winding(torch.tensor([[0.0, 0.0], [math.pi, 1.0]]), closed=True)
    assert two.ambiguous.tolist() == [True, False]
    assert two.margin[0] < 1e-3 and float(two.margin[1]) == pytest.approx(math.pi - 1)
    wide = winding(CIRCLE[::67, None], closed=True, least=1.2)  # steps of about a third of a turn
    assert wide.number == 1 and wide.ambiguous
    # 3 samples of a path that winds twice look as one that winds once backwards: nothing flags it.
    seen = winding(2 * CIRCLE[:198:66, None], closed=True)
    assert seen.number == -1 and not seen.ambiguous
    assert winding(2 * CIRCLE[::10, None], closed=True).number == 2
    assert winding(torch.full((4, 1), math.nan), closed=True).ambiguous


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (5,), (5, 0)])
def test_paths_without_a_step_are_refused(shape):
    with pytest.raises(ValueError, match="two samples or more"):
        winding(torch.zeros(shape), closed=True)


def test_a_sigmoid_head_never_winds():
    """On any closed path of the logits, 2π·sigmoid returns through the values that it came through."""
    around = torch.stack([CIRCLE.cos(), CIRCLE.sin()], -1)
    logits = around @ torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    path = TURN * torch.sigmoid(logits)
    fine = winding(path, closed=True)
    assert not fine.ambiguous.any() and not fine.number.any()
    assert winding(torch.atan2(around[:, 1:], around[:, :1]), closed=True).number == 1


@pytest.mark.parametrize("surface", [cells.torus, cells.klein_bottle, cells.sphere])
def test_betti_numbers_by_elimination_over_the_field(surface):
    complex_ = surface(7)
    for prime in (2, 3):
        ranks = [
            DomainMatrix([[ZZ(int(x)) for x in row] for row in matrix], matrix.shape, ZZ)
            .convert_to(GF(prime))
            .to_sparse()
            .rank()
            for matrix in (complex_.boundary_1, complex_.boundary_2)
        ]
        vertices, edges, faces = complex_.counts
        assert complex_.betti(prime) == (vertices - ranks[0], edges - sum(ranks), faces - ranks[1])


def test_smith_diagonal_by_hand_and_surfaces_without_cells():
    assert cells.smith_diagonal(np.array([[2, 4, 4], [-6, 6, 12], [10, -4, -16]])) == (2, 6, 12)
    assert cells.smith_diagonal(np.zeros((2, 3), dtype=np.int64)) == ()
    assert cells.torus(12).homology() == ((1, ()), (2, ()), (1, ()))
    with pytest.raises(UserError, match="n = 0"):
        cells.sphere(0)
