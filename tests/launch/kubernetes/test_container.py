"""The script that installs Isotorus in the image, run in an environment of its own; what the image names."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
INSTALL = ROOT / "container/install.sh"


def install(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", INSTALL, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path):
    for arguments, said in (
        ((), "usage: install.sh SOURCE FOLDER"),
        ((tmp_path, tmp_path / "venv"), "has no constraints.txt"),
    ):
        done = install(*arguments)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = install(ROOT, tmp_path / "venv", PYTHON=str(old))
    assert done.returncode == 2 and "older than Python 3.11" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_image_is_made_of_what_is_there():
    text = (ROOT / "container/Dockerfile").read_text()
    assert "/source/container/install.sh" in text and INSTALL.exists()
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
    assert stages == {"cpu", "cuda"} and re.search(r"^ARG DEVICE=cpu$", text, re.MULTILINE)
    guide = (ROOT / "docs/kubernetes.md").read_text()
    for argument in re.findall(r"^ARG (\w+)", text, re.MULTILINE):
        assert argument in guide
    # What is not in the image cannot be needed to build it.
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"container", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"} & set(ignored)


@pytest.mark.nightly
def test_it_installs_a_command_that_works_elsewhere(tmp_path: Path):
    """The new environment also sees the packages of this one, which saves their download."""
    source, venv = tmp_path / "source", tmp_path / "venv"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in tracked.stdout.rstrip("\0").split("\0"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    site = sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)})
    (Path(site) / "shared.pth").write_text(str(distribution("numpy").locate_file("")))
    done = install(source, venv)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"installed: {venv}/bin/isotorus\n")
    where = [venv / "bin/python", "-c", "import isotorus; print(isotorus.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(venv))
    done = subprocess.run([venv / "bin/isotorus", "recipes"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "torus_cpu" in done.stdout
