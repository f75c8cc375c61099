"""How far a run is: a bar on a terminal, lines in a log."""

import contextlib
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LONGEST_SILENCE = 60.0
"""Largest number of seconds between two lines of progress in a log."""


class Progress:
    """A progress bar on a terminal; in a log, a line for each logged step, and one every minute between."""

    def __init__(self, name: str, start: int, steps: int) -> None:
        self.name, self.steps, self.step = name, steps, start
        self.bar: Bar | None = None
        self._shown_at, self._closed = time.monotonic(), threading.Event()
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task(name, total=steps, completed=start, text="starting")
            self.bar.start()
        else:
            threading.Thread(target=self._show_life, name="progress", daemon=True).start()

    def show(self, row: dict[str, Any]) -> None:
        """Show a logged row."""
        text = f"loss {row['loss']:.4f}  {row['images_per_second']:.0f} img/s  wait {row['data_wait']:.0%}"
        if self.bar:
            self.bar.update(self.task, completed=row["step"], text=text)
        else:
            self._print(f"{self.name} {row['step']}/{self.steps}  {text}  lr {row['lr']:.2e}")

    def _show_life(self) -> None:
        while not self._closed.wait(LONGEST_SILENCE / 4):
            if time.monotonic() - self._shown_at > LONGEST_SILENCE * 3 / 4:
                self._print(f"{self.name} {self.step}/{self.steps}")

    def _print(self, line: str) -> None:
        self._shown_at = time.monotonic()
        with contextlib.suppress(OSError):  # a log on a full disk must not end the run
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar, or the lines."""
        self._closed.set()
        if self.bar:
            self.bar.stop()
