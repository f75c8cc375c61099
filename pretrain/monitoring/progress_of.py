"""Read from the files of a run's folder how far the run is, and what is unhealthy in it."""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from isotorus import foreign_files, jsonl
from isotorus.errors import UserError
from isotorus.numbers import duration
from isotorus.recipe import read_yaml

Row = dict[str, Any]
_RECENT = 20
"""Number of newest rows whose median speed gives the time that is left."""
_START = 120.0
"""Seconds after which a note is shown about a run that has not logged any row."""
_ALIVE = 60.0
"""Seconds without renewal after which the process that holds a run's lock counts as ended."""
_LONG = 600.0
"""Seconds without a second row after which a run counts as standing still."""


@dataclass(frozen=True)
class Standing:
    """A run at one moment."""

    name: str
    rows: list[Row]
    """Logged rows by ascending step."""
    steps: int | None
    """Steps of the whole run; None if config.yaml cannot be read."""
    checkpoint: int | None
    """Step of the newest complete checkpoint."""
    quiet: float | None
    """Seconds since the newest row was written."""
    problem: str = ""
    """Why the run's files cannot be read; "" if they can."""
    since: float | None = None
    """Seconds since the newest start of the run wrote config.yaml; None without that file."""
    holder: str = ""
    """The process that trains the run, in words; "" if none has renewed the run's lock in the last minute."""

    @property
    def step(self) -> int:
        """The newest step that is logged or saved, since a log may be lost; 0 before the first."""
        logged = int(self.rows[-1]["step"]) if self.rows else 0
        return max(logged, self.checkpoint or 0)

    @property
    def finished(self) -> bool:
        """Whether the last step is done and saved, or the run has ended early."""
        if self.steps is None or self.checkpoint is None:
            return False
        early = bool(self.rows) and bool(self.rows[-1].get("stopped_early"))
        return self.checkpoint >= (self.step if early else self.steps)

    @property
    def seconds_a_step(self) -> float | None:
        """Median over the newest rows of the time of a step; None before the second row."""
        recent = [row for row in self.rows[-_RECENT - 1 :] if isinstance(row.get("time"), int | float)]
        each = [
            (b["time"] - a["time"]) / (b["step"] - a["step"])
            for a, b in itertools.pairwise(recent)
            if b["step"] > a["step"]
        ]
        return statistics.median(each) if each else None

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at the speed of the newest rows; None if it is not known."""
        each = self.seconds_a_step
        return None if each is None or self.steps is None else max(0, self.steps - self.step) * each

    @property
    def does_not_begin(self) -> bool:
        """Whether the run has logged no step for longer than a start usually takes."""
        return not self.rows and not self.finished and self.since is not None and self.since > _START

    @property
    def stands_still(self) -> bool:
        """Whether nothing was logged for ten times the usual time between two rows, and a minute at least.

        After a single row that time is not known; the limit is then `_LONG`.
        """
        if self.finished or self.quiet is None:
            return False
        if self.seconds_a_step is None:
            return self.quiet > _LONG
        between = [b["step"] - a["step"] for a, b in itertools.pairwise(self.rows)]
        usual = statistics.median(between) * self.seconds_a_step
        return self.quiet > max(60.0, 10 * usual)

    def series(self, key: str) -> list[float]:
        """Return the logged values of a quantity, without those that are not numbers."""
        values = (row.get(key) for row in self.rows)
        return [float(x) for x in values if isinstance(x, int | float) and math.isfinite(x)]


def standings(runs: Sequence[Path]) -> list[Standing]:
    """Read how runs stand. Among several runs, one that cannot be read only gets a `problem`."""
    if len(runs) == 1:
        return [standing(runs[0])]
    found = []
    for run in runs:
        try:
            found.append(standing(run))
        except UserError as error:
            found.append(Standing(run.name, [], None, None, None, str(error)))
    return found


def standing(run: Path) -> Standing:
    """Read how a run stands. Values whose file is missing or being written are left out.

    Raises UserError for a log that is no regular file.
    """
    rows = {row["step"]: row for row in jsonl.read(run / "metrics.jsonl", "step")}
    ordered = [rows[step] for step in sorted(rows)]
    saved = [
        int(marker.parent.name.removeprefix("step_"))
        for marker in (run / "checkpoints").glob("step_*/COMPLETE")
        if marker.parent.name.removeprefix("step_").isdigit()
    ]
    newest = ordered[-1].get("time") if ordered else None
    quiet = max(0.0, time.time() - newest) if isinstance(newest, int | float) else None
    since = _age(run / "config.yaml")
    return Standing(
        run.name, ordered, _steps(run), max(saved, default=None), quiet, since=since, holder=_holder(run)
    )


def _age(file: Path) -> float | None:
    """Return the seconds since a file was written; None if it is not there."""
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except OSError:
        return None


def _holder(run: Path) -> str:
    """Return which process holds the run's lock and has renewed it lately; "" if none does."""
    age = _age(run / "lock")
    if age is None or age > _ALIVE:
        return ""
    try:
        found = foreign_files.read_json(run / "lock")
    except (OSError, UserError):  # empty, or being written
        return ""
    return f"process {found.get('pid')} on {found.get('host')}" if isinstance(found, dict) else ""


def _steps(run: Path) -> int | None:
    """Return the steps that config.yaml names."""
    try:
        found = read_yaml((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    steps = found.get("steps") if isinstance(found, dict) else None
    return steps if isinstance(steps, int) else None


def _not_begun(now: Standing) -> str:
    """Say what to look at where a run has logged nothing for longer than a start takes."""
    look = "look at the last lines of its terminal or log (of Slurm: slurm-*.out)"
    waited = duration(now.since or 0)
    if now.holder:
        return (
            f"no row after {waited}, but {now.holder} is alive: a row comes after log_every steps, and "
            f"before the first step the data are opened and the model is compiled; {look}"
        )
    return f"no row after {waited}, and no process holds the run: {look}; the same command starts it again"


def notes(now: Standing) -> list[str]:
    """Return what in a run's newest rows is outside of the ranges of docs/healthy-run.md, and what to do."""
    if now.problem:
        return [now.problem]
    said = []
    if now.steps is None:
        said.append("config.yaml cannot be read, so the number of steps is not known: restore the file")
    if now.stands_still:
        quiet = duration(now.quiet or 0)
        said.append(f"nothing was logged for {quiet}; if the run has stopped, the same command continues it")
    if now.does_not_begin:
        said.append(_not_begun(now))
    if not now.rows:
        return said
    newest = now.rows[-1]
    wait = now.series("data_wait")[-_RECENT:]
    if wait and statistics.median(wait) > 0.1:
        said.append(f"waits for data {statistics.median(wait):.0%} of the time: raise data.workers")
    if newest.get("collapsed"):
        said.append("the embeddings have collapsed: see docs/results-are-bad.md")
    refused, done = newest.get("skipped_steps") or 0, max(now.step, 1)
    if refused > 0.02 * done:
        said.append(f"{refused:,} updates were refused ({refused / done:.1%}): lower optimizer.lr")
    if newest.get("corrupt_samples"):
        said.append(f"{newest['corrupt_samples']:,} damaged images were replaced: corrupt.jsonl lists them")
    return said
