"""MLflow, off the training thread: a mirror of metrics.jsonl.

Training writes the file and never waits. The mirror sends lines that the store does not have yet, so
a dead server loses nothing (they go when it is back), and a resumed run logs no step twice.
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
"""Tag of an MLflow run, by which the folder knows it."""
_LONGEST_TAG = 5000  # characters that every MLflow store takes
_LARGEST_BATCH = 1000  # metrics that it takes at once
_MOST_PARAMETERS = 100  # that it takes at once


class TrackingConfig(Section):
    enabled: bool = True
    """Send metrics to MLflow; metrics.jsonl is written in any case."""
    uri: str | None = None
    """MLflow store or server; default $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here. Refused with a
    password in it, which belongs into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    experiment: str = "isotorus"
    """MLflow experiment that the run belongs to."""
    parent: str | None = None
    """Id of the MLflow run that this one is nested under, as in a sweep."""

    def store(self) -> str:
        """The store's address, that of a local file made absolute so that it is found from anywhere."""
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        path = uri.removeprefix("sqlite:///")
        return uri if path in (uri, "") or ":memory:" in uri else f"sqlite:///{Path(path).resolve()}"


def known(folder: Path) -> dict[str, Any]:
    """A run's mlflow.json: where its MLflow run is and whether it has everything; empty if there is none."""
    path = folder / "mlflow.json"
    return json.loads(path.read_text()) if path.exists() else {}


def start_family(config: TrackingConfig, name: str) -> str:
    """Create the parent run of a sweep; returns its id. Raises what MLflow raises."""
    client, experiment = _client(config)
    return client.create_run(experiment, run_name=name).info.run_id


def end_family(config: TrackingConfig, run_id: str, status: str) -> None:
    """Close the parent run; where the store is away it stays open, with a warning."""
    try:
        _client(config)[0].set_terminated(run_id, status)
    except Exception as error:  # the runs themselves are done
        log.warning("MLflow does not answer, the sweep's run stays open: %s", reason(error))


def _client(config: TrackingConfig) -> tuple[Any, str]:
    """A client of the store, and the id of the experiment in it."""
    # A dead server must not hold the last flush for MLflow's default of minutes, a slow one is waited for.
    # What failed is tried again by the mirror alone: below it, the creation of a run could be sent twice.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # Imported here: seconds that training need not wait for.
    from mlflow import MlflowClient

    client = MlflowClient(config.store())
    found = client.get_experiment_by_name(config.experiment)
    return client, found.experiment_id if found else client.create_experiment(config.experiment)


def reason(error: Exception) -> str:
    """What went wrong, in one line without secrets."""
    return masked((str(error).splitlines() or [type(error).__name__])[0])


class Mirror(threading.Thread):
    """Sends <folder>/metrics.jsonl to the run's MLflow run until `finish`; used on rank 0 alone."""

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
        """Whether a run may have been created more than once."""
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
        """metrics.jsonl was cut short. Of steps that come again MLflow keeps the first values."""
        self._cut_short.set()

    def finish(self, status: str, timeout: float = 60.0) -> None:
        """Send what is left and close the MLflow run with this status, within `timeout` seconds."""
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
        # A row is never cut in two: where the sending broke off is told by the last step that is there.
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
        """Keep a tag of the run at the names of the damaged images that were replaced."""
        path = self.folder / "corrupt.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size != self._corrupt_bytes:
            names = ", ".join(str(row["name"]) for row in jsonl.read(path))
            self._client.set_tag(self._run_id, "corrupt_samples", names[:_LONGEST_TAG])
            self._corrupt_bytes = size

    def _connect(self) -> None:
        client, self._experiment = _client(self.config)
        from mlflow.entities import Param
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        record = known(self.folder)
        self._key = record.get("key") or uuid.uuid4().hex
        self._run_id = record.get("run_id") or ""
        if record and not self._run_id:
            # A kill or a timeout hid what the server has done: the run that it created is found by the key.
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
        there = client.get_run(self._run_id).data.params
        new = [Param(key, str(x)[:500]) for key, x in self.parameters.items() if key not in there]
        for start in range(0, len(new), _MOST_PARAMETERS):
            client.log_batch(self._run_id, params=new[start : start + _MOST_PARAMETERS])
        self._client = client

    def _runs_by_key(self, client: Any) -> list[str]:
        """The runs that attempts have created, the oldest first."""
        found = client.search_runs([self._experiment], f"tags.`{_KEY}` = '{self._key}'")
        return [run.info.run_id for run in sorted(found, key=lambda run: run.info.start_time)]

    def _keep_one(self) -> None:
        """Delete what a server created after its answer was given up."""
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
        # Whole or as it was: without the key a kill in between would make the next start create another run.
        with atomic(self.folder / "mlflow.json") as file:
            file.write(text.encode())


def _at_once(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in portions that a store takes in one piece."""
    size = max(1, _LARGEST_BATCH // max((len(row) for row in rows), default=1))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
