"""Checkpoints and features that an earlier version wrote give the embeddings and results of that time."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.runs import ENVIRONMENT, ROOT
from tests.formats.contains import assert_contains

HERE = Path(__file__).parent
DATA = [
    "--train",
    HERE / "sets/cells/train",
    "--val",
    HERE / "sets/cells/val",
    "--baselines",
    "",
    "--folds",
    "0",
    "--workers",
    "0",
]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with copies of the runs and of the features, evaluated; one run kept its old results."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(HERE / "runs", folder / "runs", symlinks=True)
    shutil.rmtree(folder / "runs/torus/eval")
    shutil.copy(HERE / "features.npz", folder)
    names = ["runs/lejepa", "runs/torus", "features.npz"]
    command = [sys.executable, "-m", "eval_suite", *names, *DATA, "--metrics", "knn,rank"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def results(folder: Path, name: str) -> dict[str, Any]:
    place = {"features": "eval/features"}.get(name, f"runs/{name}/eval/6")
    return json.loads((folder / place / "results.json").read_text())


@pytest.mark.parametrize("name", ["lejepa", "torus"])
def test_a_checkpoint_gives_the_embedding_that_it_gave(evaluated: Path, name: str):
    weights = results(evaluated, name)["checkpoint"]["weights_sha256"]
    assert weights == results(HERE, name)["checkpoint"]["weights_sha256"]
    found = []
    for file in (evaluated / "runs/eval/cache").glob("*.npz"):
        with np.load(file) as stored:
            found.append(stored["embedding"])
    for part in ("train", "val"):
        written = np.load(HERE / f"whole/{name}-{part}.npy")
        same = [x for x in found if x.shape == written.shape and np.abs(x - written).max() <= 1e-5]
        assert len(same) == 1


@pytest.mark.parametrize("name", ["lejepa", "torus", "features"])
def test_results_have_the_keys_and_values_that_they_had(evaluated: Path, name: str):
    """Only the format, the record of what the results depend on, resampled intervals and paths may differ."""
    written, found = results(HERE, name), results(evaluated, name)
    assert_contains(
        found,
        written,
        but=("format", "inputs", "folder", "run", "path", "weights_sha256", "interval", "differences"),
    )
