"""Steps of a true ViT-g/14 of full width, with as many blocks as memory takes: engines agree, resume, fit.

Nightly: a block has 28 million parameters, and DeepSpeed has buffers of 1.4 GB on each rank. The test takes
four fifths of the memory that is free, at most 24 GiB or the number of GiB in the variable VITG_GIB.
"""

import math
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp

from benchmarks.on_gpu.runs import engine_of
from benchmarks.planning import plan as memory
from data_pipeline.order import share
from pretrain.config import Config, load_config
from pretrain.cost.plan import Memory, Request, estimate
from pretrain.engines import Engine
from pretrain.engines.step import MicroBatch, train_step
from pretrain.models.drop_path import sample_keys
from tests.distributed.test_engines import Curve, deviation, join

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

IMAGES, RANKS, STEPS, SAVED = 4, 2, 3, 2
FEWEST_BLOCKS, ALL_BLOCKS = 2, 40
# On CPUs torch adds the squares of a tensor one after another in fp32, and of parts of it more exactly.
NORM_BOUND = 1e-3
SMALL_VIEWS = "views={global_size: 28, local_size: 14, local_views: 2}"
ENGINES = {
    "fsdp": "engine={kind: fsdp}",
    "hsdp": "engine={kind: fsdp, shard: 1}",
    "zero-3": "engine={kind: deepspeed, zero_stage: 3}",
}


def config_of(engine: str, blocks: int) -> Config:
    """Return the shipped recipe in fp32, with fewer blocks and small views, for an engine."""
    depth = f"encoder.kwargs={{init_values: 0.1, depth: {blocks}}}"
    given = [
        "data.path=none",
        f"data.batch_size={IMAGES}",
        SMALL_VIEWS,
        depth,
        engine,
        "engine.precision=fp32",
    ]
    return load_config("lejepa_vitg14", [*given, "engine.packed=false", "engine.compile=false"])


def planned(engine: str, blocks: int) -> Memory:
    """Return what `plan` says of the memory of a rank."""
    return estimate(config_of(engine, blocks), Request(RANKS, "cpu", 0.4, None, 1e9)).memory


def blocks_that_fit(memory: float) -> int:
    """Return with how many blocks all ranks of any engine take at most `memory` bytes, by `plan`; at least 2.

    From four blocks on, each further one takes as much, because the largest buffers no longer grow.
    """
    few, more = 4, 6
    most = ALL_BLOCKS
    for options in ENGINES.values():
        start, end = (RANKS * planned(options, blocks).total for blocks in (few, more))
        most = min(most, few + math.floor((memory - start) * (more - few) / (end - start)))
    return max(FEWEST_BLOCKS, most)


def train(engine: Engine, config: Config, first: int, last: int) -> Curve:
    """Take steps on this rank's share of random images; return losses and gradient norms."""
    curve = []
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    mine = share(IMAGES, rank, ranks)
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        views = [
            torch.randn(r.views, IMAGES, 3, r.size, r.size, generator=generator)[:, mine.start : mine.stop]
            for r in config.views.resolutions()
        ]
        keys = sample_keys(0, step, mine.start, len(mine), sum(len(x) for x in views))
        # A larger rate would amplify rounding: AdamW's first updates are as long for tiny gradients as for
        # large ones.
        parts = train_step(engine, MicroBatch(views, keys), step, lr=1e-5).parts
        curve.append((parts["loss"].item(), parts["grad_norm"].item()))
    return curve


def rank_main(rank: int, folder: Path, blocks: int) -> None:
    torch.set_num_threads(1)
    join(folder / "store", rank, RANKS)
    found: dict[str, Any] = {}
    device = torch.device("cpu")
    for name, options in ENGINES.items():
        config, parts = config_of(options, blocks), planned(options, blocks).parts
        before = memory._reset_peak(device)
        engine = engine_of(config, device)
        memory._reset_peak(device)  # the first rank has held all weights
        curve = train(engine, config, 0, SAVED)
        if name == "fsdp":
            dcp.save(engine.state(), checkpoint_id=folder / "checkpoint")
        curve += train(engine, config, SAVED, STEPS)
        found[name] = curve
        found[f"{name} memory"] = (
            memory._peak(device) - before,
            sum(size for part, size in parts.items() if part != "reserve"),
        )
        del engine
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def blocks() -> int:
    """Return the number of blocks that the memory of this machine takes."""
    most = float(os.environ.get("VITG_GIB", "24")) * 2**30
    return blocks_that_fit(min(0.8 * psutil.virtual_memory().available, most))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, blocks: int) -> Path:
    """Return where the ranks have left their results and a checkpoint."""
    folder = tmp_path_factory.mktemp("vitg")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (memory.MALLOC | {"DS_ACCELERATOR": "cpu"}).items():
            patch.setenv(name, value)
        mp.spawn(rank_main, (folder, blocks), nprocs=RANKS)
    return folder


def test_engines_agree_and_another_one_resumes(folder: Path, blocks: int):
    found = torch.load(folder / "found.pt", weights_only=False)
    config = config_of("engine={kind: ddp}", blocks)
    engine = engine_of(config, torch.device("cpu"))
    assert sum(p.numel() for p in engine.networks.encoder.parameters()) > blocks * 28e6
    truth = train(engine, config, 0, STEPS)
    for name in ENGINES:
        loss, norm = deviation(found[name], truth)
        assert loss < 1e-5 and norm < NORM_BOUND, (name, loss, norm)

    state = engine.state()
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    engine.load(state)
    loss, norm = deviation(train(engine, config, SAVED, STEPS), truth[SAVED:])
    assert loss < 1e-5 and norm < NORM_BOUND, (loss, norm)


def test_memory_is_what_plan_says(folder: Path):
    found = torch.load(folder / "found.pt", weights_only=False)
    for name in ENGINES:
        measured, planned = found[f"{name} memory"]
        # Buffers for gathered blocks and their gradients count in full, which so few blocks do not fill.
        assert 0.9 < planned / measured < 1.5, (name, planned / 2**30, measured / 2**30)
