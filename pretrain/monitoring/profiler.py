"""Trace some steps, for a person to see how long each kernel and operator takes."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pretrain.monitoring.config import ProfileConfig

SHOWN = 40
"""Rows of the table of operators."""


class Profiler:
    """Traces steps [start, start + steps) of a run; only rank 0 uses it."""

    def __init__(self, config: ProfileConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self._profile: profile | None = None

    def advance(self, step: int) -> None:
        """Note that step `step` comes next, and begin or end the trace there."""
        start = self.config.start
        if start is None:
            return
        if self._profile:
            self._profile.step()
        elif step == start - 1:
            self._profile = self._begin()
        if step == start + self.config.steps:
            self.close()

    def _begin(self) -> profile:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        phases = schedule(wait=0, warmup=1, active=self.config.steps, repeat=1)
        trace = profile(activities=activities, schedule=phases, on_trace_ready=self._write)
        trace.start()
        return trace

    def _write(self, trace: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{self.config.start:08d}"
        trace.export_chrome_trace(str(self.folder / f"{name}.json"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = trace.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=SHOWN)
        (self.folder / f"{name}.txt").write_text(table + "\n")

    def close(self) -> None:
        """End the trace that is under way, if any, even before its last step."""
        if self._profile:
            self._profile.stop()
            self._profile = None
