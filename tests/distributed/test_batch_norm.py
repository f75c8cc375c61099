"""Batch norm on two ranks is torch's own on all rows, also where means are far larger than deviations."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from pretrain.distributed import sum_over_ranks
from pretrain.models.batch_norm import GlobalBatchNorm, GlobalBatchNorm2d

SPLIT, CHANNELS = [5, 11], 4
SHAPES = {"rows": (CHANNELS,), "images": (CHANNELS, 3, 2)}
NORMS = {"rows": GlobalBatchNorm, "images": GlobalBatchNorm2d}
MEAN = 1000.0
"""Mean of the inputs in standard deviations; float32 has these inputs to 6e-5 of a deviation."""


def inputs(kind: str) -> tuple[Tensor, Tensor]:
    """Return the inputs of all ranks, and the weights of the outputs in the loss."""
    generator = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(sum(SPLIT), *SHAPES[kind], generator=generator) for _ in range(2))
    return x + MEAN, weights


def run_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for kind, build in NORMS.items():
        norm = build(CHANNELS)
        x, weights = (part.split(SPLIT)[rank] for part in inputs(kind))
        x.requires_grad_()
        y = norm(x)
        sum_over_ranks((y * weights).sum()).backward()
        assert x.grad is not None
        found[kind] = {"y": y.detach(), "x": x.grad} | {n: p.grad for n, p in norm.named_parameters()}
        found[kind] |= {"mean": norm.running_mean, "variance": norm.running_var}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", NORMS)
def test_two_ranks_are_torch_on_all_rows(ranks: list[dict[str, dict[str, Tensor]]], kind: str):
    first, second = (found[kind] for found in ranks)
    norm = (nn.BatchNorm1d if kind == "rows" else nn.BatchNorm2d)(CHANNELS).double()
    x, weights = (part.double() for part in inputs(kind))
    x.requires_grad_()
    y = norm(x)
    (y * weights).sum().backward()
    together = {name: torch.cat([first[name], second[name]]).double() for name in ("y", "x")}
    torch.testing.assert_close(together["y"], y, rtol=0, atol=3e-4)
    # An engine averages gradients over ranks, so each rank has twice its part.
    torch.testing.assert_close(together["x"] / 2, x.grad, rtol=0, atol=3e-4)
    for name, parameter in norm.named_parameters():
        mean = (first[name] + second[name]).double() / 2
        torch.testing.assert_close(mean, parameter.grad, rtol=0, atol=3e-3)
    assert norm.running_mean is not None and norm.running_var is not None
    for name, exact in (("mean", norm.running_mean), ("variance", norm.running_var)):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name].double(), exact, rtol=2e-5, atol=0)
