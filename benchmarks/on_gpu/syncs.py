"""Where the host waits for the device in the steps of a real run, which it should at logged steps alone."""

import tempfile
import traceback
import warnings
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import recipe, seconds, start
from data_pipeline.packing.pack import Options, pack
from pretrain.assemble import Run, assemble
from pretrain.preflight.check import check
from pretrain.run_control.start_up import StartUp
from pretrain.run_control.stopping import Stopping
from pretrain.train import update

ROOT = Path(__file__).parents[2]
STEPS = 3


def syncs(setting: Setting, report: Report) -> None:
    """Take steps of a run on packed images with labels: loader, augmentation, step, guard and probe."""
    device = start(setting)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as cleanup:
        shards = _packed(Path(folder), images=setting.size(16, 256), side=setting.size(32, 256))
        config = recipe(
            setting, setting.size("lejepa_vits14", "lejepa_vits16"),
            f"data.path={shards}", f"data.workers={setting.size(0, 4)}",
            f"data.batch_size={setting.size(4, 64)}",
            f"runs={folder}/runs", "log_every=1000000", "checkpoint.every=1000000",
        )  # fmt: skip
        stopping = cleanup.enter_context(Stopping(config.stopping, config.folder))
        run = assemble(config, check(config, 1), device, stopping, StartUp(), cleanup)
        assert run is not None
        for _ in range(STEPS):
            update(run)
        waits = _waits(run, setting)
        report.note(steps=STEPS, waits=waits, seconds_step=seconds(lambda: update(run), device, repeats=3))
        where = ", ".join(f"{place} ({count}×)" for place, count in waits.items())
        report.check(not waits, f"the host waits for the device in {STEPS} steps at {where}")
        run.batches.close()
    if setting.device == "cpu":
        report.skip("a CPU waits for nothing; the steps were taken")


def _waits(run: Run, setting: Setting) -> dict[str, int]:
    """Return how often the host waited, by the innermost line of this project that made it."""
    found: Counter[str] = Counter()

    def record(message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing" not in str(message):  # turning the mode on warns too
            return
        frames = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(ROOT)]
        inner = [f for f in frames if f.filename != __file__ and "site-packages" not in f.filename]
        place = (inner or frames)[-1]
        found[f"{Path(place.filename).relative_to(ROOT)}:{place.lineno}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = record
        if setting.device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        for _ in range(STEPS):
            update(run)
        if setting.device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return dict(found)


def _packed(folder: Path, images: int, side: int) -> Path:
    """Pack images of noise in two classes; return the data set."""
    random = np.random.default_rng(0)
    for i in range(images):
        file = folder / "images" / ("even", "odd")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)
    pack(folder / "images", folder / "shards", Options(labels="folder", workers=1))
    return folder / "shards"
