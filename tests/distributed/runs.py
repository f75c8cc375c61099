"""Real training processes for the tests: start, wait for a step, kill."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(ranks: int, recipe: Path, *overrides: str) -> list[str]:
    pretrain = ["--config", str(recipe), *overrides]
    if ranks == 1:
        return [sys.executable, "-m", "pretrain", *pretrain]
    launcher = ["torchrun", "--standalone", "--nproc-per-node", str(ranks), "--"]
    return [sys.executable, "-m", "launch", *launcher, *pretrain]


def train(ranks: int, recipe: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run to the end, whatever the end."""
    return subprocess.run(
        command(ranks, recipe, *overrides),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def train_and_kill(ranks: int, recipe: Path, folder: Path, step: int, *overrides: str) -> None:
    """SIGKILL launcher and ranks as soon as metrics.jsonl has `step`."""
    process = subprocess.Popen(
        command(ranks, recipe, *overrides),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in rows(folder)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run does not get to the step"
        time.sleep(0.02)
    # The launcher's workers are sessions of their own, so its process group is not all of them.
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family)


def rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def losses(folder: Path) -> dict[int, float]:
    found = rows(folder)
    assert len({row["step"] for row in found}) == len(found), "a step is logged twice"
    return {row["step"]: row["loss"] for row in found}
