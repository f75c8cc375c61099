"""Images that are not photos (16 bit, five channels, sets with different channels), from files to scores."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isotorus.errors import UserError
from pretrain.config import load_config
from pretrain.preflight.check import check
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
) -> None:
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


def pack_named(folder: Path) -> dict[str, Path]:
    """Pack two sets, of three and of five named channels, two of which are in both; return their folders."""
    named = {"three": ["dapi", "gfp", "rfp"], "five": ["er", "dapi", "mito", "rfp", "golgi"]}
    random = np.random.default_rng(0)
    for name, channels in named.items():
        for i in range(40):
            array = random.integers(0, 256, (24, 24, len(channels)), dtype=np.uint8)
            array[..., channels.index("rfp")] //= 1 + 7 * (i % 2)  # the class
            (images := folder / name / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            np.save(images / f"{i}.npy", array)
        run(
            "data_pipeline", "pack", folder / name, folder / "sets" / name, "--labels", "folder",
            "--val-fraction", "0.4", "--workers", "1", "--channel-names", ",".join(channels),
        )  # fmt: skip
    return {name: folder / "sets" / name for name in named}


def union(sets: dict[str, Path]) -> list[str]:
    """Return the options that train on the sets together."""
    sources = ", ".join(f"{{path: {path}/train}}" for path in sets.values())
    return ["data.path=null", f"data.sources=[{sources}]", "data.channels=union"]


@pytest.mark.nightly
def test_sets_with_different_channels_train_alike_under_every_engine(recipe: Path, tmp_path: Path) -> None:
    mixed = union(pack_named(tmp_path))
    engines = {"ddp": [], "fsdp": ["engine.kind=fsdp"]}
    engines |= {f"zero{stage}": ["engine.kind=deepspeed", f"engine.zero_stage={stage}"] for stage in (2, 3)}
    for name, options in engines.items():
        done = train(2, recipe, *mixed, *options, f"name={name}", "steps=4")
        assert done.returncode == 0, done.stderr
        expected = losses(tmp_path / "runs/ddp")
        assert losses(tmp_path / "runs" / name) == pytest.approx(expected, rel=1e-4), name


@pytest.mark.nightly
def test_sets_of_three_and_five_channels_train_together(recipe: Path, tmp_path: Path) -> None:
    sets = pack_named(tmp_path)
    mixed = [*union(sets), "average.momentum=0.5", "augment.channel_drop_probability=0.5"]
    mixed += [f"held_out.path={sets['three']}/val", "held_out.every=2"]
    done = train(2, recipe, *mixed, "steps=4")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/tiny"
    whole = losses(folder)
    assert np.isfinite(list(whole.values())).all()
    described = json.loads((folder / "checkpoints/latest/encoder.json").read_text())
    assert described["channel_names"] == ["dapi", "er", "gfp", "golgi", "mito", "rfp"]
    assert described["kwargs"]["in_chans"] == described["channels"] == 6

    # One process, which continues from the second step, logs the same losses.
    again = ["name=again", "checkpoint.every=2", "steps=4"]
    assert train(1, recipe, *mixed, *again).returncode == 0
    shutil.rmtree(tmp_path / "runs/again/checkpoints/step_00000004")
    (tmp_path / "runs/again/checkpoints/latest").unlink()
    done = train(1, recipe, *mixed, *again)
    assert "continuing" in done.stderr and done.returncode == 0, done.stderr
    assert losses(tmp_path / "runs/again") == pytest.approx(whole, rel=1e-4)

    # On the set that lacks channels, the run and an export for the channels of this set have the same score.
    exported = tmp_path / "exported"
    run("pretrain", "export", folder, "--out", exported, "--channels", "dapi,gfp,rfp")
    found = []
    for encoder in (folder, exported):
        shown = run(
            "eval_suite", encoder, "--train", sets["three"] / "train", "--val", sets["three"] / "val",
            "--out", tmp_path / f"of-{encoder.name}", "--json", "--metrics", "probe,knn",
        )  # fmt: skip
        found.append(json.loads(shown)["representations"])
    assert found[0]["pixels"]["probe"]["accuracy"] == 1.0
    scores = [each["pretrained"]["knn"]["accuracy"] for each in found]
    assert scores[0] == scores[1]
