"""A wheel carries what a user needs: recipes, the report's template, the console command."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel_works_outside_the_repository(tmp_path: Path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    # A copy: setuptools leaves a build folder, whose old files would get into later wheels.
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in tracked.stdout.rstrip("\0").split("\0"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name, follow_symlinks=False)
    source = tmp_path / "source"
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("isotorus-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, capture_output=True)

    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, site / "bin/isotorus"]
    here = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    helped = subprocess.run([*command, "--help"], **here)
    assert helped.returncode == 0 and "isotorus COMMAND" in helped.stdout
    # Recipes are found: the data that they name is what is missing.
    trained = subprocess.run([*command, "train", "--config", "configs/quickstart.yaml"], **here)
    assert trained.returncode == 2
    assert trained.stderr.startswith("error: data/solar-cells/train is not a packed data set")
    where = "import pretrain, eval_suite.report as r; print(pretrain.__file__); print(r.__file__)"
    found = subprocess.run([sys.executable, "-c", where], **here).stdout.split()
    assert all(str(site) in path for path in found)
    assert (site / "eval_suite/report/pages/report.html.j2").is_file()
    assert (site / "data_pipeline/preview/page.html.j2").is_file()
