"""A stranger's run and checkpoints, the user's own data, and a guard against connections."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.eval_suite.conftest import splits  # noqa: F401, the fixture
from tests.eval_suite.eval_samples import Outcome, run_command, save_checkpoint

CANARY = "c4n4ry"
"""What stands in the user's private files."""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that connects to anything, or asks for a host's address."""

    def refuse(*given: object) -> None:
        raise AssertionError(f"connects to {given[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A run folder of somebody else, with checkpoints of steps 5 and 7, a log and a configuration."""
    run = tmp_path / "stranger"
    for step in (5, 7):
        save_checkpoint(run / "checkpoints" / f"step_{step:08d}", step=step)
    (run / "checkpoints/latest").symlink_to("step_00000007")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    (run / "config.yaml").write_text("name: stranger\n")
    return run


@pytest.fixture
def evaluate(splits: dict[str, Path]) -> Callable[..., Outcome]:  # noqa: F811
    """Return a function that evaluates what is named by k-NN alone, which takes a second."""
    options = ["--train", splits["train"], "--val", splits["val"], "--folds", "0", "--metrics", "knn"]
    options += ["--k", "3", "--baselines", "", "--features", "embedding"]
    return lambda *named: run_command(*named, *options)


def one_line(outcome: Outcome) -> str:
    """Return the error of a refused command."""
    lines = outcome.err.strip().splitlines()
    assert outcome.code == 2 and len(lines) == 1 and "Traceback" not in outcome.err, outcome
    return lines[0]
