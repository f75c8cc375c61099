"""One line that a terminal keeps up to date, or plain lines in a log."""

import contextlib
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    def __init__(self, name: str, start: int, steps: int) -> None:
        self.name, self.steps = name, steps
        self.bar: Bar | None = None
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

    def show(self, row: dict[str, Any]) -> None:
        text = f"loss {row['loss']:.4f}  {row['images_per_second']:.0f} img/s  wait {row['data_wait']:.0%}"
        if self.bar:
            self.bar.update(self.task, completed=row["step"], text=text)
        else:
            line = f"{self.name} {row['step']}/{self.steps}  {text}  lr {row['lr']:.2e}"
            with contextlib.suppress(OSError):  # a log on a full disk must not end the run
                print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
