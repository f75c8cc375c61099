"""Data sets, checkpoints and one complete evaluation that many tests share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.eval_suite.eval_samples import CLASSES, ONE, Outcome, pack, run_command, save_checkpoint


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packed splits: train has 44 samples, 4 of them unlabelled; val and test have 20 each."""
    folder = tmp_path_factory.mktemp("eval-data")
    return {
        "train": pack(folder / "train", [*CLASSES] * 20 + [""] * 4, seed=0),
        "val": pack(folder / "val", [*CLASSES] * 10, seed=1),
        "test": pack(folder / "test", [*CLASSES] * 10, seed=2),
    }


@pytest.fixture(scope="session")
def data(splits: dict[str, Path]) -> list[object]:
    """The options that name the splits, which are scored without folds."""
    named = ["--train", splits["train"], "--val", splits["val"], "--test", splits["test"]]
    return [*named, "--folds", "0"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint that belongs to no run."""
    return save_checkpoint(tmp_path / "export")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint and a log whose last line is incomplete, without an MLflow run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny <i>run</i>"
    save_checkpoint(folder / "checkpoints" / "step_00000007")
    (folder / "checkpoints" / "latest").symlink_to("step_00000007")
    rows = [
        {
            "step": s,
            "loss": 1 / s,
            "prediction": 0.5 / s,
            "sigreg": 3.0 / s,
            "sigreg_over_null": 1.0 + 3.0 / s,
            "lr": 1e-3 * s,
            "images_per_second": 90.0,
            **{f"seconds_{i}": float(s + i) for i in range(5)},
        }
        for s in range(1, 11)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 11, "lo')
    (folder / "config.yaml").write_text("name: tiny\nnote: </pre><script>alert(1)</script>\n")
    return folder


class Evaluated(NamedTuple):
    run: Path
    outcome: Outcome
    results: dict[str, Any]
    report: str


@pytest.fixture(scope="session")
def evaluated(run: Path, data: list[object]) -> Evaluated:
    """The outcome of the command on a single split with one untrained encoder, run once."""
    outcome = run_command(run, *data, *ONE)
    assert outcome.code == 0, outcome.err
    folder = run / "eval" / "7"
    return Evaluated(
        run, outcome, json.loads((folder / "results.json").read_text()), (folder / "report.html").read_text()
    )


@pytest.fixture
def command() -> Callable[..., Outcome]:
    return run_command
