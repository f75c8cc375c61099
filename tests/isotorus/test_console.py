"""The console command `isotorus`: its help, a wrong command, commands that run, and what they wait for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval_suite.__main__ import SUBCOMMANDS
from isotorus.console import COMMANDS
from isotorus.errors import NO_READER
from tests.console import isotorus

SETS = Path(__file__).parents[1] / "formats/sets"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command(arguments: list[str]):
    shown = isotorus(*arguments)
    assert shown.returncode == 0 and shown.stdout.startswith("usage: isotorus COMMAND")
    for name, (same, _) in COMMANDS.items():
        assert any(
            line.split()[:1] == [name] and line.endswith(f"python -m {same}")
            for line in shown.stdout.splitlines()
        )


def test_an_unknown_command_is_one_line():
    shown = isotorus("fly")
    assert shown.returncode == 2 and shown.stdout == ""
    assert shown.stderr.startswith("error: no command 'fly'; one of pack, ") and shown.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "option"),
    [("info", "--json"), ("sweep", "--launcher"), ("launch", "doctor"), ("train", "optimizer.warmup_steps")],
)
def test_a_command_shows_its_own_help(command: str, option: str):
    shown = isotorus(command, "--help")
    assert shown.returncode == 0 and option in shown.stdout, shown.stderr


def test_the_readme_names_every_command():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert [name for name in COMMANDS if f"isotorus {name}" not in readme] == []


WITHOUT_TORCH = [
    *(f"{command} --help" for command in COMMANDS),
    *(f"eval {command} --help" for command in SUBCOMMANDS),
    *(f"launch {kind} --help" for kind in ("torchrun", "deepspeed", "slurm", "kubernetes", "doctor")),
    "info DATA",
    "sweep --dry-run --config quickstart data.path=DATA seed=0,1",
    "launch kubernetes --name a --image b --nodes 1 --pvc c:/mnt -- --config quickstart data.path=/mnt/a "
    "runs=/mnt/runs",
]
"""Commands that end with exit code 0."""
REFUSED_WITHOUT_TORCH = [
    *(f"{command} --no-such-option" for command in COMMANDS),
    *(f"eval {command} --no-such-option" for command in SUBCOMMANDS),
    "eval winding RUN --data DATA --out OUT --steps 7",
    "eval winding RUN --data DATA --out OUT --paths roatation",
    "eval winding RUN --out OUT",
    "eval codes RUN --data DATA --out OUT --levels 8,x",
    "train --config no_such_recipe",
    "train --config quickstart encoder.nmae=x",
    "train --config quickstart objective.weight=2",
    "sweep --config quickstart optimizer.lr=0,1e-3",
    "plan --config quickstart encoder.nmae=x",
    "plan --config quickstart --gpu abacus",
    "launch kubernetes --name a --image b --nodes 1 -- --config quickstart encoder.nmae=x",
    "launch slurm --dry-run --nodes 1 --gpus-per-node 1 -- --config quickstart encoder.nmae=x",
]
"""Mistakes, each refused with exit code 2."""


def test_help_and_mistakes_do_not_wait_for_torch():
    """All commands run in one process, in which what one of them imports would stay."""
    code = f"""
import sys
from isotorus.console import main
for line, expected in {[(x, 0) for x in WITHOUT_TORCH] + [(x, 2) for x in REFUSED_WITHOUT_TORCH]!r}:
    sys.argv = ["isotorus", *line.replace("DATA", {str(next(SETS.rglob("dataset.json")).parent)!r}).split()]
    try:
        ended = main()
    except SystemExit as end:
        ended = end.code or 0
    slow = {{"torch", "timm", "torchvision", "mlflow", "sklearn", "numba", "matplotlib"}} & set(sys.modules)
    assert ended == expected and not slow, (line, ended, slow)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_gets_no_traceback(unbuffered):
    """`isotorus recipes | head -1` closes the pipe while the command prints, or before it flushes."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", "from isotorus.console import main; main()", "recipes"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (NO_READER, "")
