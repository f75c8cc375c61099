"""Every packaged recipe trains: shrunk to a small machine, its own objective, encoder family and views."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from data_pipeline.__main__ import main
from isotorus import jsonl
from pretrain.config import load_config
from pretrain.preflight.check import check
from pretrain.train import train
from tests.data_pipeline.pictures import picture

RECIPES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"))
SMALL = ["steps=2", "log_every=1", "data.batch_size=8", "data.workers=0", "tracking.enabled=false"]


@pytest.fixture(scope="module", autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack 16 colour images, since those of `shards` are grey and have no hue to turn."""
    folder = tmp_path_factory.mktemp("coloured")
    for number in range(16):
        (folder / f"images/{number % 2}").mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"images/{number % 2}/{number}.png")
    command = ["pack", str(folder / "images"), str(folder / "packed"), "--labels", "folder", "--workers", "1"]
    assert main(command) == 0
    return folder / "packed"


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(name: str, shards: Path, coloured: Path, tmp_path: Path):
    recipe = load_config(name, [])
    encoder, data = recipe.encoder.name, coloured if "hue" in recipe.views.actions else shards
    sizes = [56, 28] if "patch14" in encoder else [64, 32]
    shrunk = [f"views.global_size={sizes[0]}", f"views.local_size={sizes[1]}"]
    if encoder.startswith("vit"):
        shrunk += ["encoder.kwargs.depth=2", "encoder.kwargs.embed_dim=192", "encoder.kwargs.num_heads=3"]
    if encoder.startswith("convnext"):
        shrunk += ["encoder.kwargs.depths=[1,1,1,1]", "encoder.kwargs.dims=[16,24,32,48]"]
        shrunk.append("objective.pose_width=16")
    if recipe.views.actions:
        shrunk.append("views.turned_size=32")
    config = load_config(name, [*SMALL, *shrunk, f"data.path={data}", f"runs={tmp_path}"])
    train(config, check(config, world_size=1), torch.device("cpu"))
    rows = jsonl.read(config.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(isinstance(row["loss"], float) and row["grad_norm"] > 0 for row in rows)
    assert rows[-1]["skipped_steps"] == 0 and not rows[-1]["collapsed"]
    assert {"effective_rank", "std_median", "probe_balanced_accuracy"} <= rows[-1].keys()
    kind = {"torus": "uniformity_over_null", "lejepa": "sigreg_over_null"}.get(config.objective.kind)
    assert kind is None or rows[-1][kind] > 0
