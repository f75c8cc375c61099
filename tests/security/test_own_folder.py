"""A pretrain.py, launch.py or configs/ in the user's folder is neither run nor read instead of ours."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from isotorus import recipe as recipes
from isotorus.processes import find_no_local_modules
from launch.kubernetes.manifests import Pods, job
from launch.over_ssh.remote import node_command

PACKAGES = (
    *("configs", "data_pipeline", "eval_suite", "finetune", "isotorus", "launch", "pretrain"),
    *("torch", "yaml"),
)
CHILD = (
    "import subprocess, sys\n"
    "sys.exit(subprocess.run([sys.executable, '-m', 'data_pipeline', *sys.argv[1:]]).returncode)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in PACKAGES:
        (tmp_path / f"{name}.py").write_text("open('run', 'a').write(__name__)\n")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/lejepa_vits16.yaml").write_text("{name: theirs}")
    return tmp_path


def isotorus(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("isotorus")
    if not command.exists():
        pytest.skip("the project is not installed")
    return subprocess.run([command, *arguments], cwd=folder, capture_output=True, text=True)


def test_the_command_and_what_it_starts_import_the_project(folder: Path, shards: Path):
    done = isotorus(folder, "info", str(shards))
    assert done.returncode == 0 and not (folder / "run").exists(), done.stderr


def test_python_itself_would_run_the_local_file(folder: Path):
    """Otherwise the tests here prove nothing."""
    subprocess.run([sys.executable, "-m", "data_pipeline", "--help"], cwd=folder, capture_output=True)
    assert (folder / "run").exists()


def test_processes_that_are_started_import_installed_modules(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    find_no_local_modules()
    done = subprocess.run([sys.executable, "-c", CHILD, "--help"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "pack" in done.stdout and not (folder / "run").exists(), done.stderr
    assert " -P -m launch.over_ssh.node" in node_command("python3", str(folder))


def test_pods_import_installed_modules():
    pods = Pods(name="a", image="i", nodes=(1, 1), gpus=1, arguments=[], grace=1.0)
    assert job(pods)[-1]["spec"]["template"]["spec"]["containers"][0]["command"][:4] == [
        "python",
        "-P",
        "-m",
        "launch",
    ]


def test_packaged_recipes_are_those_of_the_project(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "configs", raising=False)
    ours = yaml.safe_load((Path(recipes.__file__).parents[1] / "configs/lejepa_vits16.yaml").read_text())
    assert recipes.read_recipe_file("lejepa_vits16") == ours
    assert recipes.read_recipe_file("configs/lejepa_vits16.yaml") == {
        "name": "theirs"
    }  # a file that was named
