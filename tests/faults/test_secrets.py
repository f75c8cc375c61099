"""Passwords and keys given to a run appear in nothing that it writes, prints or shows."""

from pathlib import Path

import psutil
import pytest

from isotorus.errors import UserError
from isotorus.secrets import masked
from pretrain.config import load_config
from pretrain.monitoring.mlflow_run import known
from tests.distributed.runs import Run, train

CANARY = "c4n4ryInTheMine"
SECRETS = {
    "MLFLOW_TRACKING_TOKEN": f"{CANARY}-1",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-2",
    "AWS_SESSION_TOKEN": f"{CANARY}-3",
    "FSSPEC_S3_SECRET": f"{CANARY}-4",
    "HF_TOKEN": f"{CANARY}-5",
}


def holding(folder: Path) -> list[Path]:
    """Return the files of a folder that contain the canary."""
    return [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def command_lines(run: Run) -> str:
    family = [psutil.Process(run.process.pid), *psutil.Process(run.process.pid).children(recursive=True)]
    return str([process.cmdline() for process in family])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("answers", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_nothing_of_a_run_holds_a_secret(recipe: Path, tmp_path: Path, answers: bool):
    """A database stores what is sent; an unreachable server causes errors that name its address."""
    folder = tmp_path / "runs/tiny"
    away = f"http://user:{CANARY}@127.0.0.1:9"
    environment = SECRETS | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db" if answers else away}
    tracked = ("tracking.enabled=true", "checkpoint.every=4")
    run = Run(2, recipe, folder, *tracked, "steps=100000", environment=environment)
    run.wait_for(lambda: (folder / "checkpoints/latest").exists())
    if not answers:
        run.wait_for(lambda: "MLflow at http://***@127.0.0.1:9 does not answer" in run.stderr)
    else:
        run.wait_for(lambda: known(folder).get("run_id"))
    assert CANARY not in command_lines(run)
    psutil.Process(run.process.pid).terminate()
    assert run.end() == 0, run.stderr
    # All of it: checkpoints with encoder.json, config.yaml, metrics, MLflow's database, what was printed.
    assert holding(tmp_path) == []
    assert (folder / "mlflow.json").exists() == answers and list(folder.glob("checkpoints/*/encoder.json"))


@pytest.mark.parametrize(
    "given",
    [
        f"tracking.uri=http://user:{CANARY}@mlflow.example.org",
        f"tracking.uri=https://{CANARY}@mlflow.example.org",
        f"data.path=s3://key:{CANARY}@bucket/cells",
        f"data.sources=[{{path: 'https://example.org/cells?X-Amz-Signature={CANARY}'}}]",
    ],
)
def test_a_password_in_the_configuration_is_refused(recipe: Path, given: str):
    with pytest.raises(UserError, match="holds a URL with a password or a token") as error:
        load_config(str(recipe), [given])
    assert CANARY not in str(error.value) and given.partition("=")[0] in str(error.value)
    assert "MLFLOW_TRACKING_PASSWORD" in str(error.value)


def test_a_refusal_is_all_that_is_said(recipe: Path, tmp_path: Path):
    done = train(1, recipe, f"tracking.uri=http://user:{CANARY}@mlflow.example.org")
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert CANARY not in done.stderr and not (tmp_path / "runs").exists()


def test_error_lines_show_no_secret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    quoted = f"postgresql://me:{CANARY}@db/x, https://h/x?sig=abc&a=b, key {CANARY}"
    assert str(UserError(quoted)) == "postgresql://***@db/x, https://h/x?sig=***&a=b, key ***"
    for harmless in ("abfs://container@account.dfs.core.windows.net/x", "postgresql://me@db/x", "s3://a/b"):
        assert masked(harmless) == harmless
