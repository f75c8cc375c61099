"""Evaluations of one call decode each image once, and share what is equal for several checkpoints."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.dataset.index import Dataset
from eval_suite.features import compared
from eval_suite.inputs import find
from eval_suite.inputs.splits import Splits, open_splits
from tests.eval_suite.eval_samples import save_checkpoint

QUICK = ["--metrics", "rank", "--every", "1", "--json"]


def several(folder: Path, count: int) -> list[Path]:
    """Save checkpoints of one run that differ in their weights."""
    saved = []
    for step in range(1, count + 1):
        place = save_checkpoint(folder / "run" / "checkpoints" / f"step_{step:08d}", step=step)
        weights = load_file(place / "encoder.safetensors")
        weights["norm.weight"][:8] *= step
        save_file(weights, place / "encoder.safetensors")
        saved.append(place)
    return saved


def test_each_image_is_decoded_once_for_several_checkpoints(
    tmp_path: Path, data, command: Callable, monkeypatch: pytest.MonkeyPatch
):
    decoded: Counter[tuple[str, int]] = Counter()
    pixels = Dataset.pixels

    def counted(self: Dataset, i: int, *how: int) -> np.ndarray:
        decoded[str(self.path), i] += 1
        return pixels(self, i, *how)

    monkeypatch.setattr(Dataset, "pixels", counted)
    several(tmp_path, 2)
    options = [*data, *QUICK, "--baselines", "untrained,pixels", "--initialisations", "2"]
    outcome = command(tmp_path / "run", *options)
    assert outcome.code == 0, outcome.err
    found = [each["representations"] for each in json.loads(outcome.out)]
    # The report shows some of the images again.
    assert len(decoded) == 84 and Counter(decoded.values())[1] > 42
    assert found[0] | {"pretrained": found[1]["pretrained"]} == found[1]
    ranks = [each["pretrained"]["rank"]["effective_rank"] for each in found]
    assert ranks[0] != pytest.approx(ranks[1], rel=1e-3)
    # One file a split for each of two encoders, two initialisations and the pixels.
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "run/eval/cache").glob("*.npz")}
    assert len(written) == 3 * (2 + 2 + 1)
    # Another question about the same checkpoints embeds nothing.
    assert command(tmp_path / "run", *options, "--seed", "1").code == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run/eval/cache").glob("*.npz")} == written


def test_a_damaged_checkpoint_costs_itself_alone(tmp_path: Path, data, command: Callable):
    saved = several(tmp_path, 3)
    (saved[1] / "encoder.safetensors").write_bytes(b"{}")
    weights = load_file(saved[2] / "encoder.safetensors")
    weights["norm.weight"][0] = torch.nan
    save_file(weights, saved[2] / "encoder.safetensors")
    outcome = command(tmp_path / "run", *data, *QUICK, "--baselines", "")
    assert outcome.code == 1
    lines = [line for line in outcome.err.splitlines() if line.startswith("failed: ")]
    assert "step 2" in lines[0] and "not a whole safetensors file" in lines[0]
    assert "step 3" in lines[1] and "NaN or infinite features" in lines[1] and len(lines) == 2
    assert (tmp_path / "run/eval/1/results.json").exists()


def test_what_one_pass_embeds_fits_into_memory(
    tmp_path: Path, splits: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    several(tmp_path, 3)
    opened: Splits = open_splits(*(str(splits[name]) for name in ("train", "val", "test")))
    checkpoints = find.find([str(tmp_path / "run")], 1)
    assert [len(chunk) for chunk in compared.chunks(checkpoints, opened)] == [3]
    size = checkpoints[0].weights.stat().st_size + 4 * 7 * 44 * 24
    monkeypatch.setattr(compared, "MEMORY", 2 * size)
    assert [len(chunk) for chunk in compared.chunks(checkpoints, opened)] == [2, 1]
    monkeypatch.setattr(compared, "MEMORY", 1)
    assert [len(chunk) for chunk in compared.chunks(checkpoints, opened)] == [1, 1, 1]


def test_force_computes_the_features_of_several_checkpoints_again(tmp_path: Path, data, command: Callable):
    several(tmp_path, 2)
    options = [*data, *QUICK, "--baselines", ""]
    first = json.loads(command(tmp_path / "run", *options).out)
    for file in (tmp_path / "run/eval/cache").glob("*.npz"):
        with np.load(file) as stored:
            zeros = {name: np.zeros_like(stored[name]) for name in stored.files}
        np.savez(file.with_suffix(""), **zeros)
    forced = json.loads(command(tmp_path / "run", *options, "--force").out)
    assert [each["representations"] for each in forced] == [each["representations"] for each in first]


def test_averaged_weights_are_a_row_of_their_own(tmp_path: Path, data, command: Callable):
    (place,) = several(tmp_path, 1)
    weights = load_file(place / "encoder.safetensors")
    weights["norm.weight"][:8] *= 3
    save_file(weights, place / "encoder_average.safetensors")
    options = [*data, *QUICK, "--baselines", "untrained", "--initialisations", "1"]
    outcome = command(tmp_path / "run", *options)
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    assert list(results["representations"]) == ["pretrained", "untrained", "averaged"]
    named = command(place / "encoder_average.safetensors", *options)
    assert named.code == 0, named.err
    alone = json.loads(named.out)
    assert alone["checkpoint"]["name"] == "run-average" and alone["checkpoint"]["run"] is None
    assert (tmp_path / "run/eval/1-average/results.json").is_file()
    last, mean = (results["representations"][name]["rank"] for name in ("pretrained", "averaged"))
    assert alone["representations"]["pretrained"]["rank"] == mean != last
    # New averaged weights are evaluated again.
    weights["norm.weight"][:8] *= 3
    save_file(weights, place / "encoder_average.safetensors")
    again = json.loads(command(tmp_path / "run", *options).out)["representations"]
    assert again["pretrained"]["rank"] == last and again["averaged"]["rank"] != mean
    # Damaged ones, which nobody named, do not stop the evaluation of the run.
    (place / "encoder_average.safetensors").write_bytes(b"\x10" * 40)
    outcome = command(tmp_path / "run", *options)
    assert outcome.code == 0, outcome.err
    assert "encoder_average.safetensors is not a whole" in json.loads(outcome.out)["left_out"][0]["reason"]
