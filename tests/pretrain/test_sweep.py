"""A sweep: its grid, its runs under one MLflow parent, and going on where it stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from data_pipeline.errors import UserError
from pretrain.sweep import expand, member_name
from tests.distributed.runs import ROOT, losses


def test_grid_is_the_product_and_brackets_hold_together():
    grid = expand(["seed=1,2", "views.global_scale=[0.2,1.0]", "objective.weight=0.1,0.5"])
    assert len(grid) == 4 and all("views.global_scale=[0.2,1.0]" in point for point in grid)
    names = {member_name("base", point, grid) for point in grid}
    assert names == {f"base-seed={s}-weight={w}" for s in (1, 2) for w in (0.1, 0.5)}
    assert expand(["augment={hue: 0, grey_probability: 0}"]) == [["augment={hue: 0, grey_probability: 0}"]]
    with pytest.raises(UserError, match="not an override"):
        expand(["seed"])


def sweep(recipe: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pretrain", "sweep", "--config", str(recipe), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


def test_sweep_makes_a_family_and_goes_on(recipe: Path, tmp_path: Path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    tracked = ["steps=2", "tracking.enabled=true", f"tracking.uri={store}"]
    assert "unknown key 'sed'" in sweep(recipe, "sed=0,1", *tracked).stderr
    done = sweep(recipe, "seed=0,1", *tracked)
    assert done.returncode == 0, done.stderr
    assert all(f"tiny-seed={s}" in done.stdout for s in (0, 1))
    first = losses(tmp_path / "runs/tiny-seed=0")
    assert first != losses(tmp_path / "runs/tiny-seed=1")

    wider = sweep(recipe, "seed=0,1,2", *tracked)
    assert wider.returncode == 0, wider.stderr
    assert wider.stderr.count("is finished already") == 2
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("isotorus").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "tiny"]
    children = {r.info.run_name for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert children == {f"tiny-seed={s}" for s in (0, 1, 2)}
