"""Checkpoints are found by runs, folders of runs, patterns, steps and timm folders."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from eval_suite.inputs import find
from isotorus.errors import UserError
from tests.eval_suite.eval_samples import KWARGS, save_checkpoint


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: a has steps 5, 10 and 12 of 12, b has step 10 of 12, c no complete checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    for run, steps in (("a", (5, 10, 12)), ("b", (10,))):
        for step in steps:
            path = save_checkpoint(folder / run / "checkpoints" / f"step_{step:08d}")
            described = json.loads((path / "encoder.json").read_text())
            described |= {"step": step, "config": {"steps": 12}}
            (path / "encoder.json").write_text(json.dumps(described))
        (folder / run / "checkpoints/latest").symlink_to(f"step_{steps[-1]:08d}")
    return folder


def steps(*given: object, every: int | None = None) -> list[tuple[str, int]]:
    return [(c.name, c.step) for c in find.find([str(name) for name in given], every)]


def test_a_run_is_its_newest_checkpoint_or_every_so_many_steps(runs: Path):
    assert steps(runs / "a") == [("a", 12)]
    assert steps(runs / "a", every=5) == [("a", 5), ("a", 10), ("a", 12)]
    assert steps(runs / "a", every=10) == [("a", 10), ("a", 12)]


def test_folders_and_patterns_of_runs_name_each_checkpoint_once(runs: Path):
    assert steps(runs) == [("a", 12), ("b", 10)]
    assert steps(f"{runs}/*/checkpoints/step_*10") == [("a", 10), ("b", 10)]
    assert steps(runs, runs / "b", f"{runs}/[ab]", every=10) == [("a", 10), ("a", 12), ("b", 10)]


def test_a_lost_link_and_an_unfinished_save(runs: Path, tmp_path: Path):
    run = Path(shutil.copytree(runs / "a", tmp_path / "a", symlinks=True))
    (run / "checkpoints/latest").unlink()
    (run / "checkpoints/step_00000012/COMPLETE").unlink()
    assert steps(run) == [("a", 10)]
    with pytest.raises(UserError, match="not saved to its end"):
        steps(run / "checkpoints/step_00000012")


def test_runs_that_have_ended(runs: Path):
    assert find.finished([str(runs / "a")])
    assert not find.finished([str(runs)])


def test_a_damaged_description_hides_no_checkpoint_and_not_that_the_run_has_ended(runs: Path, tmp_path: Path):
    run = Path(shutil.copytree(runs / "a", tmp_path / "a", symlinks=True))
    (run / "checkpoints/step_00000012/encoder.json").write_text("{")
    (run / "checkpoints/step_00000005/encoder.json").unlink()
    assert steps(run, every=5) == [("a", 5), ("a", 10), ("a", 12)]
    assert find.finished([str(run)])
    for step, message in ((12, "is not JSON"), (5, "has no encoder.json")):
        with pytest.raises(UserError, match=message):
            _ = find.find([str(run / f"checkpoints/step_{step:08d}")])[0].encoder


def test_only_who_waits_for_it_may_name_a_run_without_a_checkpoint(runs: Path, tmp_path: Path):
    (tmp_path / "new/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="no complete checkpoint yet"):
        find.find([str(tmp_path / "new"), str(runs / "a")])
    waited = find.find([str(tmp_path / "new"), str(runs / "a")], waiting=True)
    assert [(c.name, c.step) for c in waited] == [("a", 12)]
    assert not find.finished([str(tmp_path / "new")])
    with pytest.raises(UserError, match="no such run"):
        find.find([str(tmp_path / "none")], waiting=True)


def test_a_timm_folder_with_a_classifier(tmp_path: Path):
    model = timm.create_model("vit_tiny_patch16_224", **KWARGS | {"num_classes": 7}).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 7,
        "model_args": {key: value for key, value in KWARGS.items() if key not in ("num_classes", "in_chans")},
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (found,) = find.find([str(tmp_path)])
    assert found.encoder.embedding_width == 24 and found.encoder.image_size == 32
    x = torch.randn(2, 3, 32, 32)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(found.pretrained().eval()(x), expected)


@pytest.mark.parametrize(
    ("content", "message"), [("{}", "not the config.json of a timm model"), ("{", "is not JSON")]
)
def test_a_timm_folder_that_is_none(tmp_path: Path, content: str, message: str):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    (found,) = find.find([str(tmp_path)])
    with pytest.raises(UserError, match=message):
        _ = found.encoder
