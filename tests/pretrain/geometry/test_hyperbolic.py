"""The Lorentz model against closed forms, and Gromov's δ of trees, circles and look-alikes."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from isotorus.errors import UserError
from pretrain.geometry import hyperbolic
from pretrain.geometry.hyperbolic import gromov_delta


def points(n: int, d: int, spread: float, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return hyperbolic.lift(spread * torch.randn(n, d, dtype=torch.float64, generator=random))


def ray(radius: float, angle: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    space = math.sinh(radius) * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    return hyperbolic.lift(space.to(dtype))


def inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x[..., 1:] * y[..., 1:]).sum(-1) - x[..., 0] * y[..., 0]


def random_tree(n: int, seed: int) -> np.ndarray:
    """Path lengths (n, n) of a tree with random real edges."""
    random = np.random.default_rng(seed)
    parents = [int(random.integers(i)) for i in range(1, n)]
    edges = coo_array((random.uniform(0.1, 3, n - 1), (np.arange(1, n), parents)), shape=(n, n))
    found = shortest_path(edges.tocsr(), directed=False)
    return np.maximum(found, found.T)


def test_distances_are_those_of_the_product_where_that_is_exact():
    x, y = points(200, 5, 1.0), points(200, 5, 1.0, seed=1)
    torch.testing.assert_close(inner(x, x), -torch.ones(200, dtype=torch.float64))
    torch.testing.assert_close(hyperbolic.distance(x, y), torch.acosh(-inner(x, y)))
    assert float(hyperbolic.distance(x, x).max()) == 0
    assert (hyperbolic.distance(x[:, None], y) > 0).all()


def test_rays_from_the_origin_and_a_right_angle():
    origin = ray(0, 0)
    for radius in (1e-9, 0.3, 5.0, 40.0):
        assert float(hyperbolic.distance(origin, ray(radius, 0.7))) == pytest.approx(radius, rel=1e-12)
        assert float(hyperbolic.distance(ray(radius, 1), ray(radius, 1 + math.pi))) == pytest.approx(
            2 * radius
        )
    # Pythagoras: cosh c = cosh a cosh b.
    side = float(hyperbolic.distance(ray(1.2, 0), ray(0.7, math.pi / 2)))
    assert math.cosh(side) == pytest.approx(math.cosh(1.2) * math.cosh(0.7))


def test_the_product_alone_loses_float32_distances_that_are_kept_here():
    x, y = (ray(12.0, angle, torch.float32) for angle in (0.0, 1e-4))
    true = 2 * math.asinh(math.sinh(12) * math.sin(0.5e-4))
    assert float(hyperbolic.distance(x, y)) == pytest.approx(true, rel=1e-4)
    assert hyperbolic.distance(x, y).dtype == torch.float32
    product = -inner(x, y)
    # A coordinate of 80,000 squared leaves nothing of a number near cosh(4).
    assert abs(float(torch.acosh(product.clamp(min=1))) - true) > 0.1


@pytest.mark.parametrize("spread", [1e-4, 1.0, 10.0])
def test_exponential_undoes_the_logarithm(spread):
    x, y = points(50, 4, spread), points(50, 4, spread, seed=1)
    v = hyperbolic.log(x, y)
    torch.testing.assert_close(hyperbolic.exp(x, v), y, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(
        hyperbolic.distance(hyperbolic.exp(x, v / 2), y), hyperbolic.distance(x, y) / 2, rtol=1e-7, atol=1e-10
    )
    assert not hyperbolic.log(x, x).any()
    assert torch.equal(hyperbolic.exp(x, torch.zeros_like(x)), x)


def test_logarithms_at_the_origin_are_tangent_and_as_long_as_the_distance():
    origin, y = ray(0, 0), ray(2.5, 1.0)
    v = hyperbolic.log(origin, y)
    torch.testing.assert_close(v, 2.5 * torch.tensor([0.0, math.cos(1), math.sin(1)], dtype=torch.float64))
    x = points(30, 3, 1.0)
    v = hyperbolic.log(x, y.new_tensor([1.0, 0, 0, 0]).expand(30, 4))
    torch.testing.assert_close(inner(x, v), torch.zeros(30, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(inner(v, v).sqrt(), x[:, 0].acosh())


def test_distance_has_finite_gradients_everywhere():
    x = points(5, 3, 1.0).requires_grad_()
    hyperbolic.distance(x, x.detach()).sum().backward()
    assert not x.grad.any()
    y = points(5, 3, 1.0, seed=1)
    torch.autograd.gradcheck(
        lambda s: hyperbolic.distance(hyperbolic.lift(s), y), x.detach()[:, 1:].requires_grad_()
    )


def test_a_tree_has_delta_zero_and_a_circle_one():
    tree = gromov_delta(random_tree(150, seed=3), distances=True)
    assert tree.relative == pytest.approx(0, abs=1e-12)
    around = np.arange(80) / 80
    arcs = np.abs(around[:, None] - around)
    circle = gromov_delta(np.minimum(arcs, 1 - arcs), distances=True)
    assert circle.relative == pytest.approx(1) and circle.error == pytest.approx(0)
    line = gromov_delta(np.arange(300.0)[:, None])
    assert line.relative == pytest.approx(0, abs=1e-12)


def test_delta_of_points_by_hand_with_its_sampling_error():
    square = gromov_delta(np.array([[0.0, 0], [0, 1], [1, 1], [1, 0]]))
    assert square.relative == pytest.approx(2 * (math.sqrt(2) - 1) / math.sqrt(2))
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 500)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = gromov_delta(ring)
    assert found.relative > 0.4 and 0 < found.error < 0.05
    # Means of independent draws scatter by about the error that each states.
    means = [gromov_delta(ring, points=60, subsamples=10, seed=seed) for seed in range(30)]
    assert 0.5 < np.std([m.relative for m in means]) / np.mean([m.error for m in means]) < 2
    assert math.isnan(gromov_delta(ring, subsamples=1).error)


def test_a_tree_drawn_large_in_the_plane_keeps_its_shape():
    """A star of four arms with points on each: the longer they are the nearer its metric is a tree's."""
    found = []
    for scale in (0.1, 1.0, 8.0):
        star = torch.stack([ray(scale * k, math.pi * arm / 2) for arm in range(4) for k in (1, 2, 3)])
        between = hyperbolic.distance(star[:, None], star).numpy()
        found.append(gromov_delta(np.maximum(between, between.T), distances=True).relative)
    assert found[0] > 0.15 and found[0] > found[1] > found[2] and found[2] < 0.05
    # Gromov's bound for the hyperbolic plane: 2δ ≤ 2 ln 2 for four points, whatever their distances.
    far = points(300, 2, 1e4)
    between = hyperbolic.distance(far[:, None], far).numpy()
    between = np.maximum(between, between.T)
    found = gromov_delta(between, distances=True, points=300, subsamples=3)
    assert found.relative * between.max() <= 2 * math.log(2) + 1e-9


def test_a_small_delta_does_not_mean_a_hierarchy():
    """Noise of many dimensions has nearly equal distances, and equal distances are a star's: δ = 0."""
    equal = 1.0 - np.eye(50)
    assert gromov_delta(equal, distances=True).relative == 0
    noise = np.random.default_rng(0).normal(size=(200, 4000))
    assert gromov_delta(noise, subsamples=3).relative < 0.1
    plane = np.random.default_rng(0).normal(size=(200, 2))
    assert gromov_delta(plane, subsamples=3).relative > 0.2


def test_what_has_no_delta_is_refused():
    with pytest.raises(UserError, match="four points"):
        gromov_delta(np.zeros((3, 2)))
    with pytest.raises(UserError, match="same features"):
        gromov_delta(np.ones((9, 2)))
    with pytest.raises(UserError, match="not finite"):
        gromov_delta(np.full((9, 2), np.nan))
    with pytest.raises(ValueError, match="symmetric"):
        gromov_delta(np.arange(16.0).reshape(4, 4), distances=True)
