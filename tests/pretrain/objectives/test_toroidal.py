"""The grid torus of covariances: its geometry, its optima, and what it does not forbid."""

import math

import pytest
import torch

from isotorus.errors import UserError
from pretrain.geometry import torus
from pretrain.objectives.toroidal import covariance_energy_null, toroidal_covariance


def with_covariance(matrix: torch.Tensor) -> torch.Tensor:
    """Rows whose sample covariance is `matrix` (D, D) exactly, up to rounding."""
    width = len(matrix)
    rows = torch.randn(2 * width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.linalg.qr(rows - rows.mean(0)).Q * math.sqrt(2 * width - 1)
    values, vectors = torch.linalg.eigh(matrix)
    return rows @ (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@pytest.mark.parametrize(("size", "gap"), [(8, 0.5858), (12, 0.2679), (16, 0.1522)])
def test_spectrum_of_the_grid(size, gap):
    values = torch.linalg.eigvalsh(torus.laplacian(size))
    line = 2 - 2 * torch.cos(2 * math.pi * torch.arange(size, dtype=torch.float64) / size)
    torch.testing.assert_close(values, (line[:, None] + line).flatten().sort().values)
    assert torus.spectral_gap(size) == pytest.approx(gap, abs=5e-5)
    torch.testing.assert_close(
        values[1:9], torus.spectral_gap(size) * torch.tensor([1.0] * 4 + [2.0] * 4).double()
    )
    assert values[-1] == pytest.approx(8)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_distance_is_the_shortest_path_along_the_edges(size):
    apart = torus.distance(size)
    edges = torus.laplacian(size) < 0
    reached, steps = torch.eye(size**2, dtype=torch.bool), torch.zeros(size**2, size**2, dtype=torch.float64)
    for step in range(1, size**2):
        further = (reached.double() @ edges.double() > 0) & ~reached
        steps[further] = step
        reached |= further
    assert torch.equal(apart, steps)
    assert apart.max() == 2 * (size // 2)


def test_heat_kernel_is_the_exponential_of_the_laplacian():
    kernel = torch.linalg.matrix_exp(-0.7 * torus.laplacian(5))
    torch.testing.assert_close(torus.heat_kernel(5, 0.7), kernel / kernel[0, 0])


def test_distance_and_laplacian_follow_their_formulas():
    z = torch.randn(40, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = torch.cov(z.T)
    site = [d % 16 for d in range(20)]
    apart, edges = torus.distance(4), torus.laplacian(4)
    expected = {"distance": 0.0, "laplacian": 0.0}
    for i in range(20):
        for j in range(20):
            if i == j:
                continue
            expected["distance"] += apart[site[i], site[j]] / 4 * matrix[i, j] ** 2
            # 4 of 15 other sites are neighbours, so the scale that makes the off-diagonal's mean 1 is 15/4.
            scale = 1 if site[i] == site[j] else 15 / 4
            expected["laplacian"] += scale * edges[site[i], site[j]].abs() * matrix[i, j] ** 2
    for weighting, total in expected.items():
        assert toroidal_covariance(z, 4, weighting).item() == pytest.approx(
            total.item() / (20 * 19), rel=1e-6
        )


@pytest.mark.parametrize("weighting", ["distance", "laplacian", "heat"])
def test_gradient_passes_gradcheck(weighting):
    z = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: toroidal_covariance(z, 2, weighting), z)


def test_heat_has_its_optimum_at_the_heat_kernel():
    target = torus.heat_kernel(4, 0.5)
    z = with_covariance(target).requires_grad_()
    loss = toroidal_covariance(z, 4, "heat", 0.5)
    loss.backward()
    assert loss < 1e-12 and z.grad.abs().max() < 1e-6
    assert toroidal_covariance(with_covariance(torch.eye(16, dtype=torch.float64)), 4, "heat", 0.5) > 1e-3
    # The rank of that optimum is known: exp of the entropy of softmax(-time · λ).
    shares = torch.linalg.eigvalsh(target) / 16
    expected = torch.softmax(-0.5 * torch.linalg.eigvalsh(torus.laplacian(4)), 0)
    torch.testing.assert_close(shares.sort().values, expected.sort().values)


@pytest.mark.parametrize("weighting", ["distance", "laplacian", "heat"])
def test_the_null_is_the_mean_over_gaussian_samples_of_what_is_aimed_at(weighting):
    """Dimensions 0 and 4 have one site, where the heat kernel wants copies."""
    width, count, draws = 6, 12, 4000
    target = torch.eye(width, dtype=torch.float64)
    if weighting == "heat":
        site = torch.arange(width) % 4
        target = torus.heat_kernel(2, 0.3)[site[:, None], site]
    values, vectors = torch.linalg.eigh(target)
    root = vectors * values.clamp(min=0).sqrt()
    random = torch.Generator().manual_seed(3)
    z = torch.randn(draws, count, width, dtype=torch.float64, generator=random) @ root.T
    energies = torch.stack([toroidal_covariance(x, 2, weighting, 0.3) for x in z])
    null = covariance_energy_null(width, 2, weighting, 0.3, like=z)
    assert ((count - 1) * energies.mean()).item() == pytest.approx(null.item(), rel=0.03)


def test_distance_does_not_forbid_copies_at_one_site():
    """Rank 16 of 64 dimensions at no cost: the spectral gap bounds no representation from below."""
    independent = with_covariance(torch.eye(16, dtype=torch.float64))
    z = independent.repeat(1, 4)
    assert toroidal_covariance(z, 4, "distance") < 1e-20
    assert torch.linalg.matrix_rank(torch.cov(z.T)) == 16
    assert toroidal_covariance(z, 4, "laplacian") > 0.1


def test_laplacian_does_not_forbid_a_checkerboard():
    """Rank 2 of 64 dimensions at no cost: sites of one colour are never neighbours."""
    size = 8
    site = torch.arange(size**2)
    colour = (site % size + site // size) % 2
    z = with_covariance(torch.eye(2, dtype=torch.float64))[:, colour]
    assert toroidal_covariance(z, size, "laplacian") < 1e-20
    assert torch.linalg.matrix_rank(torch.cov(z.T)) == 2
    assert toroidal_covariance(z, size, "distance") > 0.1


def test_collapse_costs_nothing_but_for_heat():
    """The covariance terms need a variance term beside them."""
    z = torch.ones(10, 16, dtype=torch.float64)
    assert toroidal_covariance(z, 4, "distance") == 0 and toroidal_covariance(z, 4, "laplacian") == 0
    assert toroidal_covariance(z, 4, "heat") > 0.05


def test_impossible_settings_are_refused():
    z = torch.zeros(4, 16)
    with pytest.raises(UserError, match="25 sites for 16 dimensions; choose at most 4"):
        toroidal_covariance(z, 5)
    for size in (1, 0, -3):
        with pytest.raises(UserError, match="grid_size"):
            toroidal_covariance(z, size)
        with pytest.raises(UserError, match="grid_size"):
            torus.spectral_gap(size)
    with pytest.raises(UserError, match="weighting"):
        toroidal_covariance(z, 4, "euclidean")
    with pytest.raises(UserError, match="time"):
        toroidal_covariance(z, 4, "heat", -1.0)
