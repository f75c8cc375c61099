"""Windings measured by two ranks are those of one process, also where parameters are sharded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data_pipeline.order import share
from pretrain import engines
from pretrain.config import Config
from pretrain.engines.step import MicroBatch, train_step
from pretrain.methods import build_head
from pretrain.methods.config import Turned
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import build_encoder, timm_kwargs
from pretrain.monitoring.windings import Windings
from tests.eval_suite.torus_samples import pack_spots

IMAGES = 8
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"kind": "fsdp"},
    "zero-3": {"kind": "deepspeed", "zero_stage": 3, "accumulation": 2},
}


def measure(data: Path, options: dict[str, Any]) -> dict[str, float]:
    """Return what is measured between two steps, and the loss of the second."""
    config = Config(
        name="x",
        steps=10,
        data={"path": str(data), "batch_size": IMAGES},
        views={"global_size": 16, "local_views": 0, "actions": ["rotation", "hue"]},
        encoder={
            "name": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.3},
        },
        objective={
            "kind": "torus",
            "content": "lejepa",
            "pose_width": 12,
            "norm": "batch",
            "head": {"hidden": 24, "layers": 2},
            "lejepa": {"projector": {"hidden": 24, "layers": 2, "width": 8}, "sigreg": {"num_slices": 64}},
        },
        engine={"precision": "fp32"} | options,
    )
    kwargs = timm_kwargs(config.encoder, 16, 3)
    engine = engines.build_engine(
        lambda: build_encoder(config.encoder.name, kwargs, seed=0),
        build_head(config.objective, 32, 2, 0, Turned.of(config.views)),
        config.engine,
        config.optimizer,
        torch.device("cpu"),
    )
    inputs = SimpleNamespace(sources=config.data.open(), mean=(0.5,) * 3, std=(0.2,) * 3)
    windings = Windings(config, inputs, engine)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    mine, found = share(IMAGES, rank, ranks), {}
    for step in range(2):
        views = [torch.randn(2, IMAGES, 3, 16, 16, generator=generator) for _ in range(2)]
        turns = 6 * torch.rand(4, IMAGES, 2, generator=generator)
        keys = sample_keys(5, step, mine.start, len(mine), views=4)
        batch = MicroBatch(
            [x[:, mine.start : mine.stop] for x in views], keys, turns[:, mine.start : mine.stop]
        )
        parts = train_step(engine, batch, step, lr=1e-3).parts
        if step == 0:
            found = windings.measure(1)
    return found | {"loss": parts["loss"].item()}


def rank_main(rank: int, data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {name: measure(data, options) for name, options in ENGINES.items()}
    torch.save(found, folder / f"found{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_measure_what_one_process_does_and_train_on(tmp_path: Path):
    data = pack_spots(tmp_path / "shards", 40)
    alone = measure(data, {})
    assert alone["batch_norm_gap"] > 1 and 0 <= alone["windings_right"] <= 1
    mp.spawn(rank_main, (data, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"found{rank}.pt", weights_only=False) for rank in range(2))
    assert first == second
    for name, found in first.items():
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5), name
        # Each rank draws the turns of its own images; rounding may decide a winding of an untrained head.
        for key in ("windings_right", "windings_rotation", "windings_hue"):
            assert found[key] == pytest.approx(alone[key], abs=1 / 32), (name, key)
        for key in ("batch_norm_gap", "turned_uniformity_over_null"):
            assert found[key] == pytest.approx(first["ddp"][key], rel=1e-3), (name, key)
