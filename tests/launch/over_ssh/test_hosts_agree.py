"""Hosts whose code or packaged recipes differ are told apart."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.over_ssh.hosts_agree import PACKAGES

ROOT = Path(__file__).parents[3]
DIGEST = "from launch.over_ssh.hosts_agree import code_digest; print(code_digest())"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages."""
    copy = tmp_path_factory.mktemp("installed")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def digest(installed: Path) -> str:
    command = [sys.executable, "-c", DIGEST]
    return subprocess.run(command, cwd=installed, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "file",
    ["configs/lejepa_vits16.yaml", "data_pipeline/loader.py", "isotorus/files.py", "pretrain/train.py"],
)
def test_a_changed_file_changes_the_digest(installed: Path, file: str):
    before = digest(installed)
    with (installed / file).open("a") as text:
        text.write("# changed\n")
    assert digest(installed) != before
