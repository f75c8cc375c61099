"""Every objective gives one loss and one gradient, however the global batch is split over ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pretrain.distributed import gather_over_ranks
from pretrain.objectives.lejepa import lejepa_loss
from pretrain.objectives.sigreg import SIGReg, aliased_share, epps_pulley
from pretrain.objectives.toroidal import angles_from_pairs, toroidal_covariance, toroidal_lejepa
from pretrain.objectives.torus_frequencies import all_frequencies
from pretrain.objectives.univariate import TESTS
from pretrain.objectives.vicreg import vicreg_loss

VIEWS, IMAGES, WIDTH = 3, 16, 8
SPLITS = [(8, 8), (5, 11), (4, 4, 4, 4), (7, 1, 3, 5), (0, 6, 1, 9)]

Parts = dict[str, torch.Tensor]


def toroidal(z: torch.Tensor) -> Parts:
    return toroidal_lejepa(angles_from_pairs(z.unflatten(2, (4, 2))), 2, 0.2, *all_frequencies(4, 1, 1.0))


# Each takes this rank's projections (views, images, width) to scalars, of which the first is trained.
OBJECTIVES: dict[str, Callable[[torch.Tensor], Parts]] = {
    "epps_pulley": lambda z: {"loss": epps_pulley(z[0]).sum(), "aliased": aliased_share(16 * z)},
    "lejepa": lambda z: lejepa_loss(z, 2, 0.3, SIGReg(16), step=3),
    "lejepa_chunked": lambda z: lejepa_loss(z, 2, 0.3, SIGReg(16, chunk=5), step=3, center="all"),
    "vicreg": lambda z: vicreg_loss(z[0], z[1], z[2]),
    "toroidal_lejepa": toroidal,
}
for weighting in ("distance", "laplacian", "heat"):
    OBJECTIVES[weighting] = lambda z, w=weighting: {"loss": toroidal_covariance(z[0], 2, w)}  # type: ignore[misc]
for test in TESTS:
    OBJECTIVES[test] = lambda z, t=test: {"loss": SIGReg(8, test=t)(z, 0)}  # type: ignore[misc]


def images() -> torch.Tensor:
    return torch.randn(IMAGES, VIEWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def evaluate(x: torch.Tensor, world_size: int) -> dict[str, Parts]:
    """Return each objective's parts, and the gradient of a shared weight and its own along a direction.

    Both are averaged over ranks.
    """
    results = {}
    direction = torch.linspace(-1, 1, WIDTH**2, dtype=torch.float64).view(WIDTH, WIDTH)
    for name, objective in OBJECTIVES.items():
        weight = torch.eye(WIDTH, dtype=torch.float64) + 0.1
        weight.requires_grad_()
        parts = objective((x @ weight).transpose(0, 1))
        (first,) = torch.autograd.grad(next(iter(parts.values())), weight, create_graph=True)
        (second,) = torch.autograd.grad((first * direction).sum(), weight)
        results[name] = {key: part.detach() for key, part in parts.items()}
        for order, derivative in (("gradient", first.detach()), ("curvature", second)):
            if world_size > 1:
                dist.all_reduce(derivative)
            results[name][order] = derivative / world_size
    return results


def run_rank(rank: int, folder: Path) -> None:
    """Evaluate each split in a process group with as many of the four ranks as the split has parts."""
    torch.set_num_threads(1)
    for i, split in enumerate(SPLITS):
        size = len(split)
        if rank >= size:
            continue
        store = dist.FileStore(str(folder / f"store{i}"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        x = images().split(split)[rank]
        torch.testing.assert_close(gather_over_ranks(x), images(), rtol=0, atol=0)
        torch.save(evaluate(x, size), folder / f"split{i}_rank{rank}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (folder,), nprocs=4)
    return folder


@pytest.fixture(scope="module")
def single() -> dict[str, Parts]:
    return evaluate(images(), 1)


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_split_gives_the_loss_and_derivatives_of_one_process(folder, single, name, split):
    assert single[name]["gradient"].abs().max() > 1e-6
    assert single[name]["curvature"].abs().max() > 1e-6
    for rank in range(len(split)):
        got = torch.load(folder / f"split{SPLITS.index(split)}_rank{rank}.pt")[name]
        torch.testing.assert_close(got, single[name], rtol=1e-9, atol=1e-12)
