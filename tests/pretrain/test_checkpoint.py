"""A checkpoint as others see it (timm, torch's DCP tools), and as a restart does, whatever the method."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from pretrain import checkpoint, metrics
from pretrain.config import Config, load_config
from pretrain.preflight import check
from pretrain.train import build_engine, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run(recipe: Path, *overrides: str) -> Config:
    config = load_config(str(recipe), list(overrides))
    train(config, check(config, world_size=1), CPU)
    return config


def test_timm_loads_the_export_with_equal_features(recipe: Path):
    config = run(recipe, "steps=2")
    newest = config.folder / "checkpoints/latest"
    description = json.loads((newest / "encoder.json").read_text())
    model = timm.create_model(description["name"], **description["kwargs"])
    model.load_state_dict(load_file(newest / "encoder.safetensors"), strict=True)

    engine = build_engine(config, check(config, 1), CPU)
    checkpoint.restore(newest.resolve(), engine, None)
    x = torch.randn(3, description["channels"], description["image_size"], description["image_size"])
    with torch.inference_mode():
        trained = engine.networks.encoder.encoder.eval()(x)
        torch.testing.assert_close(model.eval()(x), trained)
        untrained = build_engine(config, check(config, 1), CPU).networks.encoder.encoder.eval()(x)
    assert trained.shape == (3, description["embedding_width"])
    assert not torch.allclose(trained, untrained, atol=1e-3)


def test_torch_opens_the_dcp_files(recipe: Path, tmp_path: Path):
    config = run(recipe, "steps=2")
    dcp_to_torch_save(config.folder / "checkpoints/latest", tmp_path / "whole.pt")
    state = torch.load(tmp_path / "whole.pt", weights_only=False)
    exported = load_file(config.folder / "checkpoints/latest/encoder.safetensors")
    for name, value in exported.items():
        assert torch.equal(state["model"][f"encoder.encoder.{name}"], value)
    assert state["step"] == 2


@pytest.mark.parametrize(
    "method",
    [
        ["objective={kind: jepa, projector: {hidden: 16, width: 8}, predictor: {hidden: 16}}"],
        ["objective={kind: torus, head: {hidden: 16}}"],
        ["objective.auto_weight.enabled=true", "objective.auto_weight.rate=0.1"],
        ["encoder.kwargs.drop_path_rate=0.3"],
    ],
    ids=["target network", "torus", "dual ascent", "drop path"],
)
def test_every_state_survives_a_restart(recipe: Path, method: list[str]):
    whole = run(recipe, "steps=4", "name=whole", *method)
    first = run(recipe, "steps=4", "checkpoint.every=2", *method)
    for path in first.folder.glob("checkpoints/step_00000004/*"):
        path.unlink()
    (first.folder / "checkpoints/step_00000004").rmdir()
    run(recipe, "steps=4", *method)

    ignored = {"images_per_second", "data_wait", "memory_gib", "time"}
    a, b = (metrics.read(c.folder / "metrics.jsonl") for c in (whole, first))
    assert [{k: v for k, v in row.items() if k not in ignored} for row in a] == [
        {k: v for k, v in row.items() if k not in ignored} for row in b
    ]
