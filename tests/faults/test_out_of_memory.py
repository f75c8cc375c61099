"""A rank, or a process that loads its data, runs out of memory: one line says what to change."""

import re
import resource
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed.runs import Run, losses, train

# The learning rate is constant, as the runs differ in their ends.
RUN = ("optimizer.final_lr_ratio=1", "checkpoint.every=5", "data.batch_size=64", "views.global_size=64")
SMALL = ("optimizer.final_lr_ratio=1", "checkpoint.every=5")
# What a step no longer holds goes back to the system at once.
FREES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if re.search(r"\w*[eE]rror\b|Traceback|terminate", line)]


def newest(folder: Path) -> int:
    return int((folder / "checkpoints/latest").resolve().name.removeprefix("step_"))


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_memory_that_runs_out_on_one_rank(recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    run = Run(2, recipe, folder, "steps=100000", *RUN, environment=FREES)
    run.wait_for(lambda: (folder / "checkpoints/latest").exists())
    rank = run.rank(1)
    held: list[int] = []
    saved = max(losses(folder))
    run.wait_for(lambda: held.append(rank.memory_info().vms) or max(losses(folder)) > saved + 2)
    # From now on half of what a step needs, as if others on the node had taken the rest.
    rank.rlimit(psutil.RLIMIT_AS, ((min(held) + max(held)) // 2, resource.RLIM_INFINITY))
    assert run.end() == 2, run.stderr
    (line,) = errors(run.stderr)
    assert re.match(
        r"error: rank 1 \(\S+\) has no memory left for this step: it asked for \S+ [GM]iB more", line
    )
    assert re.search(
        r"plan's estimate is \S+ GiB a rank; less need .*engine\.kind=fsdp \S+ \(\S+ GiB\)", line
    )
    assert re.search(r"engine\.accumulation=2 \(\S+ GiB\)", line)
    assert "isotorus plan --gpus 2 --gpu cpu" in line

    saved = newest(folder)
    before = losses(folder)
    assert max(before) - saved <= 10  # one save may be on its way when the run ends
    done = train(2, recipe, f"steps={saved + 3}", *RUN, "engine.accumulation=2")
    assert done.returncode == 0 and f"continuing {folder} from step_{saved:08d}" in done.stderr, done.stderr
    after = losses(folder)
    assert list(after) == list(range(1, saved + 4))
    again = [step for step in after if step in before]
    assert [after[step] for step in again] == pytest.approx([before[step] for step in again], rel=1e-4)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_rank_and_a_reader_that_the_kernel_kills(recipe: Path, tmp_path: Path):
    undisturbed = train(2, recipe, "name=undisturbed", "steps=60", *SMALL)
    assert undisturbed.returncode == 0, undisturbed.stderr
    folder = tmp_path / "runs/tiny"
    run = Run(2, recipe, folder, "steps=100000", *SMALL)
    run.wait_for_step(6)
    run.rank(1).kill()
    assert run.end() == 137, run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.match(r"error: rank 1 on \S+ was killed \(SIGKILL\)", lines[0])
    assert "memory" in lines[0] and "isotorus plan" in lines[0]

    run = Run(2, recipe, folder, "steps=100000", *SMALL, "data.workers=1")
    reached = newest(folder)
    run.wait_for_step(reached + 6)
    (reader,) = [c for c in run.rank(0).children() if "resource_tracker" not in c.cmdline()[-1]]
    reader.send_signal(signal.SIGKILL)
    began = time.monotonic()
    assert run.end() == 2, run.stderr
    print(f"ended {time.monotonic() - began:.1f} s after the reader")
    (told_once,) = errors(run.stderr)
    assert "a process that reads data for rank 0" in told_once and "data.workers" in told_once

    done = train(2, recipe, f"steps={max(60, newest(folder) + 1)}", *SMALL)
    assert done.returncode == 0, done.stderr
    expected = losses(tmp_path / "runs/undisturbed")
    found = losses(folder)
    assert {step: found[step] for step in expected} == expected
