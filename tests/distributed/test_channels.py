"""Images that are not photos (16 bit, five channels), from files to an evaluated checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isotorus.errors import UserError
from pretrain.config import load_config
from pretrain.preflight import check
from tests.distributed.runs import ENVIRONMENT, ROOT, losses, train


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 arrays (24, 24, 5) of 12-bit values, in which only the last band depends on the class."""
    folder = tmp_path_factory.mktemp("bands")
    random = np.random.default_rng(0)
    for i in range(48):
        array = random.integers(0, 4096, (24, 24, 5), dtype=np.uint16)
        array[..., 4] //= 1 + 7 * (i % 2)
        (folder / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        np.save(folder / "images" / "ab"[i % 2] / f"{i}.npy", array)
    run(
        "data_pipeline", "pack", folder / "images", folder / "set", "--labels", "folder",
        "--val-fraction", "0.4", "--workers", "1",
    )  # fmt: skip
    return folder / "set"


def run(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_five_channels_of_16_bit_are_packed_trained_on_and_evaluated(
    bands: Path, recipe: Path, tmp_path: Path
):
    facts = json.loads(run("data_pipeline", "info", bands, "--json"))["train"]
    assert (facts["channels"], facts["depth"]) == (5, 16)
    assert facts["mean"][0] == pytest.approx(2047.5 / 65535, rel=0.05)

    done = train(1, recipe, f"data.path={bands}/train", "data.channels=5", "steps=2")
    assert done.returncode == 0, done.stderr
    # Values fill a sixteenth of the scale: cut to 8 bits, or not standardised, all views would look the same.
    assert all(np.isfinite(list(losses(tmp_path / "runs/tiny").values())))

    with pytest.raises(UserError, match=r"use data\.channels=5"):
        check(load_config(str(recipe), [f"data.path={bands}/train", "data.channels=3"]), world_size=1)

    shown = run(
        "eval_suite", tmp_path / "runs/tiny", "--train", bands / "train", "--val", bands / "val",
        "--out", tmp_path / "out", "--json", "--metrics", "probe", "--initialisations", 1,
    )  # fmt: skip
    pixels = json.loads(shown)["representations"]["pixels"]
    assert pixels["probe"]["accuracy"] == 1.0
