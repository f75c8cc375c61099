"""A sweep: its grid, its runs under one MLflow parent, and continuing after a stop."""

import logging
from pathlib import Path

import pytest
from mlflow import MlflowClient

from isotorus.errors import UserError
from pretrain.monitoring.config import TrackingConfig
from pretrain.sweep import expand, main, member_name, parent_run
from tests.distributed.runs import ROOT, losses


def test_grid_is_the_product_and_brackets_hold_together():
    grid = expand(["seed=1,2", "views.global_scale=[0.2,1.0]", "objective.weight=0.1,0.5"])
    assert len(grid) == 4 and all("views.global_scale=[0.2,1.0]" in point for point in grid)
    names = {member_name("base", point, grid) for point in grid}
    assert names == {f"base-seed={s}-weight={w}" for s in (1, 2) for w in (0.1, 0.5)}
    assert expand(["augment={hue: 0, grey_probability: 0}"]) == [["augment={hue: 0, grey_probability: 0}"]]
    with pytest.raises(UserError, match="not an override"):
        expand(["seed"])


def test_sweep_makes_a_family_and_continues(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(ROOT)
    caplog.set_level(logging.INFO, "pretrain.sweep")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    tracked = ["steps=2", "tracking.enabled=true", f"tracking.uri={store}"]
    with pytest.raises(UserError, match="unknown key 'sed'"):
        main(["--config", str(recipe), "sed=0,1", *tracked])
    assert main(["--config", str(recipe), "seed=0,1", *tracked]) == 0
    said = capsys.readouterr().out
    assert all(f"tiny-seed={s}" in said for s in (0, 1))
    first = losses(tmp_path / "runs/tiny-seed=0")
    assert first != losses(tmp_path / "runs/tiny-seed=1")

    assert main(["--config", str(recipe), "seed=0,1,2", *tracked]) == 0
    assert caplog.text.count("is finished already") == 2
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("isotorus").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "tiny"]
    children = {r.info.run_name for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert children == {f"tiny-seed={s}" for s in (0, 1, 2)}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_id": 3}', '{"run_id": "a b: c"}', '{"run_id": null}'])
def test_a_half_written_record_of_a_sweep_is_made_again(text: str, tmp_path: Path):
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "tiny.sweep.json").write_text(text)
    made = parent_run("tiny", tmp_path, tracking)
    assert made and parent_run("tiny", tmp_path, tracking) == made
