"""What a user or a recipe writes reaches sbatch, Kubernetes and ssh as text and never as a command."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from isotorus.errors import UserError, exit_code
from launch import __main__ as launcher
from launch.over_ssh.hosts import read_hosts
from launch.over_ssh.remote import new_mark, read_report

SLURM = ["slurm", "--ranks-per-node", "1", "--dry-run"]
Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path) -> Here:
    """Run `launch` in this process: exit code, stdout and stderr."""

    def run(*arguments: str, pretrain: tuple[str, ...] = ()) -> tuple[int, str, str]:
        command = ["launch", *arguments, "--", "--config", str(recipe), *pretrain]
        monkeypatch.setattr(sys, "argv", command)
        code = exit_code(launcher.main)
        return (code, *capsys.readouterr())

    return run


def run_script(text: str, folder: Path) -> None:
    """Run a batch script with the programs of Slurm replaced by ones that do nothing."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("srun", "scontrol", "sleep"):
        (programs / name).write_text("#!/bin/sh\nexit 0\n")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
    subprocess.run(["bash"], input=text, text=True, cwd=folder, env=environment, capture_output=True)


@pytest.mark.parametrize(
    "option",
    ["--partition", "--account", "--qos", "--constraint", "--memory", "--name", "--output", "--reservation"],
)
def test_a_line_break_in_an_option_of_slurm_is_refused(launch: Here, option: str):
    code, out, err = launch(*SLURM, option, "x\ntouch pwned #")
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_a_line_break_in_the_recipes_folder_is_refused(launch: Here):
    code, out, err = launch(*SLURM, pretrain=("runs='a\n\n  touch pwned #'",))
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_what_a_script_takes_is_quoted(launch: Here, tmp_path: Path):
    hostile = "a'; touch pwned; $(touch pwned) `touch pwned` \"; touch pwned #"
    options = (
        "--partition",
        hostile,
        "--constraint",
        hostile,
        "--container-image",
        hostile,
        "--modules",
        hostile,
    )
    pretrain = (
        f"tracking.experiment={yaml.safe_dump(hostile, width=1000).strip()}",
        f"runs={tmp_path}/$(touch pwned)",
    )
    code, out, err = launch(*SLURM, *options, pretrain=pretrain)
    assert code == 0, err
    run_script(out, tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--container-image", "docker://me:c4n4ry@registry#image"),
        ("--container-image", "me:c4n4ry@registry#image"),
        ("--container-mounts", "https://me:c4n4ry@host:/x"),
        ("--constraint", "https://me:c4n4ry@host"),
        ("--setup", "export T=https://me:c4n4ry@host"),
        ("--setup", "export HF_TOKEN=c4n4ry"),
        ("--api-token", "c4n4ry"),
        ("--output", "s3://me:c4n4ry@bucket"),
    ],
)
def test_a_password_does_not_get_into_a_script(launch: Here, options: tuple[str, str]):
    code, out, err = launch(*SLURM, *options)
    assert code == 2 and "c4n4ry" not in out + err and len(err.splitlines()) == 1


def expand(text: str, variables: dict[str, str]) -> str:
    """Return what Kubernetes makes of a command or a value (third_party/forked/golang/expansion)."""
    made, at = "", 0
    while at < len(text):
        sign, following = text[at], text[at + 1 : at + 2]
        end = text.find(")", at)
        if sign == "$" and following == "$":
            made, at = f"{made}$", at + 2
        elif sign == "$" and following == "(" and end > 0:
            made, at = made + variables.get(text[at + 2 : end], text[at : end + 1]), end + 1
        else:
            made, at = made + sign, at + 1
    return made


def test_dollars_reach_the_pod_as_they_were_typed(launch: Here, tmp_path: Path):
    typed = "cost$$5 $(HOME) $$(TOKEN) $$$(TOKEN) $5 $"
    options = ("kubernetes", "--name", "a", "--image", "i", "--gpus-per-node", "0", "--pvc", f"c:{tmp_path}")
    code, out, err = launch(*options, "--env", f"PLAIN={typed}", pretrain=(f"tracking.experiment='{typed}'",))
    assert code == 0, err
    container = list(yaml.safe_load_all(out))[-1]["spec"]["template"]["spec"]["containers"][0]
    known = {"HOME": "/root", "TOKEN": "t0ken"}
    assert expand(container["command"][-1], known) == f"tracking.experiment='{typed}'"
    assert expand(container["env"][0]["value"], known) == typed


def test_a_password_in_an_image_or_a_comment_does_not_get_into_a_manifest(launch: Here, recipe: Path):
    options = ("kubernetes", "--name", "a", "--gpus-per-node", "0", "--pvc", f"c:{recipe.parent}", "--image")
    code, out, err = launch(*options, "me:c4n4ry@registry.org/image")
    assert code == 2 and "c4n4ry" not in out + err
    recipe.write_text(recipe.read_text() + "# s3://me:c4n4ry@bucket\n")
    code, out, err = launch(*options, "registry.org/image")
    assert code == 2 and "c4n4ry" not in out + err


@pytest.mark.parametrize(
    "line",
    [
        f"a slots={'9' * 5000}",
        "a slots=²",
        "a\0b slots=1",
        "../a slots=1",
        "-oProxyCommand=touch slots=1",
        "a;touch slots=1",
        "\x1b[2J slots=1",
        f"{'a' * 300} slots=1",
    ],
)
def test_a_hostile_host_is_one_line(line: str, tmp_path: Path):
    (tmp_path / "hosts").write_text(f"{line}\n")
    with pytest.raises(UserError, match="line 1") as error:
        read_hosts(str(tmp_path / "hosts"))
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


def test_output_of_a_rank_is_no_report():
    mark = new_mark()
    assert read_report(f'isotorus report {mark}: {{"code": 0}}\n', mark) == {"code": 0}
    for line in (
        "isotorus report: not JSON",
        'isotorus report 0: {"code": 0}',
        f"isotorus report {new_mark()}: x",
    ):
        assert read_report(f"{line}\n", mark) is None
