"""Copy metrics.jsonl to MLflow from a thread of its own, so that training never waits for a server.

Training writes the file. The mirror sends the lines that the MLflow store does not have yet: a dead server
loses nothing, because they are sent when it is back, and a resumed run logs no step twice.
"""

import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isotorus import jsonl
from isotorus.files import atomic
from isotorus.secrets import masked
from isotorus.section import Section

log = logging.getLogger(__name__)

_KEY = "isotorus.key"
"""Tag of an MLflow run that names the run folder it belongs to."""
_LONGEST_TAG = 5000  # characters that every MLflow store accepts
_LARGEST_BATCH = 1000  # metrics that it accepts at once
_MOST_PARAMETERS = 100  # parameters that it accepts at once


class TrackingConfig(Section):
    enabled: bool = True
    """Send metrics to MLflow; metrics.jsonl is written in any case."""
    uri: str | None = None
    """MLflow store or server; default $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the present folder.
    Addresses with a password are refused: use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    experiment: str = "isotorus"
    """Name of the MLflow experiment that the run belongs to."""
    parent: str | None = None
    """Id of the MLflow run that this run is nested under, as in a sweep."""

    def store(self) -> str:
        """Return the store's address, made absolute if it is a local file, so that it works from anywhere."""
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        path = uri.removeprefix("sqlite:///")
        return uri if path in (uri, "") or ":memory:" in uri else f"sqlite:///{Path(path).resolve()}"


def known(folder: Path) -> dict[str, Any]:
    """Read a run's mlflow.json: where its MLflow run is, and whether it is complete; {} without one."""
    path = folder / "mlflow.json"
    return json.loads(path.read_text()) if path.exists() else {}


def start_family(config: TrackingConfig, name: str) -> str:
    """Create the parent run of a sweep and return its id; raises what MLflow raises."""
    client, experiment = _client(config)
    return client.create_run(experiment, run_name=name).info.run_id


def end_family(config: TrackingConfig, run_id: str, status: str) -> None:
    """Close the parent run; if the store does not answer, warn and leave it open."""
    try:
        _client(config)[0].set_terminated(run_id, status)
    except Exception as error:  # the runs themselves have ended
        log.warning("MLflow does not answer, the sweep's run stays open: %s", reason(error))


def _client(config: TrackingConfig) -> tuple[Any, str]:
    """Return a client of the store, and the id of the experiment in it."""
    # A slow server is waited for, but a dead one must not hold up the end of a run for MLflow's default of
    # minutes. Only the mirror repeats requests: if the client did, it could create a run twice.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # The import takes seconds, which training need not wait for.
    from mlflow import MlflowClient

    client = MlflowClient(config.store())
    known = client.get_experiment_by_name(config.experiment)
    return client, known.experiment_id if known else client.create_experiment(config.experiment)


def reason(error: Exception) -> str:
    """Return an error's first line, without secrets."""
    return masked((str(error).splitlines() or [type(error).__name__])[0])


class Mirror(threading.Thread):
    """A thread that sends <folder>/metrics.jsonl to MLflow until `finish`; only rank 0 has one."""

    POLL_SECONDS = 2.0
    RETRY_SECONDS = 15.0

    def __init__(self, folder: Path, name: str, config: TrackingConfig, parameters: dict[str, Any]) -> None:
        super().__init__(name="mlflow-mirror", daemon=True)
        self.folder, self.run_name, self.config, self.parameters = folder, name, config, parameters
        self.uri = config.store()
        self._client: Any = None
        self._run_id = ""
        self._experiment = ""
        self._key = ""
        self._unsure = False
        """Whether the server may have created more than one run for this folder."""
        self._sent = -1
        self._offset = 0
        self._corrupt_bytes = 0
        self._status: str | None = None
        self._closed = False
        self._stop_asked = threading.Event()
        self._cut_short = threading.Event()

    def run(self) -> None:
        warned = False
        while True:
            last_round = self._stop_asked.is_set()
            try:
                self._send()
                warned = False
            except Exception as error:  # any failure of a server must leave training alone
                if not warned:
                    shown = masked(self.uri)
                    log.warning("MLflow at %s does not answer, will try again: %s", shown, reason(error))
                warned, self._client = True, None
            if last_round:
                return
            self._stop_asked.wait(self.RETRY_SECONDS if warned else self.POLL_SECONDS)

    def read_again(self) -> None:
        """Read metrics.jsonl from its start, because its last rows were dropped.

        MLflow keeps the first values of repeated steps.
        """
        self._cut_short.set()

    def finish(self, status: str, timeout: float = 60.0) -> None:
        """Send the remaining rows and close the MLflow run with this status, within `timeout` seconds."""
        self._status = status
        self._stop_asked.set()
        self.join(timeout)
        if not self._closed:
            log.warning(
                "MLflow at %s has not taken everything; run the same command again to send the rest",
                masked(self.uri),
            )

    def _send(self) -> None:
        if self._client is None:
            self._connect()
        from mlflow.entities import Metric

        if self._cut_short.is_set():
            self._cut_short.clear()
            self._offset = 0
        written, offset = jsonl.read_from(self.folder / "metrics.jsonl", self._offset)
        rows = [row for row in written if row["step"] > self._sent]
        # A row is never split: the last step in the store shows where an earlier attempt broke off.
        for some in _at_once(rows):
            batch = [
                Metric(key, float(value), int(row["time"] * 1000), row["step"])
                for row in some
                for key, value in row.items()
                if key not in ("step", "time") and isinstance(value, (int, float))
            ]
            self._client.log_batch(self._run_id, metrics=batch)
            self._sent = some[-1]["step"]
        self._offset = offset
        self._name_corrupt()
        if self._status:
            self._keep_one()
            self._client.set_terminated(self._run_id, self._status)
            self._record(complete=self._status == "FINISHED")
            self._closed = True

    def _name_corrupt(self) -> None:
        """Set a tag of the MLflow run to the names of the damaged images that were replaced."""
        path = self.folder / "corrupt.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size != self._corrupt_bytes:
            names = ", ".join(str(row["name"]) for row in jsonl.read(path))
            self._client.set_tag(self._run_id, "corrupt_samples", names[:_LONGEST_TAG])
            self._corrupt_bytes = size

    def _connect(self) -> None:
        """Find the folder's MLflow run, or create it, and send the parameters that it lacks."""
        client, self._experiment = _client(self.config)
        from mlflow.entities import Param
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        record = known(self.folder)
        self._key = record.get("key") or uuid.uuid4().hex
        self._run_id = record.get("run_id") or ""
        if record and not self._run_id:
            # After a kill or a timeout nobody knows whether the server created the run: look for its key.
            self._unsure = True
            self._run_id = next(iter(self._runs_by_key(client)), "")
        if self._run_id:
            client.update_run(self._run_id, status="RUNNING")
            history = client.get_metric_history(self._run_id, "loss")
            self._sent = max((point.step for point in history), default=-1)
        else:
            tags = {MLFLOW_PARENT_RUN_ID: self.config.parent} if self.config.parent else {}
            self._record(complete=False)
            tags[_KEY] = self._key
            self._run_id = client.create_run(self._experiment, run_name=self.run_name, tags=tags).info.run_id
        self._record(complete=False)
        sent = client.get_run(self._run_id).data.params
        new = [Param(key, str(x)[:500]) for key, x in self.parameters.items() if key not in sent]
        for start in range(0, len(new), _MOST_PARAMETERS):
            client.log_batch(self._run_id, params=new[start : start + _MOST_PARAMETERS])
        self._client = client

    def _runs_by_key(self, client: Any) -> list[str]:
        """Return the ids of the runs that attempts have created, oldest first."""
        runs = client.search_runs([self._experiment], f"tags.`{_KEY}` = '{self._key}'")
        return [run.info.run_id for run in sorted(runs, key=lambda run: run.info.start_time)]

    def _keep_one(self) -> None:
        """Delete the other runs that a server created although its answer never came."""
        if self._unsure:
            for run_id in self._runs_by_key(self._client):
                if run_id != self._run_id:
                    self._client.delete_run(run_id)

    def _record(self, complete: bool) -> None:
        values = {
            "uri": masked(self.uri),
            "experiment": self.config.experiment,
            "run_id": self._run_id or None,
        }
        text = json.dumps(values | {"key": self._key, "complete": complete}) + "\n"
        # Replaced whole: without the key in it, a start after a kill would create another MLflow run.
        with atomic(self.folder / "mlflow.json") as file:
            file.write(text.encode())


def _at_once(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in portions that a store accepts in one request."""
    size = max(1, _LARGEST_BATCH // max((len(row) for row in rows), default=1))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
