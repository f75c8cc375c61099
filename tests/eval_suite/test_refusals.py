"""Errors that the user can correct give one line and exit code 2, and change no file."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.eval_suite.eval_samples import CLASSES, pack, save_checkpoint


@pytest.fixture
def refused(command: Callable) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        outcome = command(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        lines = outcome.err.strip().splitlines()
        assert len(lines) == 1, outcome.err
        return lines[0]

    return run


def test_no_such_run(refused, data, tmp_path: Path):
    assert "no such run" in refused(tmp_path / "nowhere", *data)


def test_a_folder_that_is_no_run(refused, data, tmp_path: Path):
    assert "neither a run nor a checkpoint" in refused(tmp_path, *data)


def test_a_run_without_a_complete_checkpoint(refused, data, tmp_path: Path):
    save_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000003", complete=False)
    assert "no complete checkpoint" in refused(tmp_path / "run", *data)
    partial = tmp_path / "run" / "checkpoints" / "step_00000003"
    for given in (partial, partial / "encoder.safetensors"):
        assert "COMPLETE is missing" in refused(given, *data)


def test_a_lost_latest_link_means_the_newest_complete_checkpoint(command, data, tmp_path: Path):
    for step, complete in ((3, True), (5, True), (8, False)):
        folder = tmp_path / "run" / "checkpoints" / f"step_{step:08d}"
        save_checkpoint(folder, step=step, complete=complete)
    outcome = command(tmp_path / "run", *data, "--metrics", "rank", "--baselines", "", "--json")
    assert json.loads(outcome.out)["checkpoint"]["step"] == 5


@pytest.mark.parametrize("option", ["--train", "--val", "--test"])
def test_a_folder_that_is_no_data_set(refused, checkpoint: Path, data, tmp_path: Path, option: str):
    given = [tmp_path if data[i - 1] == option else value for i, value in enumerate(data)]
    assert f"{tmp_path} is not a packed data set" in refused(checkpoint, *given)


def test_encoder_json_missing_or_broken(refused, checkpoint: Path, data):
    described = checkpoint / "encoder.json"
    values = json.loads(described.read_text())
    described.write_text(json.dumps({**values, "image_size": "large"}))
    assert "image_size" in refused(checkpoint, *data)
    described.write_text(json.dumps({**values, "mean": [0.5]}))
    assert "mean and std" in refused(checkpoint, *data)
    described.write_text(json.dumps({**values, "name": "vit_none"}))
    assert "vit_none" in refused(checkpoint, *data)
    described.write_text("{")
    assert "not JSON" in refused(checkpoint, *data)
    described.unlink()
    assert "no encoder.json" in refused(checkpoint, *data)


def test_weights_of_another_architecture_name_the_first_misfit(refused, checkpoint: Path, data):
    file = checkpoint / "encoder.safetensors"
    weights = load_file(file)
    save_file({**weights, "blocks.1.attn.qkv.weight": torch.zeros(96, 32)}, file)
    line = refused(checkpoint, *data)
    assert "another architecture" in line
    assert "blocks.1.attn.qkv.weight is 96×32 in the file, 72×24 in the model" in line
    save_file({k: v for k, v in weights.items() if k != "pos_embed"}, file)
    assert "pos_embed 1×17×24 is not in the file" in refused(checkpoint, *data)
    save_file({**weights, "head.weight": torch.zeros(2)}, file)
    assert "head.weight 2 is not in the model" in refused(checkpoint, *data)


def test_a_cut_weights_file(refused, checkpoint: Path, data):
    file = checkpoint / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    assert "not a whole safetensors file" in refused(checkpoint, *data)


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("save", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_refused_and_not_opened(refused, checkpoint: Path, data, tmp_path: Path, save):
    fired = tmp_path / "fired"
    save(Bomb(fired), checkpoint / "encoder.safetensors")
    assert "pickle" in refused(checkpoint, *data)
    save(Bomb(fired), tmp_path / "model.pth")
    assert "pickle" in refused(tmp_path / "model.pth", *data)
    (tmp_path / "old").mkdir()
    shutil.move(tmp_path / "model.pth", tmp_path / "old" / "model.pth")
    assert "pickle" in refused(tmp_path / "old", *data)
    assert not fired.exists()


def test_splits_with_different_classes(refused, checkpoint: Path, data, tmp_path: Path):
    odd = pack(tmp_path / "odd", ["another", "other"] * 3, seed=3)
    line = refused(checkpoint, *data[:2], "--val", odd)
    assert "different classes" in line
    assert "other" in line


def test_unknown_names_are_answered_with_the_nearest(refused, checkpoint: Path, data):
    assert "did you mean probe?" in refused(checkpoint, *data, "--metrics", "prob,rank")
    assert "did you mean untrained?" in refused(checkpoint, *data, "--baselines", "untrainde")
    assert "--metrics is empty" in refused(checkpoint, *data, "--metrics", "")


@pytest.mark.parametrize(
    "said", ["--metrics prob", "--baselines x", "--features y", "--k 0", "--trian z", "--help"]
)
def test_a_slip_of_the_pen_does_not_wait_for_torch(said: str):
    code = (
        "import sys; from isotorus.errors import exit_code; from eval_suite.__main__ import main\n"
        f"sys.argv = ['eval_suite', 'x', *{said.split()}]\n"
        "try: code = exit_code(main)\n"
        "except SystemExit as end: code = end.code\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (0 if said == "--help" else 2), done.stderr


@pytest.mark.parametrize("k", ["0", "ten", "-1"])
def test_impossible_neighbour_counts(refused, checkpoint: Path, data, k: str):
    assert f"--k {k}" in refused(checkpoint, *data, f"--k={k}")


def test_more_neighbours_than_samples(refused, checkpoint: Path, data):
    line = refused(checkpoint, *data, "--k", "5,41")
    assert "41 neighbours" in line
    assert "40 labelled samples" in line


def test_features_that_are_not_finite(refused, checkpoint: Path, data):
    file = checkpoint / "encoder.safetensors"
    weights = load_file(file)
    weights["norm.bias"][3] = float("nan")
    save_file(weights, file)
    assert "44 of 44 images" in refused(checkpoint, *data)
    assert "44 of 44 images" in refused(checkpoint, *data)  # also with what the first attempt has cached
    for kept in (checkpoint / "eval").rglob("*.npz"):
        with np.load(kept) as features:
            assert all(np.isfinite(features[name]).all() for name in features.files)


def test_a_file_in_the_way_of_the_results(refused, checkpoint: Path, data, tmp_path: Path):
    (tmp_path / "taken").write_text("mine")
    assert "writing results" in refused(checkpoint, *data, "--out", tmp_path / "taken" / "deep")
    assert (tmp_path / "taken").read_text() == "mine"


def test_shards_that_changed_since_they_were_packed(refused, checkpoint: Path, tmp_path: Path):
    shards = pack(tmp_path / "changed", [*CLASSES] * 6, seed=4)
    tar = next(shards.glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[len(content) // 2 - 100 : len(content) // 2] = bytes(100)
    tar.write_bytes(content)
    line = refused(checkpoint, "--train", shards, "--val", shards, "--metrics", "rank")
    assert "changed since the index was made" in line
