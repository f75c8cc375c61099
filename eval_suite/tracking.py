"""Results to the MLflow run that the training made; a store that cannot be reached costs one warning."""

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isotorus.secrets import masked

log = logging.getLogger(__name__)


def store(run: Path) -> dict[str, str] | None:
    """mlflow.json of a run folder: uri, experiment, run_id; None if the run keeps no MLflow run."""
    try:
        record = json.loads((run / "mlflow.json").read_text())
        if not record["run_id"]:  # it has not come to be yet
            return None
        found = {key: str(record[key]) for key in ("uri", "experiment", "run_id")}
        # The record holds no password; the environment may have the same address with it.
        here = os.environ.get("MLFLOW_TRACKING_URI", "")
        return found | {"uri": here} if masked(here) == found["uri"] else found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("warning: %s cannot be read (%s); not logged to MLflow", run / "mlflow.json", error)
        return None


def send(record: dict[str, str], step: int, values: dict[str, float], files: list[Path], folder: str) -> bool:
    """Log `values` at a checkpoint's step, and `files` as artifacts in `folder`; False with a warning.

    What the store has already is not sent again, so a repeated evaluation fills gaps only.
    """
    uri = record["uri"]
    try:
        _require_database(uri)
        # An unreachable server must not hold the command for MLflow's default of minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        # Imported here: it takes seconds, which a run without MLflow need not spend.
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient(uri)
        run_id, now = record["run_id"], int(time.time() * 1000)
        known = client.get_run(run_id).data.metrics
        fresh = [
            Metric(name, value, now, step)
            for name, value in sorted(values.items())
            if name not in known
            or (step, value) not in {(m.step, m.value) for m in client.get_metric_history(run_id, name)}
        ]
        for start in range(0, len(fresh), 1000):
            client.log_batch(run_id, metrics=fresh[start : start + 1000])
        for file in files:
            client.log_artifact(run_id, str(file), artifact_path=folder)
    except Exception as error:  # whatever ails the store, the results are on disk already
        reason = masked((str(error).splitlines() or [type(error).__name__])[0])[:200]
        log.warning(
            "warning: MLflow at %s does not take the results (%s); they are in %s",
            masked(uri),
            reason,
            files[0] if files else "their files",
        )
        return False
    return True


def scalars(results: dict[str, Any]) -> dict[str, float]:
    """Every single number, as eval/<representation>/<metric>/… and eval/geometry/<cloud>/<metric>/…."""
    measured = _flatten(results["representations"], "eval")
    return dict(measured) | dict(_flatten(results["geometry"], "eval/geometry"))


def _flatten(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, dict):
            yield from _flatten(value, name)
        elif isinstance(value, int | float):
            yield name, float(value)


def _require_database(uri: str) -> None:
    """MLflow would make a missing sqlite file anew, and then not find the run in it."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise FileNotFoundError(f"no file {uri.removeprefix('sqlite:///')} seen from {Path.cwd()}")
