"""One train step on 1, 2 and 4 ranks, whole or accumulated, is one process's step on the whole batch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pretrain.engines.ddp import DDPEngine, EngineConfig
from pretrain.head import LeJEPAConfig, LeJEPAHead
from pretrain.models.encoder import EncoderConfig, build_encoder, timm_kwargs
from pretrain.models.projector import ProjectorConfig
from pretrain.optimizer import OptimizerConfig
from pretrain.step import accumulated_backward, train_step

IMAGES, STEP = 16, 3


def build_engine() -> DDPEngine:
    name = "vit_tiny_patch16_224"
    small = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
    encoder = build_encoder(name, timm_kwargs(EncoderConfig(name=name, kwargs=small), 32, 1), seed=0)
    head = LeJEPAHead(
        32, LeJEPAConfig(num_slices=64, projector=ProjectorConfig(hidden=24, width=8)), n_global=2, seed=0
    )
    return DDPEngine(encoder, head, EngineConfig(), OptimizerConfig(lr=1e-2), torch.device("cpu"))


def views() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, IMAGES, 1, 32, 32, generator=generator),
        torch.randn(3, IMAGES, 1, 16, 16, generator=generator),
    ]


def measure(share: slice, accumulation: int) -> dict[str, torch.Tensor]:
    """Loss parts, gradients and batch-norm buffers, and the loss and gradient norm after an update."""
    engine = build_engine()
    mine = [x[:, share] for x in views()]
    parts = accumulated_backward(engine, mine, STEP, accumulation)
    found = {f"part {name}": value for name, value in parts.items()}
    for name, parameter in engine.model.named_parameters():
        assert parameter.grad is not None, name
        found[f"grad {name.replace('.module.', '.')}"] = parameter.grad.clone()
    found |= {f"buffer {n.replace('.module.', '.')}": b.clone() for n, b in engine.model.named_buffers()}
    engine.step(lr=1e-3)
    later = train_step(engine, mine, STEP + 1, lr=1e-3, accumulation=accumulation)
    found |= {f"later {name}": value for name, value in later.items()}
    return found


def rank_main(rank: int, sizes: list[int], folder: str, accumulations: list[int]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", len(sizes))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    for accumulation in accumulations:
        found = measure(slice(start, start + sizes[rank]), accumulation)
        if rank == len(sizes) - 1:
            torch.save(found, f"{folder}/accumulation{accumulation}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def truth() -> dict[str, torch.Tensor]:
    """One process, no process group, the whole batch."""
    return measure(slice(None), 1)


def compare(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> None:
    assert found.keys() == truth.keys()
    gradient = torch.cat([g.flatten() for name, g in truth.items() if name.startswith("grad")])
    for name, value in truth.items():
        # Adam's first update has the size lr whatever the gradient's, so it magnifies rounding.
        relative = {"part": 1e-5, "later": 1e-3}.get(name.split()[0], 1e-4)
        floor = 1e-5 * gradient.abs().max().item() if name.startswith("grad") else 1e-6
        torch.testing.assert_close(
            found[name], value, rtol=relative, atol=floor, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("accumulation", [2, 3, 8])
def test_accumulation_on_one_process(truth: dict[str, torch.Tensor], accumulation: int):
    compare(measure(slice(None), accumulation), truth)


@pytest.mark.parametrize("sizes", [[8, 8], [4, 4, 4, 4], [11, 5]], ids=str)
def test_ranks_and_accumulation(truth: dict[str, torch.Tensor], tmp_path: Path, sizes: list[int]):
    accumulations = [1, 2]
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(rank_main, (sizes, str(tmp_path), accumulations), nprocs=len(sizes))
    for accumulation in accumulations:
        compare(torch.load(tmp_path / f"accumulation{accumulation}.pt"), truth)


def test_a_mean_of_micro_batch_losses_would_be_wrong(truth: dict[str, torch.Tensor]):
    """What exact accumulation is for: the naive way gives another loss."""
    halves = [slice(0, 8), slice(8, 16)]
    naive = sum(measure(half, 1)["part loss"] for half in halves) / 2
    assert abs(naive / truth["part loss"] - 1) > 1e-3
