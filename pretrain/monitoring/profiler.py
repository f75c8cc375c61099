"""A trace of some steps: what each kernel and operator took, for a person to look at."""

from pathlib import Path

import torch
from pydantic import PositiveInt
from torch.profiler import ProfilerActivity, profile, schedule

from isotorus.section import Section

SHOWN = 40


class ProfileConfig(Section):
    start: PositiveInt | None = None
    """Steps before the first that is traced, on rank 0; none: no trace. Into <runs>/<name>/profile come the
    trace, for chrome://tracing or ui.perfetto.dev, and a table of the operators that took longest."""
    steps: PositiveInt = 5
    """How many steps are traced; they are slower than others."""


class Profiler:
    """Traces steps [start, start + steps) of a run; used on rank 0 alone."""

    def __init__(self, config: ProfileConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self._profile: profile | None = None

    def advance(self, step: int) -> None:
        """Say that step `step` comes next."""
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
        begun = profile(activities=activities, schedule=phases, on_trace_ready=self._write)
        begun.start()
        return begun

    def _write(self, done: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{self.config.start:08d}"
        done.export_chrome_trace(str(self.folder / f"{name}.json"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = done.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=SHOWN)
        (self.folder / f"{name}.txt").write_text(table + "\n")

    def close(self) -> None:
        """End a trace before its last step, if there is one under way."""
        if self._profile:
            self._profile.stop()
            self._profile = None
