"""Runs that an earlier version began, and that were killed after step 6 of 12, continue with today's code.

On the machine where the fixtures were made, the losses of the resumed runs equalled those of the earlier
version in every bit, in one process and in two. Other processors round differently, and so does code that
numba has just compiled, by up to 6e-7 of the loss; hence the tolerance.
"""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain import sweep
from tests.distributed.runs import ENVIRONMENT, ROOT, rows

HERE = Path(__file__).parent
KILLED_AT, STEPS = 6, 12


def copy(name: str, tmp_path: Path) -> list[str]:
    """Copy a run; return the command line that continues the copy."""
    shutil.copytree(HERE / "runs" / name, tmp_path / "runs" / name, symlinks=True)
    return [
        "--config",
        str(HERE / f"recipes/{name}.yaml"),
        f"runs={tmp_path / 'runs'}",
        f"data.path={HERE / 'sets/cells/train'}",
        f"data.cache.folder={tmp_path / 'cache'}",
    ]


@pytest.mark.parametrize("name", ["lejepa", "torus"])
def test_a_run_continues_with_the_losses_of_the_earlier_version(name: str, tmp_path: Path):
    arguments, folder = copy(name, tmp_path), tmp_path / "runs" / name
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"step_{KILLED_AT:08d}" in done.stderr
    before = [json.loads(line) for line in (HERE / f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    alone = [json.loads(line) for line in (HERE / f"whole/{name}.jsonl").read_text().splitlines()]
    now = rows(folder)
    assert [row["step"] for row in now] == list(range(1, STEPS + 1))
    assert now[:KILLED_AT] == before[:KILLED_AT]
    assert before[KILLED_AT:], "the log should have rows that the checkpoint has not"
    for row, expected in zip(now[KILLED_AT:], alone[KILLED_AT:], strict=True):
        assert row.keys() >= expected.keys()
        for key in ("lr", "samples", "epoch", "skipped_steps", "passed_over_steps"):
            assert row[key] == expected[key], (row["step"], key)
        assert row["loss"] == pytest.approx(expected["loss"], rel=2e-6), row["step"]
        assert row["prediction"] == pytest.approx(expected["prediction"], rel=1e-5), row["step"]
    assert (folder / "checkpoints/latest").resolve().name == f"step_{STEPS:08d}"
    recorded, resolved = (
        yaml.safe_load((at / "config.yaml").read_text()) for at in (HERE / "runs" / name, folder)
    )
    assert values(recorded) <= values(resolved), "a field has another name or value than it had"


def values(config: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the fields and values of a configuration, without the paths that a copy changes."""
    flat = {
        (f"{section}.{key}", str(value))
        for section, fields in config.items()
        for key, value in (fields.items() if isinstance(fields, dict) else [("", fields)])
    }
    return {(key, value) for key, value in flat if key not in ("runs.", "data.path", "data.cache")}


def test_a_sweep_skips_its_finished_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    arguments = copy("lejepa", tmp_path)
    caplog.set_level(logging.INFO)
    command = [*arguments, f"steps={KILLED_AT}", "--launcher", "false"]
    assert sweep.main(command) == 0, "the run was started again"
    assert "lejepa is finished already" in caplog.text


def test_a_sweep_keeps_its_parent_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    arguments = copy("lejepa", tmp_path)
    shutil.copy(HERE / "runs/lejepa.sweep.json", tmp_path / "runs")
    recorded = json.loads((HERE / "runs/lejepa.sweep.json").read_text())["run_id"]
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "1")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    nowhere = ["tracking.enabled=true", "tracking.uri=http://127.0.0.1:1"]
    assert sweep.main([*arguments, *nowhere, "--launcher", "echo"]) == 0
    assert f"tracking.parent={recorded}" in capfd.readouterr().out
