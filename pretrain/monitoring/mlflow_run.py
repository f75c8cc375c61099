"""The MLflow run of a run folder: found again, created, or replaced if MLflow shows wrong values.

MLflow can neither change a parameter nor remove a metric's value. So if its parameters or losses are no
longer those of the run, the run gets a new MLflow run. The new one gets everything that metrics.jsonl holds,
and what others have added to the old one. The old one is then deleted (`mlflow runs restore` brings it back).
"""

import json
import logging
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isotorus import foreign_files, mlflow_store
from isotorus.errors import UserError
from isotorus.files import atomic
from isotorus.secrets import masked
from pretrain.monitoring.config import TrackingConfig

log = logging.getLogger(__name__)

KEY = "isotorus.key"
"""Tag of an MLflow run that names the run folder it belongs to."""
CHANGES = "isotorus.changes"
"""Tag that lists the parameters that changed when the run was continued."""
CORRUPT = "corrupt_samples"
"""Tag that names the damaged images that were replaced."""
LONGEST_TAG = 5000  # characters; every MLflow store accepts as many
_LONGEST_PARAMETER = 500
_MOST_PARAMETERS = 100  # in a request to a store
MOST_METRICS = 1000  # in a request to a store
FIRST_CHART = "Loss/loss"
"""Second name of the loss: MLflow sorts charts by section, and sections without a name come last."""
_SAME = 0.01
"""Relative difference up to which a loss counts as that of the same step, repeated. Sums over another number
of ranks, or on GPUs, differ in their last digits."""


def known(folder: Path) -> dict[str, Any]:
    """Read a run's mlflow.json: where its MLflow run is, and whether it is complete; {} without one."""
    try:
        record = foreign_files.read_json(folder / "mlflow.json")
    except FileNotFoundError:
        return {}
    if not isinstance(record, dict):
        raise UserError(
            f"{folder / 'mlflow.json'} is no record of an MLflow run; remove it to begin a new one"
        )
    return record


def is_complete(folder: Path, name: str, config: TrackingConfig) -> bool:
    """Return whether all that a finished run has logged is in the MLflow store that `config` names."""
    record = known(folder)
    there = record.get("uri") == masked(choose_store(config, record))
    same = there and record.get("experiment") == config.experiment
    return bool(record.get("complete")) and same and not is_copy(record, folder, name)


def choose_store(config: TrackingConfig, record: dict[str, Any]) -> str:
    """Return the address of the store, absolute.

    A relative address means the file where the run began, wherever the run is continued from, as long as that
    file exists.
    """
    given, recorded = config.given(), record.get("uri") or ""
    path = mlflow_store.local_path(recorded)
    if not mlflow_store.is_relative(given) or path is None or not path.exists():
        return config.store()
    parts = Path(given.partition("?")[0].removeprefix("sqlite:///").removeprefix("file:")).parts
    ending = tuple(part for part in parts if part != "..")
    return recorded if path.parts[-len(ending) :] == ending else config.store()


def is_copy(record: dict[str, Any], folder: Path, name: str) -> bool:
    """Return whether mlflow.json came to the folder with a copy of another run's folder.

    A folder that was moved, or is mounted elsewhere, is no copy, but under another name it is another run.
    """
    if record.get("name", name) != name:
        return True
    original = Path(record.get("folder") or folder)
    try:
        if original.samefile(folder):
            return False
        return bool(record) and known(original).get("key") == record.get("key")
    except (OSError, ValueError, UserError):  # it is not there any more
        return False


class TrackedRun:
    """A connection to the MLflow run of a run folder, which it makes agree with the folder.

    `start` is the number of steps that were done when the run was started this time, and `changes` are all
    changes of its parameters: the step, the name, the value before and after. Raises StoreProblem, or what
    MLflow raises; a new attempt then continues where this one broke off.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: TrackingConfig,
        parameters: dict[str, Any],
        start: int,
        changes: Sequence[tuple[int, str, str]],
    ) -> None:
        self.folder, self.name, self.config, self.start = folder, name, config, start
        self.parameters = {key: str(x)[:_LONGEST_PARAMETER] for key, x in parameters.items()}
        self.changes = changes
        self.losses: dict[int, float] = {}
        """Loss of each step that MLflow has."""
        record = known(folder)
        if record.get("complete"):
            # More rows will be logged now, so the record must not call the run complete, even if MLflow is
            # away.
            _write(folder, record | {"complete": False})
        self.uri = choose_store(config, record)
        self.client = mlflow_store.connect(self.uri)
        self._copied_from = ""
        if is_copy(record, folder, name):
            self._copied_from, record = record.get("run_id") or "", {}
        self._unsure = bool(record) and not record.get("run_id")
        """Whether the server may have created more than one run for this folder."""
        self.record: dict[str, Any] = {"run_id": None, "key": uuid.uuid4().hex} | record
        self._attach()

    @property
    def run_id(self) -> str:
        """Id of the MLflow run."""
        return self.record["run_id"]

    def contradicts(self, row: dict[str, Any]) -> bool:
        """Return whether MLflow has another loss for a row's step, because it was done again differently."""
        old, new = self.losses.get(row["step"]), row.get("loss")
        if old is None or not isinstance(new, int | float):
            return False
        return not abs(old - new) <= _SAME * max(abs(old), abs(new))

    def lacks(self, row: dict[str, Any]) -> bool:
        """Return whether MLflow does not have a row yet."""
        if isinstance(row.get("loss"), int | float):
            return row["step"] not in self.losses
        return row["step"] > max(self.losses, default=-1)

    def send(self, rows: list[dict[str, Any]]) -> None:
        """Send rows of metrics.jsonl, no more than `portions` puts together."""
        from mlflow.entities import Metric

        metrics = []
        for row in rows:
            values = {
                k: v for k, v in row.items() if k not in ("step", "time") and isinstance(v, int | float)
            }
            if "loss" in values:
                values[FIRST_CHART] = values["loss"]
            when = int(row["time"] * 1000)
            metrics += [Metric(key, float(value), when, row["step"]) for key, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)
        self.losses |= {row["step"]: row["loss"] for row in rows if isinstance(row.get("loss"), int | float)}

    def replace(self) -> None:
        """Begin a new MLflow run in place of the present one, which `settle` deletes."""
        old = self.client.get_run(self.run_id)
        self.record["replaces"] = [*self.record.get("replaces", []), old.info.run_id]
        self._create(old)

    def settle(self) -> None:
        """Take over from replaced MLflow runs what others have added to them, and delete them."""
        for run_id in list(self.record.get("replaces", [])):
            old = mlflow_store.find_run(self.client, run_id)
            if old is not None and old.info.lifecycle_stage != "deleted":
                self._take_over(old)
            self.record["replaces"].remove(run_id)
            self._save(complete=False)

    def end(self, status: str) -> None:
        """Close the MLflow run, and delete others that a server created although its answer never came."""
        if self._unsure:
            for run_id in self._runs_by_key():
                if run_id != self.run_id:
                    self.client.delete_run(run_id)
        self.client.set_terminated(self.run_id, status)
        self._save(complete=status == "FINISHED")

    def _attach(self) -> None:
        """Find the folder's MLflow run, create it, or replace it; send the parameters that it lacks."""
        if self._unsure:
            # After a kill or a timeout nobody knows whether the server created the run: look for its key.
            self.record["run_id"] = next(iter(self._runs_by_key()), None)
        run = self._find() if self.run_id else None
        if run is None:
            replaced = self.record.get("replaces")
            self._create(mlflow_store.find_run(self.client, replaced[-1]) if replaced else None)
        else:
            history = self.client.get_metric_history(run.info.run_id, "loss")
            self.losses = {point.step: point.value for point in history}
            # An experiment that was renamed keeps its runs; another name in the recipe moves the run.
            moved = self.record.get("experiment", self.config.experiment) != self.config.experiment
            if moved or self._is_outdated(run.data.params):
                self.replace()
            else:
                self.client.update_run(self.run_id, status="RUNNING")
                self._send_parameters(run.data.params)
        if text := self._changes_in_words():
            self.client.set_tag(self.run_id, CHANGES, text)
        self._save(complete=False)

    def _find(self) -> Any:
        """Return the MLflow run that mlflow.json names; None if a new one has to be created."""
        run = mlflow_store.find_run(self.client, self.run_id)
        if run is None:
            log.warning(
                "MLflow run %s is not in %s (it was in %s); a new one begins there, with all steps so far",
                self.run_id,
                masked(self.uri),
                self.record.get("uri"),
            )
            return None
        if "name" not in self.record and run.data.params.get("name", self.name) != self.name:
            self._copied_from = run.info.run_id  # by an mlflow.json that does not name its run yet
            return None
        if run.info.lifecycle_stage == "deleted" and self.record.get("experiment") != self.config.experiment:
            return None
        mlflow_store.require_active(self.client, run, self.folder)
        return run

    def _is_outdated(self, sent: dict[str, str]) -> bool:
        """Return whether MLflow has a parameter with another value, or one that the run no longer has."""
        changed = {name for _, name, _ in self.changes}
        return any(
            self.parameters[name] != value if name in self.parameters else name in changed
            for name, value in sent.items()
        )

    def _create(self, old: Any) -> None:
        """Create an MLflow run. If it replaces `old`, it gets what users have added to that one."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

        tags, parameters, started = {}, {}, None
        if old is not None:
            kept = (MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE)
            tags = {
                key: value
                for key, value in old.data.tags.items()
                if key in kept or not key.startswith(("mlflow.", "isotorus.", CORRUPT))
            }
            changed = {name for _, name, _ in self.changes}
            added = {k: v for k, v in old.data.params.items() if k not in changed}
            parameters = {k: v for k, v in added.items() if not k.startswith("tracking.")}
            started = old.info.start_time
        if self._copied_from:
            tags["isotorus.copied_from"] = self._copied_from
        if self.config.parent:
            tags[MLFLOW_PARENT_RUN_ID] = self.config.parent
        experiment = mlflow_store.experiment_id(self.client, self.config.experiment)
        if self.run_id:  # otherwise a server that was slow may still create a run with the present key
            self.record |= {"run_id": None, "key": uuid.uuid4().hex}
        self._save(complete=False)
        tags[KEY] = self.record["key"]
        created = self.client.create_run(experiment, start_time=started, run_name=self.name, tags=tags)
        self.record["run_id"] = created.info.run_id
        self._save(complete=False)
        self.losses = {}
        self.parameters = parameters | self.parameters
        self._send_parameters({})

    def _send_parameters(self, sent: dict[str, str]) -> None:
        """Send the parameters that MLflow lacks."""
        from mlflow.entities import Param

        new = [Param(key, value) for key, value in self.parameters.items() if key not in sent]
        for first in range(0, len(new), _MOST_PARAMETERS):
            self.client.log_batch(self.run_id, params=new[first : first + _MOST_PARAMETERS])

    def _changes_in_words(self) -> str:
        """Return the changes of parameters; the newest come first if a tag has no room for all of them."""
        steps: dict[int, list[str]] = {}
        for step, name, values in self.changes:
            if step == 0:
                continue  # changes before the first step affect no logged row
            steps.setdefault(step, []).append(f"{name} {values}")
        lines = [f"step {step}: {', '.join(values)}" for step, values in steps.items()]
        text = "; ".join(lines)
        return text if len(text) <= LONGEST_TAG else "; ".join(reversed(lines))[:LONGEST_TAG]

    def _take_over(self, old: Any) -> None:
        """Copy the metrics and files that evaluations have logged, and delete the old MLflow run."""
        from mlflow.entities import Metric

        old_id = old.info.run_id
        for name in old.data.metrics:
            if "/" not in name or name == FIRST_CHART:
                continue  # metrics of training, which were sent again
            history = self.client.get_metric_history(old_id, name)
            points = [Metric(name, p.value, p.timestamp, p.step) for p in history if p.step <= self.start]
            for first in range(0, len(points), MOST_METRICS):
                self.client.log_batch(self.run_id, metrics=points[first : first + MOST_METRICS])
        try:
            # Before the first checkpoint there is nothing to evaluate.
            if self.start > 0 and self.client.list_artifacts(old_id):
                with tempfile.TemporaryDirectory() as folder:
                    self.client.download_artifacts(old_id, "", folder)
                    self.client.log_artifacts(self.run_id, folder)
            self.client.set_tag(old_id, "isotorus.replaced_by", self.run_id)
            self.client.delete_run(old_id)
            log.info(
                "MLflow run %s, with other parameters or losses, was replaced by %s", old_id, self.run_id
            )
        except Exception as error:  # a store of files that is away, or a server where nobody may delete
            log.warning(
                "MLflow run %s was replaced by %s, but stays: %s",
                old_id,
                self.run_id,
                mlflow_store.reason(error),
            )

    def _runs_by_key(self) -> list[str]:
        """Return the ids of the runs that attempts have created, oldest first."""
        found = self.client.get_experiment_by_name(self.config.experiment)
        if found is None:
            return []
        runs = self.client.search_runs([found.experiment_id], f"tags.`{KEY}` = '{self.record['key']}'")
        return [run.info.run_id for run in sorted(runs, key=lambda run: run.info.start_time)]

    def _save(self, complete: bool) -> None:
        """Write mlflow.json."""
        self.record |= {
            "uri": masked(self.uri),
            "experiment": self.config.experiment,
            "name": self.name,
            "folder": str(self.folder.resolve()),
            "complete": complete,
        }
        _write(self.folder, self.record)


def portions(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return rows in portions that a store accepts in one request."""
    # A row is never split: the last step in the store shows where an earlier attempt broke off.
    size = max(1, MOST_METRICS // (max((len(row) for row in rows), default=0) + 1))
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _write(folder: Path, record: dict[str, Any]) -> None:
    """Write mlflow.json."""
    # Replaced whole: without the key in it, a start after a kill would create another MLflow run.
    with atomic(folder / "mlflow.json") as file:
        file.write((json.dumps(record) + "\n").encode())
