"""`isotorus watch RUN`: follow a run in the terminal, from the files of its folder."""

import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from isotorus.errors import ArgumentParser, UserError
from isotorus.numbers import duration
from pretrain.monitoring.progress_of import Standing, notes, standings

_BARS = "▁▂▃▄▅▆▇█"
SHOWN = {
    "loss": "loss",
    "prediction": "prediction",
    "sigreg_over_null": "SIGReg over null (1: Gaussian)",
    "uniformity_over_null": "U over null (1: uniform angles)",
    "windings_right": "windings right",
    "probe_balanced_accuracy": "online probe, balanced accuracy",
    "val_balanced_accuracy": "val, balanced accuracy",
    "val_auroc": "val, AUROC",
    "val_r2": "val, R²",
    "held_out_knn": "k-NN on held-out images",
    "held_out_rankme": "RankMe on held-out images",
    "effective_rank": "effective rank",
    "grad_norm": "gradient norm",
}
"""Quantities of metrics.jsonl that are drawn if a run has them, and their names."""


def main(arguments: list[str]) -> int:
    """Run the command; Ctrl-C ends it with exit code 0."""
    parser = ArgumentParser(
        prog="isotorus watch",
        description="Show how far a run is, and follow it to its last step; for a folder of runs, a table. "
        "It reads the run's files only, so the run may be on any machine that shares the folder.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, such as runs/mine, or a folder of runs")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between looks (default 2)"
    )
    parser.add_argument("--once", action="store_true", help="show it once and end")
    options = parser.parse_args(arguments)
    if not options.every > 0:
        parser.error(f"--every {options.every:g}: expected a number of seconds above 0")
    runs = _runs(Path(options.run))
    console = Console(highlight=False)
    looks = standings(runs)
    if options.once or not console.is_terminal or all(look.finished for look in looks):
        console.print(_shown(looks))
        _end(looks, runs)
        return 0
    try:
        with Live(_shown(looks), console=console, auto_refresh=False) as live:
            while not all(look.finished for look in looks):
                time.sleep(options.every)
                looks = standings(runs)
                live.update(_shown(looks), refresh=True)
    except KeyboardInterrupt:
        return 0
    _end(looks, runs)
    return 0


def _runs(path: Path) -> list[Path]:
    """Return the run at a path, or the runs in it; raises UserError if there are none."""
    if (path / "config.yaml").exists():
        return [path]
    found = sorted(each.parent for each in path.glob("*/config.yaml")) if path.is_dir() else []
    if not found:
        raise UserError(f"{path} is no run (it has no config.yaml), and no folder of runs; name runs/NAME")
    return found


def _shown(looks: list[Standing]) -> Group | Table:
    """Return the page of one run, or the table of several."""
    return _one(looks[0]) if len(looks) == 1 else _several(looks)


def _one(now: Standing) -> Group:
    """Return the page of one run."""
    head = f"{now.name}: step {now.step:,}" + (f" of {now.steps:,}" if now.steps else "") + f", {_state(now)}"
    lines = [head]
    if now.steps:
        share = min(1.0, now.step / now.steps)
        done = round(50 * share)
        lines.append("█" * done + "░" * (50 - done) + f" {share:.0%}")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, name in SHOWN.items():
        if values := now.series(key):
            table.add_row(name, f"{values[-1]:.4g}", sparkline(values))
    if speed := now.series("images_per_second"):
        table.add_row("images/s", f"{speed[-1]:.4g}", sparkline(speed))
    if wait := now.series("data_wait"):
        table.add_row("waits for data", f"{wait[-1]:.0%}", sparkline(wait))
    table.add_row("newest checkpoint", "none yet" if now.checkpoint is None else f"{now.checkpoint:,}", "")
    return Group(*lines, table, *(f"! {note}" for note in notes(now)))


def _several(looks: list[Standing]) -> Table:
    """Return a table of runs."""
    table = Table(box=None)
    table.add_column("run", overflow="fold")
    for title in ("step", "of", "loss", "probe", "left"):
        table.add_column(title, justify="right")
    table.add_column("notes", overflow="fold")
    for now in looks:
        loss, probe = now.series("loss"), now.series("probe_balanced_accuracy")
        table.add_row(
            now.name,
            f"{now.step:,}",
            f"{now.steps:,}" if now.steps else "",
            f"{loss[-1]:.4f}" if loss else "",
            f"{probe[-1]:.1%}" if probe else "",
            _state(now),
            "; ".join(notes(now)),
        )
    return table


def _state(now: Standing) -> str:
    """Return in words how long it will take, or that it has ended."""
    if now.finished:
        return "finished"
    if now.problem:
        return "cannot be read"
    if now.does_not_begin:
        return "starts slowly" if now.holder else "has not begun"
    if not now.rows:
        return "no step logged yet"
    if now.stands_still:
        return "stands still"
    if now.seconds_left is None:
        return "time left not known"
    return f"{duration(now.seconds_left)} left"


def sparkline(values: Sequence[float], width: int = 30) -> str:
    """Return a curve of block characters: the means of `width` equal parts, from the least to the largest."""
    if not values:
        return ""
    parts = min(width, len(values))
    edges = [len(values) * i // parts for i in range(parts + 1)]
    means = [statistics.fmean(values[a:b]) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _end(looks: list[Standing], runs: list[Path]) -> None:
    """Say what to do next with a run that has finished."""
    if len(looks) == 1 and looks[0].finished:
        print(f"next: isotorus eval {runs[0]} --train SHARDS --val SHARDS", file=sys.stderr)
