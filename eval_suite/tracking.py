"""Results in the MLflow run that the training made; a store that cannot be reached costs one warning."""

import json
import logging
import os
import shlex
import time
from pathlib import Path
from typing import Any

from eval_suite.report import results_table
from isotorus.secrets import masked

log = logging.getLogger(__name__)


def publish(results: dict[str, Any], out: Path) -> str:
    """Send the numbers and files of an evaluation to the MLflow run of its training.

    Every number gets the name that it has in results.csv, below "eval/". Returns a line that says how to see
    them; an empty string if the training keeps no MLflow run or it cannot be reached.
    """
    run = results["checkpoint"]["run"]
    record = store(Path(run)) if run else None
    if record is None:
        return ""
    step, files = results["checkpoint"]["step"], [out / "results.json", out / "report.html"]
    values = {f"eval/{name}": value for name, value in results_table.numbers(results).items()}
    return where(record) if send(record, step, values, files, f"eval/{step}") else ""


def where(record: dict[str, str]) -> str:
    """Return a line that says how to see the MLflow store in `record`."""
    uri = masked(record["uri"])
    command = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    return f"MLflow: {uri} ({'open it in a browser' if uri.startswith('http') else command})"


def store(run: Path) -> dict[str, str] | None:
    """Read mlflow.json of a run folder: uri, experiment and run_id; None if the run keeps no MLflow run."""
    try:
        record = json.loads((run / "mlflow.json").read_text())
        if not record["run_id"]:  # the MLflow run has not been created yet
            return None
        record = {key: str(record[key]) for key in ("uri", "experiment", "run_id")}
        # The record never holds a password; the environment may have the same address with its password.
        here = os.environ.get("MLFLOW_TRACKING_URI", "")
        return record | {"uri": here} if masked(here) == record["uri"] else record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("warning: %s cannot be read (%s); not logged to MLflow", run / "mlflow.json", error)
        return None


def send(record: dict[str, str], step: int, values: dict[str, float], files: list[Path], folder: str) -> bool:
    """Log `values` at the step of a checkpoint and `files` as artifacts in `folder`.

    Values that the store has already are not sent again, so a repeated evaluation only fills gaps. Returns
    whether it worked; if not, a warning says why.
    """
    uri = record["uri"]
    try:
        _require_database(uri)
        # By default MLflow retries an unreachable server for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        # Imported here because it takes seconds, and many runs do not use MLflow.
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
    except Exception as error:  # the results are on disk already, so no error of the store may end this
        reason = masked((str(error).splitlines() or [type(error).__name__])[0])[:200]
        log.warning(
            "warning: MLflow at %s did not accept the results (%s); they are in %s",
            masked(uri),
            reason,
            files[0] if files else "their files",
        )
        return False
    return True


def _require_database(uri: str) -> None:
    """Raise FileNotFoundError for a missing sqlite file, which MLflow would create without the run in it."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise FileNotFoundError(f"no file {uri.removeprefix('sqlite:///')} seen from {Path.cwd()}")
