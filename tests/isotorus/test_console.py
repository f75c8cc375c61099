"""The console command `isotorus`: its help, a wrong command, and commands that run."""

import subprocess
import sys
from pathlib import Path

import pytest

from isotorus.console import COMMANDS


def isotorus(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from isotorus.console import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


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
    ("command", "option"), [("info", "--json"), ("sweep", "--launcher"), ("launch", "doctor")]
)
def test_a_command_shows_its_own_help(command: str, option: str):
    shown = isotorus(command, "--help")
    assert shown.returncode == 0 and option in shown.stdout, shown.stderr


def test_the_readme_names_every_command():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert [name for name in COMMANDS if f"isotorus {name}" not in readme] == []
