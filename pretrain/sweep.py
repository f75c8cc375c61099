"""`isotorus sweep --config x.yaml objective.grid_size=8,12 seed=0,1`: train a grid of runs.

Each run is a process of its own, started by `python -m pretrain` or by what `--launcher` says, and an MLflow
run under one parent. Finished runs are left out, so the same command continues a sweep that was stopped.
"""

import concurrent.futures
import contextlib
import itertools
import json
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from isotorus import files, foreign_files, jsonl
from isotorus.errors import ArgumentParser, UserError, from_os_error
from pretrain.config import Config, load_config
from pretrain.monitoring import mlflow_mirror
from pretrain.monitoring.config import TrackingConfig

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run the grid; return 0 if all runs finished, 1 if some failed. A wrong grid raises UserError."""
    parser = ArgumentParser(prog="isotorus sweep", description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a packaged recipe")
    parser.add_argument(
        "--launcher",
        default=f"{shlex.quote(sys.executable)} -m pretrain",
        help="command that starts a run, to which '--config … key=value …' is added, e.g. "
        "'isotorus launch torchrun --nproc-per-node 8 --' or 'srun -N 2 … isotorus train'",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="how many runs train at the same time (default 1)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value[,value…]")
    given = parser.parse_intermixed_args(arguments)

    base, members, runs = runs_of(given.config, given.overrides)
    commands = [[*shlex.split(given.launcher), *run] for run in runs]
    if given.dry_run:
        print("\n".join(shlex.join(command) for command in commands))
        return 0
    parent = parent_run(base, Path(members[0].runs), members[0].tracking)
    if parent:
        commands = [[*command, f"tracking.parent={parent}"] for command in commands]
    with concurrent.futures.ThreadPoolExecutor(max(1, given.jobs)) as pool:
        codes = list(pool.map(_run, members, commands))
    if parent:
        mlflow_mirror.end_family(members[0].tracking, parent, "FAILED" if any(codes) else "FINISHED")
    _print_table(members, codes)
    return 1 if any(codes) else 0


def runs_of(path: str, overrides: list[str]) -> tuple[str, list[Config], list[list[str]]]:
    """Return the recipe's name and, for each point of the grid, its configuration and its command arguments.

    Raises UserError for the first point of the grid that is not a valid configuration.
    """
    base = load_config(path, []).name
    grid = expand(overrides)
    points = [[*point, f"name={member_name(base, point, grid)}"] for point in grid]
    members = [load_config(path, point) for point in points]
    if len({member.name for member in members}) < len(members):
        raise UserError("two points of the grid are the same; leave out the repeated value")
    return base, members, [["--config", path, *point] for point in points]


def expand(overrides: list[str]) -> list[list[str]]:
    """Return the grid's points, each a list of overrides: all combinations of the overrides' values.

    Commas outside brackets and braces separate values.
    """
    axes = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"'{override}' is not an override; write dotted.key=value or key=value,value")
        values = re.split(r",(?![^\[{]*[\]}])", text)
        axes.append([f"{key}={value.strip()}" for value in values])
    return [list(point) for point in itertools.product(*axes)]


def member_name(base: str, point: list[str], grid: list[list[str]]) -> str:
    """Return a run's name: the recipe's name and the values in which the points of the grid differ."""
    varied = [
        value for value, column in zip(point, zip(*grid, strict=True), strict=True) if len({*column}) > 1
    ]
    apart = [f"{value.partition('=')[0].rpartition('.')[2]}={value.partition('=')[2]}" for value in varied]
    return re.sub(r"[^\w.+=-]+", "_", "-".join([base, *apart]))


def _run(member: Config, command: list[str]) -> int:
    """Start a run unless it is finished, wait for its end, and return its exit code."""
    # Imported here because it imports torch: --help, --dry-run and a wrong grid need not wait for it.
    from pretrain.checkpoint import damage, folders

    newest = folders.latest(member.folder / "checkpoints")
    with contextlib.suppress(damage.Damaged):  # the run itself finds the damage and uses an earlier one
        if newest and damage.describe(newest).get("step", 0) >= member.steps:
            log.info("%s is finished already", member.name)
            return 0
    log.info("%s", shlex.join(command))
    return subprocess.run(command).returncode


def parent_run(base: str, runs: Path, config: TrackingConfig) -> str | None:
    """Return the id of the MLflow run above all runs of this sweep, which is created at the first start.

    None if tracking is off or MLflow does not answer.
    """
    if not config.enabled:
        return None
    record = runs / f"{base}.sweep.json"
    if known := _known_parent(record):
        return known
    try:
        run_id = mlflow_mirror.start_family(config, base)
    except Exception as error:  # a sweep without its parent is better than none
        log.warning("MLflow does not answer, the runs will have no parent: %s", mlflow_mirror.reason(error))
        return None
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(record) as file:
            file.write(json.dumps({"run_id": run_id}).encode())
        files.remove_leftovers(record.parent, [record.name])
    except OSError as error:
        raise from_os_error(error, f"writing {record}") from None
    return run_id


def _known_parent(record: Path) -> str | None:
    """Return the run that an earlier start wrote down; None without one, or if the record is damaged."""
    try:
        run_id = foreign_files.read_json(record)["run_id"]
    except FileNotFoundError:
        return None
    except (OSError, UserError, LookupError, TypeError):
        run_id = None
    if not isinstance(run_id, str) or not re.fullmatch(r"[\w-]{1,64}", run_id):
        log.warning("%s is damaged; the runs get a new parent in MLflow", record)
        return None
    return run_id


def _print_table(members: list[Config], codes: list[int]) -> None:
    table = Table("run", "step", "loss", "effective rank", "probe", "exit code")
    for member, code in zip(members, codes, strict=True):
        rows = jsonl.read(member.folder / "metrics.jsonl")
        last = rows[-1] if rows else {}
        shown = [last.get(key) for key in ("loss", "effective_rank", "probe_balanced_accuracy")]
        cells = ["" if value is None else f"{value:.4g}" for value in shown]
        table.add_row(member.name, str(last.get("step", "")), *cells, str(code))
    Console().print(table)
