"""An evaluation says if images become brightness by another rule than in the encoder's training."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.eval_suite.eval_samples import ONE, pack_folder, save_checkpoint

WINDOW, TWELVE_BITS = "window:-160,240 --nodata=-1000", "window:0,4095"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name data sets of two rules."""
    folder = tmp_path_factory.mktemp("numbers")
    for name in ("train", "val"):
        for i in range(24):
            (folder / f"{name}-images/{i % 2}").mkdir(parents=True, exist_ok=True)
            scan = np.random.default_rng(i).normal(40, 90, (20, 20)).astype(np.int16)
            np.save(folder / f"{name}-images/{i % 2}/{i}.npy", scan)
        rule = WINDOW if name == "train" else TWELVE_BITS
        options = ["--labels", "folder", "--intensity", *rule.split()]
        pack_folder(folder / f"{name}-images", folder / name, *options)
    return ["--train", str(folder / "train"), "--val", str(folder / "val"), "--folds", "0"]


@pytest.mark.parametrize(
    ("trained", "noted"),
    [
        (
            {},
            "--intensity none; train has --intensity window:-160,240 --nodata=-1000, val has --intensity win",
        ),
        ({"intensity": [WINDOW]}, f"--intensity {WINDOW}; val has --intensity {TWELVE_BITS}: pack these"),
        ({"intensity": [WINDOW, TWELVE_BITS]}, ""),
    ],
)
def test_another_rule_than_in_training_is_noted_in_one_line(
    tmp_path: Path,
    sets: list[str],
    command: Callable,
    trained: dict[str, list[str]],
    noted: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **trained)
    outcome = command(checkpoint, *sets, *ONE, "--metrics", "knn")
    assert outcome.code == 0, outcome.err
    notes = [r.getMessage() for r in caplog.records if "was trained on images" in r.getMessage()]
    assert len(notes) == bool(noted) and all(noted in note and "\n" not in note for note in notes)
    results = json.loads(next(tmp_path.rglob("results.json")).read_text())
    assert "intensity" not in results["inputs"]["encoder"]  # old features stay valid
