"""k-NN and RankMe on held-out images are the same on one rank and on two, and after a run was continued."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data_pipeline.dataset.index import Dataset
from pretrain import engines
from pretrain.config import Config
from pretrain.methods import build_head
from pretrain.models.encoder import build_encoder, timm_kwargs
from pretrain.monitoring.held_out import HeldOut
from tests.distributed.runs import killing, train
from tests.eval_suite.torus_samples import pack_spots

ENGINES: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {"kind": "fsdp"}}


def embed(data: Path, options: dict[str, Any]) -> torch.Tensor:
    """Return the embeddings of 70 of 72 images, in three groups of which the last one is short."""
    config = Config(
        name="x",
        steps=10,
        data={"path": str(data), "batch_size": 8},
        views={"global_size": 16, "local_views": 0},
        encoder={
            "name": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
        },
        held_out={"path": str(data), "images": 70},
        engine={"precision": "fp32"} | options,
    )
    kwargs = timm_kwargs(config.encoder, 16, 3)
    engine = engines.build_engine(
        lambda: build_encoder(config.encoder.name, kwargs, seed=0),
        build_head(config.objective, 32, 2, 0, None),
        config.engine,
        config.optimizer,
        torch.device("cpu"),
    )
    inputs = SimpleNamespace(sources=config.data.open(), embedding_width=32, mean=(0.5,) * 3, std=(0.2,) * 3)
    return HeldOut(config, inputs, Dataset(data), engine).embed().embeddings  # type: ignore[arg-type]


def rank_main(rank: int, data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save({name: embed(data, options) for name, options in ENGINES.items()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_embed_what_one_process_does(tmp_path: Path):
    data = pack_spots(tmp_path / "shards", 72)
    alone = embed(data, {})
    assert alone.shape == (70, 32)
    mp.spawn(rank_main, (data, tmp_path), nprocs=2)
    for rank in range(2):
        for name, found in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(found, alone, msg=f"{name}, rank {rank}")


@pytest.mark.nightly
def test_a_run_that_is_continued_logs_the_same_values(recipe: Path, images: Path, tmp_path: Path):
    held_out = pack_held_out(images, tmp_path)
    options = (f"held_out.path={held_out}", "held_out.every=3", "held_out.images=40", "log_every=2")
    whole = train(1, recipe, *options)
    assert whole.returncode == 0, whole.stderr
    expected = rows(tmp_path)
    assert list(expected) == [4, 6, 10, 12]

    (tmp_path / "runs/tiny").rename(tmp_path / "runs/whole")
    when = "event == 'open' and '/.partial_00000008/' in paths[0]"
    killed = train(1, recipe, *options, environment=killing(tmp_path, None, when))
    assert killed.returncode != 0
    continued = train(1, recipe, *options)
    assert continued.returncode == 0 and "from step_00000004" in continued.stderr, continued.stderr
    assert rows(tmp_path) == expected


def pack_held_out(images: Path, folder: Path) -> Path:
    """Pack some of the images anew, which gives another data set."""
    some = folder / "some"
    for image in sorted(images.rglob("*.png"))[:50]:
        place = some / image.relative_to(images)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(image.read_bytes())
    command = [sys.executable, "-m", "data_pipeline", "pack", some, folder / "held", "--labels", "folder"]
    subprocess.run([*command, "--workers", "1"], check=True, capture_output=True)
    return folder / "held"


def rows(folder: Path) -> dict[int, dict[str, float]]:
    """Return what was measured on held-out images by step."""
    lines = map(json.loads, (folder / "runs/tiny/metrics.jsonl").read_text().splitlines())
    return {
        row["step"]: {key: value for key, value in row.items() if key.startswith("held_out_")}
        for row in lines
        if "held_out_rankme" in row
    }
