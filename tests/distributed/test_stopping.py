"""Runs that are asked to stop, and runs that hang: how they end, what they leave, how they continue."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.distributed.runs import Run, losses

# The learning rate is constant, as the run has no end.
LONG = ("steps=100000", "optimizer.final_lr_ratio=1", "data.workers=1")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("[!l]*"))


def worker(run: Run, rank: int) -> psutil.Process:
    """Return the process that loads a rank's data."""
    process = psutil.Process(run.process.pid) if run.ranks == 1 else run.rank(rank)
    (found,) = [c for c in process.children() if "resource_tracker" not in c.cmdline()[-1]]
    return found


@contextlib.contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """Suspend a process, and kill it at the end: a suspended one outlives a parent that is ended."""
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize("engine", ["fsdp", pytest.param("deepspeed", marks=pytest.mark.nightly)])
def test_signals_save_and_end_well_and_the_run_goes_on(recipe: Path, tmp_path: Path, engine: str):
    folder = tmp_path / "runs/tiny"
    # To one rank, while a checkpoint is being written.
    run = Run(2, recipe, folder, *LONG, "checkpoint.every=5", "stopping.requeue_code=85")
    run.wait_for(lambda: list(folder.glob("checkpoints/.partial_*")))
    run.rank(1).send_signal(signal.SIGUSR1)
    assert run.end() == 85, run.stderr
    requeued = max(losses(folder))
    assert f"stopped by a signal after {requeued} of 100000 steps" in run.stderr
    assert checkpoints(folder)[-1] == f"step_{requeued:08d}"

    run = Run(2, recipe, folder, *LONG, "checkpoint.every=100000", f"engine.kind={engine}")
    run.wait_for_step(requeued + 2)
    # To the launcher, as Kubernetes does, or to every process there is, as Slurm does.
    asked = [psutil.Process(run.process.pid)]
    if engine == "deepspeed":
        asked += [run.rank(0), run.rank(1), worker(run, 0), worker(run, 1)]
    for process in asked:
        process.send_signal(signal.SIGTERM)
    assert run.end() == 0, run.stderr
    assert f"continuing {folder} from step_{requeued:08d}" in run.stderr
    stopped = max(losses(folder))
    assert checkpoints(folder)[-1] == f"step_{stopped:08d}"
    assert sorted(losses(folder)) == list(range(1, stopped + 1))
    assert not list(folder.glob("checkpoints/.*"))


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_ctrl_c_saves_and_a_second_one_ends_at_once(recipe: Path, tmp_path: Path, ranks: int):
    folder = tmp_path / "runs/tiny"
    run = Run(ranks, recipe, folder, *LONG, "checkpoint.every=100000")
    run.wait_for_step(3)
    # A terminal sends it to all processes of the command, and a launcher sends it on to its ranks.
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end() == 130, run.stderr
    stopped = max(losses(folder))
    assert f"stopped by a signal after {stopped} of 100000 steps" in run.stderr
    assert "Traceback" not in run.stderr
    assert checkpoints(folder) == [f"step_{stopped:08d}"]

    run = Run(ranks, recipe, folder, *LONG, "checkpoint.every=100000")
    run.wait_for_step(stopped + 3)
    with suspended(worker(run, 0)):  # no step is finished any more, so the first Ctrl-C waits
        for _ in range(2):
            os.killpg(run.process.pid, signal.SIGINT)
            time.sleep(1.5)
        assert run.end() == 130, run.stderr
    assert checkpoints(folder) == [f"step_{stopped:08d}"] and "Traceback" not in run.stderr


def test_a_hang_ends_with_the_stacks_of_all_ranks(recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    run = Run(2, recipe, folder, *LONG, "stopping.hang=12")
    run.wait_for_step(3)
    # Rank 1 waits for its worker and rank 0 for rank 1, as when a file server stops answering.
    with suspended(worker(run, 1)):
        assert run.end() == 75, run.stderr
    said = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "no step for stopping.hang=12 s" in said[0]
    stacks = [(folder / f"stacks/rank{rank}.txt").read_text() for rank in (0, 1)]
    assert "step.py" in stacks[0] or "online_probe.py" in stacks[0]
    assert "loader.py" in stacks[1] and "step.py" not in stacks[1]


def test_who_cannot_stop_in_time_is_ended(recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    run = Run(1, recipe, folder, *LONG, "checkpoint.every=2", "stopping.grace=3")
    run.wait_for(lambda: (folder / "checkpoints/latest").exists())
    with suspended(worker(run, 0)):
        done = -1
        while done != (done := len(losses(folder))):  # it trains on with the batches that are there
            time.sleep(5)
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.end() == 75, run.stderr
    assert "error: rank 0: stopping took longer than stopping.grace=3 s" in run.stderr
    assert "loader.py" in (folder / "stacks/rank0.txt").read_text()


@pytest.mark.nightly
def test_ranks_save_and_end_when_their_launcher_dies(recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    run = Run(2, recipe, folder, *LONG, "checkpoint.every=100000")
    run.wait_for_step(3)
    ranks = [run.rank(0), run.rank(1)]
    run.process.kill()
    _, left = psutil.wait_procs(ranks, timeout=200)
    assert not left, run.stderr
    assert checkpoints(folder) == [f"step_{max(losses(folder)):08d}"]


@pytest.mark.nightly
def test_a_silent_rank_counts_as_lost(recipe: Path, tmp_path: Path):
    run = Run(2, recipe, tmp_path / "runs/tiny", *LONG, "stopping.lost=10")
    run.wait_for_step(3)
    run.rank(1).suspend()  # as a host without power: it says nothing and closes no connection
    assert run.end() == 75, run.stderr
    (said,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert "rank 1, on " in said and "has not been heard of for stopping.lost=10 s" in said
