"""Results in the MLflow run that the training made; a store that cannot be reached costs one warning."""

import logging
import re
import shlex
import time
from pathlib import Path
from typing import Any

from eval_suite.report import results_table
from isotorus import foreign_files, mlflow_store
from isotorus.errors import UserError, one_line
from isotorus.secrets import masked

log = logging.getLogger(__name__)

_CONSTANT = re.compile(
    r"(^|/)(widths|targets)/|/(alpha|draws|k|landmarks|objects|queries|rows|samples|shots|views|width)$"
)
"""Names of numbers that describe how something was measured, not what was found."""


def publish(results: dict[str, Any], out: Path, own: str) -> str:
    """Send the numbers and files of an evaluation to the MLflow run of its training.

    Every number gets the name that it has in results.csv, below "eval/". What was found becomes a metric at
    the step of the checkpoint, and how it was measured (number of samples, k, widths) a parameter. `own` is
    the user's store. Returns a line that says how to see them, or why they were not sent; an empty string if
    the training keeps no MLflow run or it cannot be reached.
    """
    run = results["checkpoint"]["run"]
    record = store(Path(run)) if run else None
    if record is None:
        return ""
    if not is_own(record, own):
        return not_sent(record)
    step, files = results["checkpoint"]["step"], [out / "results.json", out / "report.html"]
    values = {f"eval/{name}": value for name, value in results_table.numbers(results).items()}
    return where(own) if send(record, own, step, values, files, f"eval/{step}") else ""


def where(uri: str) -> str:
    """Return a line that says how to see an MLflow store."""
    shown = masked(uri)
    command = f"mlflow ui --backend-store-uri {shlex.quote(shown)}"
    return f"MLflow: {shown} ({'open it in a browser' if shown.startswith('http') else command})"


def is_own(record: dict[str, str], own: str) -> bool:
    """Say whether a run's record names the store that the user has named.

    A run folder may be somebody else's. The address in it is never used, only compared: results, images and
    passwords go to the user's own store or nowhere, and no database that a folder names is opened.
    """
    return record["uri"] == masked(own)


def not_sent(record: dict[str, str]) -> str:
    """Return a line that says what to give if the store that a run's record names is the user's."""
    uri = one_line(record["uri"])[:200]
    return (
        f"MLflow: nothing is sent, as {record['file']} names another store than this command's; if "
        f"{uri} is yours, give --mlflow {shlex.quote(uri)} or set MLFLOW_TRACKING_URI"
    )


def store(run: Path) -> dict[str, str] | None:
    """Read mlflow.json of a run folder: uri, experiment, run_id, and the path of the file.

    None if the run keeps no MLflow run.
    """
    file = run / "mlflow.json"
    try:
        read = foreign_files.read_json(file)
        if not read["run_id"]:  # the MLflow run has not been created yet
            return None
        record = {key: str(read[key]) for key in ("uri", "experiment", "run_id")}
        if not re.fullmatch(r"\w{1,64}", record["run_id"], re.ASCII):
            raise ValueError("its run_id is not one of MLflow's")
    except FileNotFoundError:
        return None
    except (OSError, UserError, ValueError, KeyError, TypeError) as error:
        log.warning("warning: %s cannot be read (%s); not logged to MLflow", file, one_line(str(error))[:200])
        return None
    return record | {"file": str(file)}


def send(
    record: dict[str, str],
    uri: str,
    step: int,
    values: dict[str, float],
    files: list[Path],
    folder: str,
) -> bool:
    """Log `values` at the step of a checkpoint and `files` as artifacts in `folder`, in the store at `uri`.

    Values that the store has already are not sent again, so a repeated evaluation only fills gaps. Returns
    whether it worked; if not, a warning says why.
    """
    try:
        _require_store(uri)
        client = mlflow_store.connect(uri, timeout=10, retries=1)
        run = mlflow_store.find_run(client, record["run_id"])
        if run is None:
            raise mlflow_store.StoreProblem(
                f"does not have the MLflow run {record['run_id']} any more; remove {record['file']} and give "
                "the training's command again to have everything sent to a new one"
            )
        mlflow_store.require_active(client, run, Path(record["file"]).parent)
        constants = {name: value for name, value in values.items() if _CONSTANT.search(name)}
        _send_constants(client, run, step, constants)
        _send_metrics(client, run, step, {k: v for k, v in values.items() if k not in constants})
        mlflow_store.require_remote_files(uri, run.info.artifact_uri)
        for file in files:
            client.log_artifact(record["run_id"], str(file), artifact_path=folder)
    except Exception as error:  # the results are on disk already, so no error of the store may end this
        log.warning(
            "warning: MLflow at %s %s; the results are in %s",
            masked(uri),
            mlflow_store.explain(error, uri).replace(", will try again", ""),
            files[0] if files else "their files",
        )
        return False
    return True


def _send_metrics(client: Any, run: Any, step: int, values: dict[str, float]) -> None:
    """Log the metrics that the store does not have at this step."""
    from mlflow.entities import Metric

    run_id, now = run.info.run_id, int(time.time() * 1000)
    fresh = [
        Metric(name, value, now, step)
        for name, value in sorted(values.items())
        if name not in run.data.metrics
        or (step, value) not in {(m.step, m.value) for m in client.get_metric_history(run_id, name)}
    ]
    for start in range(0, len(fresh), 1000):
        client.log_batch(run_id, metrics=fresh[start : start + 1000])


def _send_constants(client: Any, run: Any, step: int, values: dict[str, float]) -> None:
    """Log parameters; where an earlier evaluation had another value, a tag says which holds at this step."""
    from mlflow.entities import Param, RunTag

    # Evaluations before this rule have logged them as metrics, which then have no need of a second place.
    texts = {name: f"{value:.12g}" for name, value in values.items() if name not in run.data.metrics}
    known = run.data.params
    fresh = [Param(name, text) for name, text in sorted(texts.items()) if name not in known]
    for start in range(0, len(fresh), 100):
        client.log_batch(run.info.run_id, params=fresh[start : start + 100])
    others = [
        RunTag(f"{name} at step {step}", text)
        for name, text in sorted(texts.items())
        if known.get(name, text) != text
    ]
    for start in range(0, len(others), 100):
        client.log_batch(run.info.run_id, tags=others[start : start + 100])


def _require_store(uri: str) -> None:
    """Raise StoreProblem for a missing local store, which MLflow would create without the run in it."""
    path = mlflow_store.local_path(mlflow_store.absolute(uri))
    if path is not None and not path.exists():
        raise mlflow_store.StoreProblem(f"cannot be reached: there is no {path}, as seen from {Path.cwd()}")
