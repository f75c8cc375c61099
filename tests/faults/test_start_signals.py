"""SIGTERM and SIGUSR1 while a run starts; for steps and saves see tests/distributed/test_stopping.py."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.distributed.runs import Run, losses, train
from tests.faults.conftest import STEPS


def listens(pid: int) -> bool:
    """Return whether a process has a handler for SIGTERM, which Python does not install by itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def imported(pid: int, library: str) -> bool:
    return library in Path(f"/proc/{pid}/maps").read_text()


def test_during_the_imports(recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    run = Run(1, recipe, folder)
    run.wait_for(lambda: listens(run.process.pid))
    assert not imported(run.process.pid, "libtorch_python")
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 0, run.stderr
    assert "stopped by a signal after 0 of 12 steps" in run.stderr and "Traceback" not in run.stderr
    assert not losses(folder) and not (folder / "checkpoints/latest").exists()


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_at_any_time_of_the_start_on_two_ranks(whole: dict[int, float], recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    moments: list[Callable[[Run], bool]] = [
        lambda run: all(listens(run.rank(rank).pid) for rank in (0, 1)),
        lambda run: imported(run.rank(1).pid, "libtorch_python"),
        lambda run: (folder / "lock").exists() and bool((folder / "lock").read_text()),
    ]
    for moment in moments:
        run = Run(2, recipe, folder, *STEPS, "stopping.requeue_code=85")
        run.wait_for(lambda run=run: len(psutil.Process(run.process.pid).children()) == 2)
        run.wait_for(lambda run=run, moment=moment: moment(run))
        # Only one rank gets the signal, and both stop.
        run.rank(1).send_signal(signal.SIGUSR1)
        assert run.end() == 85, run.stderr
        assert "stopped by a signal after " in run.stderr and "Traceback" not in run.stderr
    done = train(2, recipe, *STEPS)
    assert done.returncode == 0, done.stderr
    assert losses(folder) == whole


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_before_there_are_ranks(recipe: Path, tmp_path: Path):
    """The launcher ends as from any signal, and nothing has been started."""
    run = Run(2, recipe, tmp_path / "runs/tiny")
    run.process.terminate()
    assert run.end() in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert not (tmp_path / "runs").exists()
