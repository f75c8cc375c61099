"""A real MLflow server gets one run with each step once, in spite of kills; training never waits for it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pretrain.monitoring.config import TrackingConfig
from pretrain.monitoring.mlflow_mirror import Mirror
from tests.distributed.runs import Run, losses, train
from tests.mlflow_server import free_port, mlflow_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as address:
        yield address


def test_a_run_whose_id_was_never_noted_is_found_again(tmp_path: Path):
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "time": 1.0}\n')
    for _ in range(2):
        mirror = Mirror(tmp_path, "lost", config, {})
        mirror.start()
        mirror.finish("FINISHED")
        record = json.loads((tmp_path / "mlflow.json").read_text())
        # As if the process had been killed, or the answer had come too late.
        (tmp_path / "mlflow.json").write_text(json.dumps(record | {"run_id": None, "complete": False}))
    client = MlflowClient(config.store())
    (run,) = client.search_runs([client.get_experiment_by_name("isotorus").experiment_id])
    assert run.info.run_id == record["run_id"]
    assert [point.value for point in client.get_metric_history(run.info.run_id, "loss")] == [2.0]


@pytest.mark.nightly
def test_killed_run_is_one_run_with_each_step_once(server: str, recipe: Path, tmp_path: Path):
    tracked = ("tracking.enabled=true", f"tracking.uri={server}", "steps=60", "checkpoint.every=10")
    run = Run(2, recipe, tmp_path / "runs/tiny", *tracked)
    run.wait_for_step(35)
    run.kill()
    done = train(2, recipe, *tracked)
    assert done.returncode == 0, done.stderr

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("isotorus")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tiny" and run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001"
    history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "loss")}
    assert [p.step for p in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, 61))
    assert history == pytest.approx(losses(tmp_path / "runs/tiny"))


def test_training_does_not_need_the_server_and_what_it_missed_comes_later(
    server: str, recipe: Path, tmp_path: Path
):
    dead = f"http://127.0.0.1:{free_port()}"
    done = train(1, recipe, "tracking.enabled=true", f"tracking.uri={dead}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("does not answer") == 1
    assert list(losses(tmp_path / "runs/tiny")) == list(range(1, 13))

    alive = ("tracking.enabled=true", f"tracking.uri={server}", "tracking.experiment=later")
    for _ in range(2):  # the second time everything is there already
        again = train(1, recipe, *alive)
        assert again.returncode == 0 and "is finished" in again.stderr
    client = MlflowClient(server)
    (run,) = client.search_runs([client.get_experiment_by_name("later").experiment_id])
    assert run.info.status == "FINISHED"
    assert [p.step for p in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, 13))
