"""Copy metrics.jsonl to MLflow from a thread of its own, so that training never waits for a server.

Training writes the file. The mirror sends the lines that the MLflow store does not have yet. So a dead server
loses nothing, because the lines are sent when it is back, and a resumed run logs no step twice.
"""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isotorus import jsonl, mlflow_store
from isotorus.secrets import masked
from pretrain.monitoring import mlflow_run
from pretrain.monitoring.config import TrackingConfig
from pretrain.monitoring.mlflow_run import TrackedRun

log = logging.getLogger(__name__)


def start_family(config: TrackingConfig, name: str) -> str:
    """Create the parent run of a sweep and return its id; raises StoreProblem or what MLflow raises."""
    client = mlflow_store.connect(config.store())
    experiment = mlflow_store.experiment_id(client, config.experiment)
    return client.create_run(experiment, run_name=name).info.run_id


def end_family(config: TrackingConfig, run_id: str, status: str) -> None:
    """Close the parent run; if the store does not answer, warn and leave it open."""
    try:
        mlflow_store.connect(config.store()).set_terminated(run_id, status)
    except Exception as error:  # the runs themselves have ended
        log.warning("MLflow does not answer, the sweep's run stays open: %s", reason(error))


def reason(error: Exception) -> str:
    """Return an error's first line, without secrets."""
    return mlflow_store.reason(error)


class Mirror(threading.Thread):
    """A thread that sends <folder>/metrics.jsonl to MLflow until `finish`; only rank 0 has one.

    `start` is the number of steps that were done before, and `changes` are the changes of parameters at
    earlier starts and at this one: the step, the name, the value before and after.
    """

    POLL_SECONDS = 2.0
    RETRY_SECONDS = 15.0
    BUSY_SECONDS = 1.0
    """Pause before a database that other processes were writing to is tried again."""

    def __init__(
        self,
        folder: Path,
        name: str,
        config: TrackingConfig,
        parameters: dict[str, Any],
        start: int = 0,
        changes: Sequence[tuple[int, str, str]] = (),
    ) -> None:
        super().__init__(name="mlflow-mirror", daemon=True)
        self.folder, self.run_name, self.config = folder, name, config
        self.parameters, self.changes = parameters, changes
        self.uri = mlflow_run.choose_store(config, mlflow_run.known(folder))
        if self.uri != config.store():
            log.info("MLflow: %s, where this run began", masked(self.uri))
        self._start_step = start
        self._run: TrackedRun | None = None
        self._system: Any = None
        self._begun = time.time()
        self._offset = 0
        self._corrupt_bytes = 0
        self._problem = ""
        """The problem of the last attempt, as it was reported; empty if there was none."""
        self._status: str | None = None
        self._deadline = float("inf")
        self._closed = False
        self._stop_asked = threading.Event()
        self._cut_short = threading.Event()

    def run(self) -> None:
        """Send until `finish`, and try again after failures."""
        while True:
            last_round = self._stop_asked.is_set()
            busy = False
            try:
                self._send(last_round)
                self._problem = ""
            except Exception as error:  # any failure of a server must leave training alone
                busy = mlflow_store.is_busy(error)
                self._say(mlflow_store.explain(error, self.uri))
                self._run = None
            if last_round:
                if not busy or time.monotonic() > self._deadline:
                    return
                time.sleep(self.BUSY_SECONDS)
            elif busy:
                self._stop_asked.wait(self.BUSY_SECONDS)
            else:
                self._stop_asked.wait(self.RETRY_SECONDS if self._problem else self.POLL_SECONDS)

    def read_again(self, step: int) -> None:
        """Read metrics.jsonl from its start, because the rows after `step` were dropped."""
        self._start_step = step
        self._cut_short.set()

    def finish(self, status: str, timeout: float = 60.0, again: str = "run the same command again") -> None:
        """Send the remaining rows and close the MLflow run with this status, within `timeout` seconds.

        A mirror that was not started yet is started. `again` says how the user has the rest sent, if some
        remains.
        """
        self._status, self._deadline = status, time.monotonic() + timeout
        self._stop_asked.set()
        if self.ident is None:
            self.start()
        self.join(timeout)
        if not self._closed:
            when = ", for the reason above: when it is mended, " if self._problem else ": "
            log.warning(
                "MLflow at %s has not taken everything%s%s to send the rest", masked(self.uri), when, again
            )

    def _say(self, problem: str) -> None:
        """Warn of a problem, but do not repeat the warning while problems of the same kind follow."""
        kind = problem.partition(":")[0]
        if kind != self._problem:
            log.warning("MLflow at %s %s", masked(self.uri), problem)
        self._problem = kind

    def _send(self, last_round: bool) -> None:
        if self._run is None:
            parameters = dict(self.parameters)
            start = self._start_step
            run = TrackedRun(self.folder, self.run_name, self.config, parameters, start, self.changes)
            self._start_over()
            self._run = run
        run = self._run
        if self._cut_short.is_set():
            self._cut_short.clear()
            self._offset = 0
        written, offset = jsonl.read_from(self.folder / "metrics.jsonl", self._offset)
        if any(run.contradicts(row) for row in written):
            run.start = self._start_step
            run.replace()
            self._start_over()
            written, offset = jsonl.read_from(self.folder / "metrics.jsonl", 0)
        rows = [row for row in written if run.lacks(row)]
        for some in mlflow_run.portions(rows):
            began = time.monotonic()
            run.send(some)
            self._problem = ""  # a later failure is a new problem, which is reported again
            # Sending a long history takes CPU time of this process: leave training at least half of it.
            self._stop_asked.wait(time.monotonic() - began)
        self._offset = offset
        self._name_corrupt(run)
        if self.config.system_metrics:
            self._send_system(run, rows)
        run.settle()
        if last_round and self._status:
            run.end(self._status)
            self._closed = True

    def _start_over(self) -> None:
        """Forget what was sent to an MLflow run."""
        self._offset = self._corrupt_bytes = 0

    def _name_corrupt(self, run: TrackedRun) -> None:
        """Set a tag of the MLflow run to the names of the damaged images that were replaced."""
        path = self.folder / "corrupt.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size != self._corrupt_bytes:
            names = ", ".join(str(row["name"]) for row in jsonl.read(path))
            run.client.set_tag(run.run_id, mlflow_run.CORRUPT, names[: mlflow_run.LONGEST_TAG])
            self._corrupt_bytes = size

    def _send_system(self, run: TrackedRun, rows: list[dict[str, Any]]) -> None:
        """Log this machine's state at the newest step, as the mean since the row before."""
        from mlflow.entities import Metric
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if self._system is None:
            # Its own thread would end for good at the first request that fails, and count its own steps.
            self._system = SystemMetricsMonitor(run.run_id, tracking_uri=run.uri)
        self._system.collect_metrics()
        if not rows or rows[-1]["time"] < self._begun:
            return  # steps of an earlier start, perhaps on another machine
        when, step = int(rows[-1]["time"] * 1000), rows[-1]["step"]
        values = self._system.aggregate_metrics()
        for monitor in self._system.monitors:
            monitor.clear_metrics()
        run.client.log_batch(
            run.run_id, metrics=[Metric(f"system/{key}", float(x), when, step) for key, x in values.items()]
        )
