"""Open an MLflow store, and say in one line what is wrong with it and what to do.

A store is a server, a database, or a folder. Training, evaluation and sweeps use this module; none of them
depends on what it returns, because what they log is in files of their own.
"""

import argparse
import contextlib
import os
import re
import shlex
import sqlite3
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from isotorus.errors import one_line
from isotorus.secrets import holds_password, masked

DEFAULT = "sqlite:///mlflow.db"
_KIND = {
    # MLflow's page of such an experiment opens on runs and charts, not on traces of language models.
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "loss",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "false",
}
_SQLITE = "sqlite:///"
_HEADER = b"SQLite format 3\0"


class StoreProblem(Exception):
    """A store that cannot be used as it is. The message continues "MLflow at <address> …"."""


def own(given: str | None) -> str:
    """Return the absolute address of the user's own store: as given, by the environment, or the default."""
    return absolute(given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT)


def absolute(uri: str) -> str:
    """Return a store's address such that it means the same from any folder."""
    if not is_relative(uri):
        return uri
    if uri.startswith(_SQLITE):
        path, question, options = uri.removeprefix(_SQLITE).partition("?")
        return f"{_SQLITE}{Path(path).resolve()}{question}{options}"
    path = uri.removeprefix("file:")
    return f"file://{Path(path).resolve()}" if uri.startswith("file:") else str(Path(path).resolve())


def is_relative(uri: str) -> bool:
    """Return whether an address is a local path that depends on the current folder."""
    if uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE)
        return bool(path) and not path.startswith("/") and ":memory:" not in path
    if uri.startswith("file:"):
        return not uri.startswith("file:/")
    return "://" not in uri and ":" not in uri and not uri.startswith(("/", "databricks"))


def local_path(uri: str) -> Path | None:
    """Return the database file, or the folder, of a store on this machine's disks; None for a server."""
    if uri.startswith(_SQLITE) and ":memory:" not in uri:
        return Path(uri.removeprefix(_SQLITE).partition("?")[0])
    if uri.startswith("file:"):
        return Path(unquote(urlsplit(uri).path))
    return Path(uri) if uri.startswith("/") else None


def connect(uri: str, timeout: int = 30, retries: int = 0) -> Any:
    """Return an MlflowClient of the store, whose database is created if it does not exist.

    `timeout` is in seconds for each request. Raises StoreProblem, or what MLflow raises.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout))
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # MLflow would print the address of each run that ends, with a password that is in it.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if uri.startswith(_SQLITE) and (path := local_path(uri)):
        _check_database(path)
        if not path.exists():
            _create_database(path)
    # The import takes seconds, which only users of MLflow need to wait for.
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _check_database(path: Path) -> None:
    """Raise StoreProblem for a path that is no usable SQLite file; MLflow would retry it for minutes."""
    if path.is_dir():
        raise StoreProblem("cannot be opened: that is a folder, not a database; move it away")
    if not path.exists():
        return
    if not os.access(path, os.R_OK | os.W_OK):
        raise StoreProblem(f"cannot be opened: you may not read and write {path}; change its permissions")
    with path.open("rb") as file:
        if (start := file.read(len(_HEADER))) and start != _HEADER:
            raise StoreProblem(f"cannot be opened: {path} is no SQLite database; move it away")


def _create_database(path: Path) -> None:
    """Create an empty MLflow database at `path`, unless another process does it at the same moment.

    Its tables are made under another name: MLflow makes them in dozens of steps, and a second process that
    finds half of them fails, as does every later one if the first is killed in between.
    """
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        made, ready = Path(folder) / "made.db", Path(folder) / "ready.db"
        MlflowClient(f"{_SQLITE}{made}").search_experiments(max_results=1)
        with (
            contextlib.closing(sqlite3.connect(made)) as source,
            contextlib.closing(sqlite3.connect(ready)) as target,
        ):
            source.backup(target)
        try:
            os.link(ready, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                ready.replace(path)


def experiment_id(client: Any, name: str) -> str:
    """Return the id of an experiment, which is created if it does not exist.

    Raises StoreProblem if it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, tags=_KIND)
        except MlflowException:  # another process may have created it just now
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    _require_experiment(client, found)
    if "mlflow.experimentKind" not in found.tags:
        # Someone else's experiment may refuse the tags, which only decide how its page opens.
        with contextlib.suppress(MlflowException):
            for key, value in _KIND.items():
                client.set_experiment_tag(found.experiment_id, key, value)
    return found.experiment_id


def _require_experiment(client: Any, experiment: Any) -> None:
    """Raise StoreProblem for an experiment that was deleted."""
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise StoreProblem(
            f"has the experiment '{experiment.name}' as deleted: restore it with 'MLFLOW_TRACKING_URI="
            f"{masked(client.tracking_uri)} {restore}', or choose another name for tracking.experiment"
        )


def find_run(client: Any, run_id: str) -> Any:
    """Return a run, or None if the store has never had it or has forgotten it.

    A deleted run is returned too: its `info.lifecycle_stage` is "deleted".
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        # A proxy's or another server's "404 not found" is no answer about the run.
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" and "failed with error code" not in str(error):
            return None
        raise


def require_active(client: Any, run: Any, folder: Path) -> None:
    """Raise StoreProblem if the MLflow run of a run folder was deleted, alone or with its experiment."""
    if run.info.lifecycle_stage != "deleted":
        return
    _require_experiment(client, client.get_experiment(run.info.experiment_id))
    restore = f"mlflow runs restore --run-id {run.info.run_id}"
    raise StoreProblem(
        f"has this run's MLflow run as deleted: restore it with 'MLFLOW_TRACKING_URI="
        f"{masked(client.tracking_uri)} {restore}', or remove {folder / 'mlflow.json'} to begin a new one"
    )


def require_remote_files(uri: str, artifacts: str) -> None:
    """Raise StoreProblem if a server names a folder for the files of its runs.

    The client would write them into that folder of this machine, which the server must not choose.
    """
    if local_path(uri) is None and urlsplit(artifacts).scheme in ("", "file"):
        raise StoreProblem(
            f"has the numbers, but not the files: it keeps files in {one_line(artifacts)[:200]}, which may "
            "be a folder of this machine; start it with --serve-artifacts"
        )


def address(text: str) -> str:
    """Return the address of a store; for argparse's `type`. One with a password is refused."""
    if holds_password(text):
        raise argparse.ArgumentTypeError(
            "holds a password or a token; give it in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or give all of the address in MLFLOW_TRACKING_URI"
        )
    return text


def reason(error: Exception) -> str:
    """Return an error's first line, without secrets."""
    return masked((str(error).splitlines() or [type(error).__name__])[0])


def is_busy(error: Exception) -> bool:
    """Return whether a database was in use by others for too long, so that trying again soon will do."""
    return "database is locked" in str(error)


def explain(error: Exception, uri: str) -> str:
    """Return what is wrong with a store and what to do, as the end of a line "MLflow at <address> …"."""
    if isinstance(error, StoreProblem):
        return str(error)
    text = str(error)
    if schema := re.search(r"out-of-date database schema \(found version (\w+)", text):
        return _explain_schema(schema[1], uri)
    if unknown := re.search(r"Can't locate revision identified by '(\w+)'", text):
        return _explain_schema(unknown[1], uri)
    if "MLFLOW_ALLOW_FILE_STORE" in text:
        return (
            "is a folder, to which this version of MLflow no longer writes: use tracking.uri=sqlite:///… "
            "('mlflow migrate-filestore' takes earlier runs over), or set MLFLOW_ALLOW_FILE_STORE=true"
        )
    if is_busy(error):
        return "is in use by other processes, will try again: the database is locked"
    if "readonly database" in text or "read-only" in text.lower():
        return "can be read but not written: change the permissions of the file and of its folder"
    if "disk is full" in text or "No space left" in text:
        return "has no room left on its disk: free some"
    if isinstance(error, ModuleNotFoundError):
        return f"needs the Python package {error.name}: install it"
    if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return (
            "refuses the credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            f"MLFLOW_TRACKING_TOKEN: {reason(error)}"
        )
    if "RegistryStoreURI" in type(error).__name__ or "unsupported URI" in text:
        return f"is no address that MLflow understands: correct tracking.uri: {reason(error)}"
    return f"does not answer, will try again: {reason(error)}"


def _explain_schema(found: str, uri: str) -> str:
    """Say whether a database was made by an older or a newer MLflow than the one installed here."""
    import mlflow

    migrations = Path(mlflow.__file__).parent / "store/db_migrations/versions"
    shown = shlex.quote(masked(uri))
    if any(migrations.glob(f"{found}*.py")):
        return (
            f"was made by an older version of MLflow (schema {found}): make a copy of the database, then "
            f"upgrade it with 'mlflow db upgrade {shown}'"
        )
    return (
        f"was made by a newer version of MLflow (schema {found}) than {mlflow.__version__}: upgrade MLflow "
        "here with 'pip install --upgrade mlflow'"
    )
