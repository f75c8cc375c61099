"""How long a save in the background stops training, and whether the state that is read back is the same."""

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import batch_of, engine_of, recipe, start, wait
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.run_state import RunState
from pretrain.checkpoint.saver import Saver
from pretrain.engines.step import train_step
from pretrain.monitoring.guard import Guard


def checkpoint(setting: Setting, report: Report) -> None:
    """Save twice (the first save allocates), train on, resume with another engine and take the same steps."""
    device = start(setting)
    config = recipe(
        setting, setting.size("lejepa_vits14", "lejepa_vitb14"), "engine.deterministic=true",
        "engine.compile=false", f"data.batch_size={setting.size(4, 16)}",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:

        def state() -> RunState:
            engine = engine_of(config, device)
            return RunState(engine, Guard(config.guard, Path(folder), engine.networks, device), None)

        def train(run: RunState) -> list[float]:
            losses = []
            for step in range(run.step, run.step + 2):
                losses.append(
                    train_step(run.engine, batch_of(config, device, step), step, 1e-3).parts["loss"].item()
                )
            return losses

        run = state()
        train(run)
        savers = {
            way: Saver(Path(folder) / str(way), CheckpointConfig(asynchronous=way), 0)
            for way in (True, False)
        }
        waited: dict[bool, float] = {}
        for number in (1, 2):
            for way, saver in savers.items():
                wait(device)
                began = time.perf_counter()
                saver.save(2 * number, run.tensors() | {"step": 2 * number}, {"step": 2 * number})
                waited[way] = time.perf_counter() - began
        run.step = 4
        after = train(run)
        for saver in savers.values():
            saver.wait()
        resumed = state()
        resumed.resume(Path(folder) / "True", "refuse")
        again = train(resumed)
    report.note(seconds_beside=waited[True], seconds_at_once=waited[False], losses=after)
    report.check(resumed.step == 4, f"it resumed at step {resumed.step}, not 4")
    report.check(after == again, f"losses after the save are {after}, after resuming {again}")
    same = zip(run.engine.networks.parameters(), resumed.engine.networks.parameters(), strict=True)
    report.check(all(torch.equal(a, b) for a, b in same), "parameters differ after two more steps")
