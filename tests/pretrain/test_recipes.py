"""Every packaged recipe trains: shrunk to a small machine, its own objective, encoder family and views."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from isotorus import jsonl
from pretrain.config import load_config
from pretrain.preflight import check
from pretrain.train import train

RECIPES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"))
SMALL = ["steps=2", "log_every=1", "data.batch_size=8", "data.workers=0", "tracking.enabled=false"]


@pytest.fixture(scope="module", autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(name: str, shards: Path, tmp_path: Path):
    encoder = load_config(name, []).encoder.name
    sizes = [56, 28] if "patch14" in encoder else [64, 32]
    shrunk = [f"views.global_size={sizes[0]}", f"views.local_size={sizes[1]}"]
    if encoder.startswith("vit"):
        shrunk += ["encoder.kwargs.depth=2", "encoder.kwargs.embed_dim=192", "encoder.kwargs.num_heads=3"]
    config = load_config(name, [*SMALL, *shrunk, f"data.path={shards}", f"runs={tmp_path}"])
    train(config, check(config, world_size=1), torch.device("cpu"))
    rows = jsonl.read(config.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(isinstance(row["loss"], float) and row["grad_norm"] > 0 for row in rows)
    assert rows[-1]["skipped_steps"] == 0 and not rows[-1]["collapsed"]
    assert {"effective_rank", "std_median", "probe_balanced_accuracy"} <= rows[-1].keys()
    kind = {"torus": "uniformity_over_null", "lejepa": "sigreg_over_null"}.get(config.objective.kind)
    assert kind is None or rows[-1][kind] > 0
