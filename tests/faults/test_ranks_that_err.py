"""One rank of two has a NaN gradient, hangs, or is slow, under the launcher.

Spikes of the loss, under every engine, are tested in tests/pretrain/monitoring/test_guard.py, and a rank
whose reader hangs in tests/distributed/test_stopping.py.
"""

import re
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from isotorus import jsonl
from pretrain.assemble import build_engine, load_batches
from pretrain.config import Config, load_config
from pretrain.engines.schedule import learning_rate
from pretrain.engines.step import train_step
from pretrain.preflight.check import check
from pretrain.train import prepare
from tests.distributed.runs import Run, losses, rows, train

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]

STEPS, REFUSED = 12, 6
"""The number of steps, and the step in which one rank's gradient is NaN."""
CPU = torch.device("cpu")


def poisoned(folder: Path, rank: int, step: int) -> dict[str, str]:
    """Return an environment in which the backward pass of a rank's last block gives NaN once, in `step`."""
    hook = folder / "poison/sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text(
        "import os, sys\n"
        "calls = 0\n"
        "def poison(module, grad_input, grad_output):\n"
        "    global calls\n"
        "    calls += type(module).__name__ == 'Block'\n"
        # Two blocks and two sizes of views: four calls a step.
        f"    if type(module).__name__ == 'Block' and calls == {4 * (step - 1) + 1}:\n"
        "        return tuple(g * float('nan') for g in grad_input)\n"
        "def audit(event, arguments):\n"
        "    if event == 'import' and arguments[0] == 'pretrain.train':\n"
        "        from torch.nn.modules.module import register_module_full_backward_hook\n"
        "        register_module_full_backward_hook(poison)\n"
        f"if os.environ.get('RANK') == '{rank}':\n"
        "    sys.addaudithook(audit)\n"
    )
    return {"PYTHONPATH": str(hook.parent)}


def without_update(config: Config, refused: int) -> dict[int, float]:
    """Return the losses of the same run, computed here on one process, without one update."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    inputs = check(config, 1)
    engine, found = build_engine(config, inputs, CPU), {}
    for step, batch in zip(range(config.steps), load_batches(config, inputs.sources, 0), strict=False):
        lr = learning_rate(
            step,
            config.steps,
            config.optimizer.lr,
            config.optimizer.warmup_steps,
            config.optimizer.final_lr_ratio,
        )
        limit = (lambda loss: torch.full_like(loss, -1)) if step + 1 == refused else None
        result = train_step(engine, prepare(batch, config, inputs, CPU), step, lr, limit=limit)
        found[step + 1] = result.parts["loss"].item()
    dist.destroy_process_group()
    return found


def test_nan_in_the_gradient_of_one_rank(recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    done = train(2, recipe, f"steps={STEPS}", environment=poisoned(tmp_path, 1, REFUSED))
    assert done.returncode == 0, done.stderr
    (row,) = jsonl.read(folder / "skipped.jsonl")
    assert (row["batch"], row["step"]) == (REFUSED, REFUSED) and row["grad_norm"] is None
    assert len(row["samples"]) == 8, "those of both ranks"
    found = rows(folder)
    assert [row["skipped_steps"] for row in found] == [int(step >= REFUSED) for step in range(1, STEPS + 1)]
    # A loss is that of all ranks, so equal losses show equal replicas, and that one update was left out.
    expected = without_update(load_config(str(recipe), [f"steps={STEPS}"]), REFUSED)
    assert losses(folder) == pytest.approx(expected, rel=1e-3)
    everything = without_update(load_config(str(recipe), [f"steps={STEPS}"]), 0)
    assert losses(folder)[STEPS] != pytest.approx(everything[STEPS], rel=1e-3)


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_rank_that_hangs(recipe: Path, tmp_path: Path, restarts: int):
    """The hang is noticed, the rank named, and the run continued by the same command or by the launcher."""
    undisturbed = train(2, recipe, "name=undisturbed", "steps=40", "optimizer.final_lr_ratio=1")
    assert undisturbed.returncode == 0, undisturbed.stderr
    folder = tmp_path / "runs/tiny"
    options = ("optimizer.final_lr_ratio=1", "checkpoint.every=5")
    launcher = ("--max-restarts", str(restarts))
    steps = "steps=100000"
    # Longer than a start takes on a busy machine, as the launcher's restart has the same limit.
    run = Run(2, recipe, folder, steps, *options, "stopping.hang=40", launcher=launcher)
    run.wait_for_step(12)
    stuck = run.rank(1)
    stuck.suspend()
    began = time.monotonic()
    reached = max(losses(folder))
    saved = int((folder / "checkpoints/latest").resolve().name.removeprefix("step_"))
    assert reached - saved <= 10
    if restarts:
        run.wait_for(lambda: f"continuing {folder}" in run.stderr)
        run.wait_for_step(reached + 3)
        print(
            f"\nnext step {time.monotonic() - began:.1f} s after the rank stopped, 40 of them stopping.hang"
        )
        run.kill()
    else:
        assert run.end() == 75, run.stderr
    said = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "no step for stopping.hang=40 s" in said[0]
    assert re.search(r"no stack came from rank 1 on \S+: stopped, or cut off", run.stderr)
    assert "step.py" in (folder / "stacks/rank0.txt").read_text()

    end = max(40, max(losses(folder)) + 1)
    done = train(2, recipe, f"steps={end}", *options)
    assert done.returncode == 0 and f"continuing {folder}" in done.stderr, done.stderr
    found, expected = losses(folder), losses(tmp_path / "runs/undisturbed")
    assert list(found) == list(range(1, end + 1))
    assert {step: found[step] for step in expected} == expected


def test_a_slow_rank_is_named(recipe: Path, tmp_path: Path):
    """The rank is suspended most of the time, as if another process used its cores."""
    folder = tmp_path / "runs/tiny"
    run = Run(2, recipe, folder, "steps=100000", "optimizer.final_lr_ratio=1", "log_every=5")
    run.wait_for_step(5)
    slow, over = run.rank(1), threading.Event()

    def slow_down() -> None:
        while not over.wait(0.02):
            slow.suspend()
            time.sleep(0.1)
            slow.resume()

    thread = threading.Thread(target=slow_down)
    thread.start()
    try:
        begun = max(losses(folder))
        run.wait_for_step(begun + 40)
    finally:
        over.set()
        thread.join()
        run.kill()
    during = [row for row in rows(folder) if row["step"] > begun + 5]
    named = [row for row in during if row["slowest_rank"] == 1]
    assert len(named) > len(during) / 2
