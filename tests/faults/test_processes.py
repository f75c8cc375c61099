"""Killed processes: what survives, and how the run continues. See also tests/distributed/test_resume.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.distributed.runs import ENVIRONMENT, ROOT, Run, killing, losses, train
from tests.faults.conftest import STEPS


def family(run: Run) -> list[psutil.Process]:
    return psutil.Process(run.process.pid).children(recursive=True)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_second_start_is_refused_and_the_first_goes_on(recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    run = Run(2, recipe, folder, "steps=100000", "optimizer.final_lr_ratio=1", "checkpoint.every=100000")
    run.wait_for_step(1)
    again = train(2, recipe)
    assert again.returncode == 2 and "Traceback" not in again.stderr, again.stderr
    (said,) = [line for line in again.stderr.splitlines() if line.startswith("error: ")]
    assert f"{folder} is being trained by process {run.rank(0).pid} on {os.uname().nodename} since" in said
    run.wait_for_step(max(losses(folder)) + 2)
    run.process.terminate()
    assert run.end() == 0 and sorted(losses(folder)) == list(range(1, len(losses(folder)) + 1))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("whom", ["ranks", pytest.param("launcher", marks=pytest.mark.nightly)])
def test_killed_in_a_step_the_run_is_the_whole_run(
    whole: dict[int, float], recipe: Path, tmp_path: Path, whom: str
):
    folder = tmp_path / "runs/tiny"
    run = Run(2, recipe, folder, *STEPS)
    run.wait_for(lambda: (folder / "checkpoints/latest").exists())
    ranks = family(run)
    for process in [run.rank(0), run.rank(1)] if whom == "ranks" else [psutil.Process(run.process.pid)]:
        process.kill()
    assert run.end() == (128 + 9 if whom == "ranks" else -9)
    _, alive = psutil.wait_procs(ranks, 60)
    assert not alive
    done = train(2, recipe, *STEPS)
    assert done.returncode == 0 and f"continuing {folder} from step_" in done.stderr, done.stderr
    assert losses(folder) == whole


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_launcher_killed_in_a_save(whole: dict[int, float], recipe: Path, tmp_path: Path):
    """The ranks finish that save and do no further step."""
    folder = tmp_path / "runs/tiny"
    in_save = "event == 'open' and '/.partial_00000008/__1_' in paths[0]"
    done = train(2, recipe, *STEPS, environment=killing(tmp_path, 1, in_save, "os.getppid()"))
    assert done.returncode == -9 and "Traceback" not in done.stderr, done.stderr
    saved = (folder / "checkpoints/latest").resolve().name
    assert saved == f"step_{max(losses(folder)):08d}" and not list(folder.glob("checkpoints/.*"))
    done = train(2, recipe, *STEPS)
    assert done.returncode == 0 and losses(folder) == whole, done.stderr


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_killed_in_an_evaluation(recipe: Path, shards: Path, tmp_path: Path):
    """Kill a rank, the launcher, a lone process: results are whole or absent, and complete the next time."""
    assert train(1, recipe, "steps=2").returncode == 0
    out = tmp_path / "results"
    evaluation = ["-m", "eval_suite", str(tmp_path / "runs/tiny"), "--out", str(out)]
    evaluation += ["--train", str(shards), "--val", str(shards)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    in_report = "event == 'open' and '.report.html.' in paths[0]"
    for launcher, whom in ((torchrun, "os.getpid()"), (torchrun, "os.getppid()"), ([], "os.getpid()")):
        environment = (
            ENVIRONMENT | killing(tmp_path, 0, in_report, whom) | ({} if launcher else {"RANK": "0"})
        )
        process = psutil.Popen([sys.executable, *launcher, *evaluation], cwd=ROOT, env=environment)
        everyone: set[psutil.Process] = set()
        while process.poll() is None:
            everyone |= set(process.children(recursive=True)) if process.is_running() else set()
            psutil.wait_procs([process], 0.2)
        assert process.returncode != 0
        _, alive = psutil.wait_procs(everyone, 60)
        finished = (out / "results.json").exists()
        # A process that outlives its launcher by a moment may finish in that time.
        assert not alive and (not finished or whom == "os.getppid()")
        if finished:
            assert json.loads((out / "results.json").read_text()) and (out / "report.html").exists()
            (out / "results.json").unlink()
    subprocess.run([sys.executable, *torchrun, *evaluation], cwd=ROOT, env=ENVIRONMENT, check=True)
    assert (out / "results.json").exists() and (out / "report.html").exists()
