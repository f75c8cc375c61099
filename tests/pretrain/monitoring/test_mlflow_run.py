"""After any restart MLflow shows the true losses and parameters of a run; faults of a store are named."""

import json
import logging
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from isotorus import mlflow_store
from isotorus.mlflow_store import StoreProblem, connect
from pretrain.monitoring.config import TrackingConfig
from pretrain.monitoring.mlflow_mirror import Mirror
from pretrain.monitoring.mlflow_run import is_complete

LR = {"name": "a", "optimizer.lr": 0.001, "steps": 2}
LOWER = LR | {"optimizer.lr": 0.0001}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def config(empty_store: Path, tmp_path: Path) -> TrackingConfig:
    """Return the settings of a new store for each test."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")


def start(
    folder: Path,
    config: TrackingConfig,
    losses: list[float],
    parameters: dict[str, Any] = LR,
    status: str = "FINISHED",
    **options: Any,
) -> dict[str, Any]:
    """Mirror a run that has these losses from step 1 on; return what mlflow.json then holds."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"step": i, "loss": x, "time": i}) for i, x in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    mirror = Mirror(folder, parameters["name"], config, parameters, **options)
    mirror.start()
    mirror.finish(status)
    path = folder / "mlflow.json"
    return json.loads(path.read_text()) if path.exists() else {}


def shown(config: TrackingConfig) -> list[tuple[Any, list[float]]]:
    """Return the runs that MLflow's page shows, each with its losses by step."""
    client = MlflowClient(config.store())
    found = client.get_experiment_by_name(config.experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    return [(r, [p.value for p in client.get_metric_history(r.info.run_id, "loss")]) for r in runs]


def test_changed_parameters_are_shown_with_their_history(config: TrackingConfig, tmp_path: Path):
    client, folder = MlflowClient(config.store()), tmp_path / "a"
    first = start(folder, config, [3.0, 2.0])["run_id"]
    client.log_metric(first, "eval/knn", 0.5, step=2)
    client.set_tag(first, "mlflow.note.content", "the one with new data")
    (tmp_path / "report.html").write_text("report")
    client.log_artifact(first, str(tmp_path / "report.html"), "eval/2")
    changes = [(2, "optimizer.lr", "0.001 → 0.0001"), (2, "steps", "2 → 3")]
    start(folder, config, [3.0, 2.0, 1.0], LOWER | {"steps": 3}, start=2, changes=changes)

    ((run, losses),) = shown(config)
    assert losses == [3.0, 2.0, 1.0]
    assert run.data.params == {"name": "a", "optimizer.lr": "0.0001", "steps": "3"}
    assert run.data.tags["isotorus.changes"] == "step 2: optimizer.lr 0.001 → 0.0001, steps 2 → 3"
    assert run.data.metrics["eval/knn"] == 0.5 and run.data.metrics["Loss/loss"] == 1.0
    assert run.data.tags["mlflow.note.content"] == "the one with new data"
    assert [x.path for x in client.list_artifacts(run.info.run_id, "eval/2")] == ["eval/2/report.html"]
    assert run.info.start_time == client.get_run(first).info.start_time


def test_the_same_start_again_keeps_the_run(config: TrackingConfig, tmp_path: Path):
    first = start(tmp_path / "a", config, [3.0, 2.0], status="KILLED")
    again = start(tmp_path / "a", config, [3.0, 2.0, 1.0], start=1)
    assert again["run_id"] == first["run_id"]
    ((_, losses),) = shown(config)
    assert losses == [3.0, 2.0, 1.0]


@pytest.mark.parametrize("parameters", [LR, LOWER])
def test_a_restart_before_the_first_checkpoint_replaces(
    config: TrackingConfig, tmp_path: Path, parameters: dict[str, Any]
):
    """The losses are replaced in one MLflow run, whether data or parameters have changed."""
    start(tmp_path / "a", config, [9.0, 8.0, 7.0], status="FAILED")
    changes = [(0, "optimizer.lr", "0.001 → 0.0001")] if parameters is LOWER else []
    start(tmp_path / "a", config, [3.0, 2.0], parameters, changes=changes)
    ((run, losses),) = shown(config)
    assert losses == [3.0, 2.0] and run.data.params["optimizer.lr"] == str(parameters["optimizer.lr"])
    assert "isotorus.changes" not in run.data.tags


def test_a_rollback_replaces_the_losses_that_were_dropped(config: TrackingConfig, tmp_path: Path):
    folder = tmp_path / "a"
    folder.mkdir()
    rows = [{"step": step, "loss": loss, "time": step} for step, loss in ((1, 3.0), (2, 500.0))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mirror = Mirror(folder, "a", config, LR)
    mirror.POLL_SECONDS = 0.1
    mirror.start()
    while not any(losses == [3.0, 500.0] for _, losses in shown(config)):
        assert mirror.is_alive()
    rows[1]["loss"] = 2.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mirror.read_again(1)
    mirror.finish("FINISHED")
    ((_, losses),) = shown(config)
    assert losses == [3.0, 2.0]


def test_a_kill_while_a_run_is_replaced_leaves_one(config: TrackingConfig, tmp_path: Path):
    folder = tmp_path / "a"
    old = start(folder, config, [3.0, 2.0])["run_id"]
    new = start(folder, config, [3.0, 2.0], LOWER, start=2)
    MlflowClient(config.store()).restore_run(old)
    # As if the process had ended after it created the new run, before it knew the id of that.
    interrupted = new | {"run_id": None, "replaces": [old], "complete": False}
    (folder / "mlflow.json").write_text(json.dumps(interrupted))
    start(folder, config, [3.0, 2.0], LOWER, start=2)
    ((run, losses),) = shown(config)
    assert run.info.run_id == new["run_id"] and losses == [3.0, 2.0]


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_copied_folder_has_a_run_of_its_own(config: TrackingConfig, tmp_path: Path, name: str):
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / name
    first = start(tmp_path / "a", config, [3.0, 2.0])
    shutil.copytree(tmp_path / "a", copy)
    assert not is_complete(copy, name, config) and is_complete(tmp_path / "a", "a", config)
    second = start(copy, config, [3.0, 2.0, 1.0], LR | {"name": name})
    assert second["run_id"] != first["run_id"]
    found = {run.info.run_id: losses for run, losses in shown(config)}
    assert found == {first["run_id"]: [3.0, 2.0], second["run_id"]: [3.0, 2.0, 1.0]}


def test_a_copy_with_an_mlflow_json_of_before_has_a_run_of_its_own(config: TrackingConfig, tmp_path: Path):
    first = start(tmp_path / "a", config, [3.0])
    before = {key: first[key] for key in ("uri", "experiment", "run_id", "key", "complete")}
    (tmp_path / "b").mkdir()
    (tmp_path / "b/mlflow.json").write_text(json.dumps(before))
    assert start(tmp_path / "b", config, [3.0, 2.0], LR | {"name": "b"})["run_id"] != first["run_id"]
    assert sorted(losses for _, losses in shown(config)) == [[3.0], [3.0, 2.0]]


def test_a_moved_folder_keeps_its_run(config: TrackingConfig, tmp_path: Path):
    first = start(tmp_path / "a", config, [3.0])
    (tmp_path / "a").rename(tmp_path / "moved")
    assert start(tmp_path / "moved", config, [3.0])["run_id"] == first["run_id"]


@pytest.mark.parametrize("given", [None, "sqlite:///mlflow.db", "sqlite:///./mlflow.db"])
def test_a_relative_store_is_that_of_the_first_start(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = TrackingConfig(uri=given)
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    shutil.copy(empty_store, tmp_path / "one/mlflow.db")
    monkeypatch.chdir(tmp_path / "one")
    first = start(tmp_path / "a", config, [3.0])
    monkeypatch.chdir(tmp_path / "two")
    again = start(tmp_path / "a", config, [3.0, 2.0], start=1)
    assert again["run_id"] == first["run_id"] and again["uri"] == f"sqlite:///{tmp_path}/one/mlflow.db"
    assert not (tmp_path / "two/mlflow.db").exists()


def test_another_store_gets_the_whole_run(
    config: TrackingConfig, empty_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The old store may have been moved or lost, or only its address has changed."""
    first = start(tmp_path / "a", config, [3.0])
    shutil.copy(empty_store, tmp_path / "new.db")
    new = TrackingConfig(uri=f"sqlite:///{tmp_path}/new.db")
    assert not is_complete(tmp_path / "a", "a", new)
    start(tmp_path / "a", new, [3.0, 2.0], start=1)
    assert f"MLflow run {first['run_id']} is not in {new.uri}" in caplog.text
    assert [losses for _, losses in shown(new)] == [[3.0, 2.0]]
    # A store that was moved with its runs.
    shutil.copy(tmp_path / "new.db", tmp_path / "moved.db")
    moved = TrackingConfig(uri=f"sqlite:///{tmp_path}/moved.db")
    start(tmp_path / "a", moved, [3.0, 2.0, 1.0], start=2)
    assert [losses for _, losses in shown(moved)] == [[3.0, 2.0, 1.0]]


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_what_was_deleted_is_said_and_the_remedy_works(
    config: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
):
    client, folder = MlflowClient(config.store()), tmp_path / "a"
    run_id = start(folder, config, [3.0])["run_id"]
    experiment = client.get_run(run_id).info.experiment_id
    client.delete_run(run_id) if what == "run" else client.delete_experiment(experiment)
    start(folder, config, [3.0, 2.0], start=1)
    command = f"mlflow runs restore --run-id {run_id}"
    if what == "experiment":
        command = f"mlflow experiments restore --experiment-id {experiment}"
    assert f"'MLFLOW_TRACKING_URI={config.uri} {command}'" in caplog.text
    assert "the same command again" in caplog.text and "does not answer" not in caplog.text
    assert not is_complete(folder, "a", config)

    client.restore_run(run_id) if what == "run" else client.restore_experiment(experiment)
    start(folder, config, [3.0, 2.0], start=2)
    ((run, losses),) = shown(config)
    assert run.info.run_id == run_id and losses == [3.0, 2.0]


def test_another_experiment_may_be_chosen(config: TrackingConfig, tmp_path: Path):
    client = MlflowClient(config.store())
    first = start(tmp_path / "a", config, [3.0])
    other = config.model_copy(update={"experiment": "other"})
    start(tmp_path / "a", other, [3.0])  # the run moves
    assert shown(config) == [] and [losses for _, losses in shown(other)] == [[3.0]]
    assert client.get_run(first["run_id"]).info.lifecycle_stage == "deleted"
    client.delete_experiment(client.get_experiment_by_name("other").experiment_id)
    third = config.model_copy(update={"experiment": "third"})
    start(tmp_path / "a", third, [3.0])
    assert [losses for _, losses in shown(third)] == [[3.0]]


def test_a_run_that_is_gone_for_good_is_created_again(config: TrackingConfig, tmp_path: Path):
    first = start(tmp_path / "a", config, [3.0])
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("delete from runs where run_uuid = ?", [first["run_id"]])
    start(tmp_path / "a", config, [3.0, 2.0], start=1)
    assert [losses for _, losses in shown(config)] == [[3.0, 2.0]]


def test_a_store_that_is_away_while_a_finished_run_is_extended(config: TrackingConfig, tmp_path: Path):
    start(tmp_path / "a", config, [3.0])
    (tmp_path / "mlflow.db").rename(tmp_path / "away.db")
    (tmp_path / "mlflow.db").mkdir()
    start(tmp_path / "a", config, [3.0, 2.0], start=1)
    assert not is_complete(tmp_path / "a", "a", config)
    (tmp_path / "mlflow.db").rmdir()
    (tmp_path / "away.db").rename(tmp_path / "mlflow.db")
    start(tmp_path / "a", config, [3.0, 2.0], start=2)
    assert is_complete(tmp_path / "a", "a", config)
    assert [losses for _, losses in shown(config)] == [[3.0, 2.0]]


def broken(path: Path, kind: str) -> None:
    if kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "text":
        path.write_text("no database at all")
    else:
        version = {"older": "acf3f17fdcc7", "newer": "ffffffffffff"}[kind]
        with sqlite3.connect(path) as database:
            database.execute("update alembic_version set version_num = ?", [version])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("folder", "that is a folder, not a database; move it away"),
        ("text", "is no SQLite database; move it away"),
        ("older", "older version of MLflow (schema acf3f17fdcc7): make a copy of the database, then upgrade"),
        ("newer", "newer version of MLflow (schema ffffffffffff)"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_as_what_it_is(
    config: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, said: str
):
    broken(tmp_path / "mlflow.db", kind)
    start(tmp_path / "a", config, [3.0])
    problem, end = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert said in problem and "does not answer" not in problem and "\n" not in problem
    assert end.startswith(f"MLflow at {config.uri} has not taken everything")
    if kind == "older":
        assert f"'mlflow db upgrade {config.uri}'" in problem


@pytest.mark.nightly
def test_many_processes_create_a_store_at_once(tmp_path: Path):
    code = (
        "import sys; from isotorus import mlflow_store as m; c = m.connect(sys.argv[1]); "
        "c.create_run(m.experiment_id(c, 'x'))"
    )
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    processes = [subprocess.Popen([sys.executable, "-c", code, uri]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(shown(TrackingConfig(uri=uri, experiment="x"))) == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"]


def test_the_experiment_is_one_of_model_training(config: TrackingConfig):
    client = connect(config.store())
    theirs = client.create_experiment("made by hand")
    for name in ("made by hand", "new"):
        tags = client.get_experiment(mlflow_store.experiment_id(client, name)).tags
        assert tags["mlflow.experimentKind"] == "custom_model_development", name
    client.set_experiment_tag(theirs, "mlflow.experimentKind", "genai_development")
    mlflow_store.experiment_id(client, "made by hand")
    assert client.get_experiment(theirs).tags["mlflow.experimentKind"] == "genai_development"


def test_system_metrics_are_logged_at_the_steps(config: TrackingConfig, tmp_path: Path):
    folder, now = tmp_path / "a", 4e9  # later than this process
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 7, "loss": 1.0, "time": now}) + "\n")
    mirror = Mirror(folder, "a", config.model_copy(update={"system_metrics": True}), LR)
    mirror.start()
    mirror.finish("FINISHED")
    ((run, _),) = shown(config)
    client = MlflowClient(config.store())
    (point,) = client.get_metric_history(run.info.run_id, "system/system_memory_usage_percentage")
    assert point.step == 7 and 0 < point.value < 100


@pytest.mark.parametrize(
    ("uri", "relative"),
    [
        ("sqlite:///mlflow.db", True),
        ("sqlite:////data/mlflow.db", False),
        ("mlruns", True),
        ("file:./mlruns", True),
        ("file:///data/mlruns", False),
        ("http://host:5000", False),
        ("postgresql://host/mlflow", False),
        ("databricks", False),
    ],
)
def test_local_addresses_are_made_absolute(uri: str, relative: bool):
    assert mlflow_store.is_relative(uri) == relative
    made = mlflow_store.absolute(uri)
    assert not mlflow_store.is_relative(made) and (made == uri) != relative
    if relative:
        assert str(mlflow_store.local_path(made)).startswith(str(Path.cwd()))


def test_a_deleted_experiment_is_no_place_for_a_new_run(config: TrackingConfig):
    client = connect(config.store())
    client.delete_experiment(client.create_experiment("x"))
    with pytest.raises(StoreProblem, match="has the experiment 'x' as deleted: restore it with"):
        mlflow_store.experiment_id(client, "x")
