"""Results in the MLflow run of a training: scores are metrics, and settings of the scores parameters."""

import json
import logging
from pathlib import Path

import pytest
from mlflow import MlflowClient

from eval_suite import tracking

VALUES = {
    "eval/pretrained/knn/accuracy": 0.5,
    "eval/pretrained/knn/k": 10.0,
    "eval/geometry/all/samples": 1e6,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with an MLflow run."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("e")).info.run_id
    (tmp_path / "mlflow.json").write_text(json.dumps({"uri": uri, "experiment": "e", "run_id": run_id}))
    return tmp_path


def test_constants_are_parameters_and_a_later_value_is_a_tag(run: Path):
    record = tracking.store(run)
    assert record
    for step, k in ((100, 10.0), (200, 20.0), (200, 20.0)):
        assert tracking.send(record, record["uri"], step, VALUES | {"eval/pretrained/knn/k": k}, [], "eval")
    data = MlflowClient(record["uri"]).get_run(record["run_id"]).data
    assert data.metrics == {"eval/pretrained/knn/accuracy": 0.5}
    assert data.params == {"eval/pretrained/knn/k": "10", "eval/geometry/all/samples": "1000000"}
    assert data.tags["eval/pretrained/knn/k at step 200"] == "20"


def test_a_deleted_run_is_named_with_the_way_to_restore_it(run: Path, caplog: pytest.LogCaptureFixture):
    record = tracking.store(run)
    assert record
    client = MlflowClient(record["uri"])
    client.delete_run(record["run_id"])
    caplog.set_level(logging.WARNING, "eval_suite")
    assert not tracking.send(record, record["uri"], 100, VALUES, [], "eval")
    (line,) = [x.getMessage() for x in caplog.records if x.name.startswith("eval_suite")]
    assert f"mlflow runs restore --run-id {record['run_id']}" in line and "\n" not in line
    client.restore_run(record["run_id"])
    assert tracking.send(record, record["uri"], 100, VALUES, [], "eval")
    # For a run that the store does not have, the remedy is to create it again.
    assert not tracking.send(record | {"run_id": "0" * 32}, record["uri"], 100, VALUES, [], "eval")
    assert f"remove {run / 'mlflow.json'}" in caplog.text
