"""A checkpoint as timm and torch's DCP tools read it, and as a restart does, with every method."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.nn.functional import normalize

from eval_suite.features.representation import pretrained
from eval_suite.inputs.find import find
from isotorus import jsonl
from isotorus.errors import UserError
from pretrain.assemble import build_engine
from pretrain.checkpoint import folders
from pretrain.checkpoint import store as checkpoint
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.run_state import RunState
from pretrain.checkpoint.saver import Saver, share
from pretrain.checkpoint.warm_start import find_weights
from pretrain.config import Config, load_config
from pretrain.monitoring.guard import Guard
from pretrain.preflight.check import check
from pretrain.train import train

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
    config = run(recipe, "steps=2", "views.whole_size=64")
    newest = config.folder / "checkpoints/latest"
    description = json.loads((newest / "encoder.json").read_text())
    assert description["image_size"] == 64 != config.views.global_size
    model = timm.create_model(description["name"], **description["kwargs"])
    model.load_state_dict(load_file(newest / "encoder.safetensors"), strict=True)

    engine = build_engine(config, check(config, 1), CPU)
    RunState(engine, Guard(config.guard, config.folder, engine.networks, CPU), None).restore(newest)
    x = torch.randn(3, description["channels"], description["image_size"], description["image_size"])
    with torch.inference_mode():
        trained = engine.networks.encoder.encoder.eval()(x)
        torch.testing.assert_close(model.eval()(x), trained)
        untrained = build_engine(config, check(config, 1), CPU).networks.encoder.encoder.eval()(x)
    assert trained.shape == (3, description["embedding_width"])
    assert not torch.allclose(trained, untrained, atol=1e-3)


def test_the_evaluation_has_the_projections_of_angles_and_of_content(recipe: Path):
    """They are those of the head in training; a checkpoint without content's file gives the angle pairs."""
    content = "content: lejepa, pose_width: 24, lejepa: {projector: {hidden: 16, width: 8}}"
    config = run(recipe, "steps=2", f"objective={{kind: torus, head: {{hidden: 16}}, {content}}}")
    newest = config.folder / "checkpoints/latest"
    engine = build_engine(config, check(config, 1), CPU)
    RunState(engine, Guard(config.guard, config.folder, engine.networks, CPU), None).restore(newest)
    head = engine.networks.head.eval()
    x = torch.randn(5, 1, 32, 32)

    def evaluated() -> dict[str, torch.Tensor]:
        return pretrained(find([str(config.folder)])[0]).embed_normalised(x)

    with torch.inference_mode():
        found = evaluated()
        pairs = head.projector(found["pose"])
        torch.testing.assert_close(found["projector"], head.content.projector(found["content"]))
        torch.testing.assert_close(found["angles"].view(5, 2, 2), normalize(pairs.view(5, 2, 2), dim=2))
        (newest / "content_projector.safetensors").unlink()
        before = evaluated()
        torch.testing.assert_close(before["projector"], pairs)
        torch.testing.assert_close(before["angles"], found["angles"])


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
        [
            "objective={kind: jepa, projector: {hidden: 16, width: 8}, predictor: {hidden: 16}, "
            "auto_weight: {enabled: true, rate: 0.1}}"
        ],
        ["objective={kind: torus, head: {hidden: 16}, auto_weight: {enabled: true, rate: 0.1}}"],
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

    a, b = (jsonl.read(c.folder / "metrics.jsonl") for c in (whole, first))
    timed = re.compile("time|.*second.*|data_wait|memory_gib")
    assert [{k: v for k, v in row.items() if not timed.fullmatch(k)} for row in a] == [
        {k: v for k, v in row.items() if not timed.fullmatch(k)} for row in b
    ]


def test_what_is_saved_is_what_was_there_when_saving_began(tmp_path: Path):
    state = {"a": torch.randn(1000, 1000), "b": {"c": torch.arange(5), "d": "words"}}
    before = copy.deepcopy(state)
    saver = Saver(tmp_path, CheckpointConfig(), step=0)
    for step in (1, 2):
        saver.save(step, state, {})
        state["a"].fill_(step)  # while it is being written
    saver.wait()
    loaded = {"a": torch.zeros(1000, 1000), "b": {"c": torch.zeros(5, dtype=torch.int64), "d": ""}}
    checkpoint.restore(tmp_path / "step_00000001", loaded)
    assert loaded["b"]["d"] == "words" and torch.equal(loaded["b"]["c"], before["b"]["c"])
    assert torch.equal(loaded["a"], before["a"])
    checkpoint.restore(tmp_path / "step_00000002", loaded)
    assert (loaded["a"] == 1).all()


def test_ranks_share_what_all_of_them_hold():
    sizes = {f"{i}": 1 + i % 3 for i in range(30)}
    state = {"a": {name: torch.zeros(size) for name, size in sizes.items()}, "step": 3}
    shares = [share(state, rank, 4) for rank in range(4)]
    assert [part.get("step") for part in shares] == [3, None, None, None]
    assert sorted(name for part in shares for name in part["a"]) == sorted(sizes)
    assert all(13 <= sum(sizes[name] for name in part["a"]) <= 17 for part in shares)


def test_old_checkpoints_are_removed_but_for_some(recipe: Path):
    keep = ["checkpoint.every=2", "checkpoint.keep_last=2", "checkpoint.keep_every=6"]
    config = run(recipe, "steps=11", *keep)
    found = sorted(path.name for path in (config.folder / "checkpoints").iterdir())
    assert found == ["latest", "step_00000006", "step_00000010", "step_00000011"]
    rows = jsonl.read(config.folder / "metrics.jsonl")
    assert [row["step"] for row in rows if row["seconds_checkpoint"] > 0] == [3, 5, 7, 9, 11]


def test_a_checkpoint_of_other_tensors_is_refused_and_another_probe_is_reset(recipe: Path, caplog):
    run(recipe, "steps=2", "online_probe=false")
    with pytest.raises(UserError, match=r"is of another model: model\.head\..* there and \(12, 32\) here"):
        run(recipe, "steps=3", "accept=[objective]", "objective.projector.width=12")
    with caplog.at_level("INFO"):
        run(recipe, "steps=3", "accept=[objective]", "objective.weight=0.2")
    assert "the online probe begins anew" in caplog.text


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_any_damage_is_found_and_the_checkpoint_before_offered(recipe: Path, tmp_path: Path):
    config = run(recipe, "steps=2", "checkpoint.every=1")
    newest = config.folder / "checkpoints/step_00000002"
    whole = tmp_path / "whole"
    newest.rename(whole)
    for name in ("__0_0.distcp", ".metadata", "encoder.safetensors"):
        for damage, said in ((cut, "bytes of"), (flip, "another checksum"), (Path.unlink, "cannot be read")):
            shutil.copytree(whole, newest)
            damage(newest / name)
            with pytest.raises(UserError) as error:
                checkpoint.restore(newest, {})
            shutil.rmtree(newest)
            assert f"step_00000002 is damaged: {name}" in str(error.value) and said in str(error.value)
            assert str(error.value).endswith("remove that folder to continue from step_00000001")


@pytest.mark.parametrize("disk", ["has no links", "has a folder in the way"])
def test_a_run_needs_no_link_to_its_newest_checkpoint(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, disk: str
):
    config = load_config(str(recipe), ["checkpoint.every=2", "steps=2", "optimizer.final_lr_ratio=1"])
    checkpoints = config.folder / "checkpoints"
    if disk == "has no links":

        def symlink(*names: object, **options: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("os.symlink", symlink)
    else:
        (checkpoints / "latest").mkdir(parents=True)  # as a copy without links makes it
        (checkpoints / "latest/encoder.json").write_text("{}")
    for steps in (2, 4):
        config = load_config(
            str(recipe), ["checkpoint.every=2", f"steps={steps}", "optimizer.final_lr_ratio=1"]
        )
        train(config, check(config, 1), torch.device("cpu"))
    newest = folders.latest(checkpoints)
    assert newest and newest.name == "step_00000004"
    assert find_weights(config.folder, "encoder.weights").file == str(newest / "encoder.safetensors")
    assert [each.folder for each in find([str(config.folder)])] == [newest]
