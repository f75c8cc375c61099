"""What cannot be measured or drawn costs nothing else: results.json is whole, and the page says why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pretrain.models.config import MLPConfig
from pretrain.models.projector import build_mlp
from tests.eval_suite.eval_samples import save_checkpoint

RANDOM = np.random.default_rng(0)
SPLIT = np.array(["train"] * 40 + ["val"] * 20 + ["test"] * 20)
CLOUD = RANDOM.normal(size=(80, 12))
CLASS = RANDOM.integers(2, size=80)
METRICS = ["--metrics", "probe,knn,few_shot,retrieval,rank,shape,graph,homology", "--draws", "2"]


def evaluated(command: Callable, folder: Path, **arrays: Any) -> tuple[dict[str, Any], str, str]:
    """Evaluate a file of features; return its results, its page, and what the terminal shows."""
    np.savez(folder / "x.npz", **arrays)
    outcome = command(folder / "x.npz", "--out", folder / "out", *METRICS)
    assert outcome.code == 0, outcome.err
    results = json.loads((folder / "out/results.json").read_text())
    return results, (folder / "out/report.html").read_text(), outcome.out


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_collapsed_encoder_gets_its_report(tmp_path: Path, command: Callable, kind: type):
    noise = 1 + np.finfo(kind).eps * RANDOM.uniform(-1, 1, (80, 12))
    x = (1000 * CLOUD[:1] * noise).astype(kind)
    results, page, shown = evaluated(command, tmp_path, features=x, labels=CLASS, split=SPLIT)
    assert results["representations"]["pretrained"]["collapsed"] is True
    assert results["representations"]["pretrained"]["probe"]["balanced_accuracy"] == pytest.approx(0.5)
    for text in (page, shown):
        assert "Collapsed: every train image has the same vector" in text.replace("\n", " ")
    assert page.count("Not drawn: t-SNE") == page.count("Not drawn: PCA") == 1


@pytest.mark.parametrize(
    "arrays",
    [
        {"features": CLOUD[:, :1], "labels": CLASS, "split": SPLIT},
        {"features": np.ones((80, 1)), "labels": CLASS, "split": SPLIT},
        {"features": CLOUD[:1]},
        {"features": CLOUD[:2], "labels": np.array([0, 1]), "split": np.array(["train", "val"])},
        {"features": CLOUD[[0, 1] * 40], "labels": CLASS, "split": SPLIT},
        {"features": CLOUD, "labels": np.full(80, "one"), "split": SPLIT},
        {"features": CLOUD, "labels": np.full(80, ""), "split": SPLIT},
        {"features": 1e15 * CLOUD, "labels": CLASS, "split": SPLIT},
        {"features": 1e-15 * CLOUD, "labels": CLASS, "split": SPLIT},
    ],
    ids=[
        "one-feature",
        "one-constant",
        "one-image",
        "two-images",
        "two-points",
        "one-class",
        "no-labels",
        "large",
        "small",
    ],
)
def test_little_data_has_results_and_a_page(
    tmp_path: Path, command: Callable, arrays: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    results, page, _ = evaluated(command, tmp_path, **arrays)
    said = "nearly collapsed: pretrained: the vectors lie nearly on a line" in caplog.text
    is_line = len(arrays["features"]) > 2 and len(np.unique(arrays["features"], axis=0)) == 2
    assert said == is_line == bool(results["representations"]["pretrained"]["nearly_collapsed"])
    assert results["geometry"]["embedding"]["samples"] == np.sum(arrays.get("split", SPLIT[:1]) == "train")
    assert "rank" in results["representations"]["pretrained"] and "Sources and settings" in page
    for reason in [*results["geometry"]["embedding"]["left_out"].values()]:
        assert "Error" not in reason


def test_a_collapsed_checkpoint_is_compared_with_others(tmp_path: Path, data, command: Callable):
    sound, collapsed = (save_checkpoint(tmp_path / name) for name in ("sound", "collapsed"))
    weights = load_file(collapsed / "encoder.safetensors")
    weights["norm.weight"] *= 0
    save_file(weights, collapsed / "encoder.safetensors")
    options = ["--metrics", "knn,rank", "--initialisations", "1", "--out", tmp_path / "out"]
    outcome = command(sound, collapsed, *data, *options)
    assert outcome.code == 0, outcome.err
    found = {
        name: json.loads((tmp_path / f"out/{name}-7/results.json").read_text())["representations"]
        for name in ("sound", "collapsed")
    }
    assert found["collapsed"]["pretrained"]["collapsed"] and not found["collapsed"]["untrained"]["collapsed"]
    assert not found["sound"]["pretrained"]["collapsed"]
    assert found["collapsed"]["pixels"] == found["sound"]["pixels"]
    assert ">collapsed<" in (tmp_path / "out/comparison.html").read_text()


def test_pictures_that_cannot_be_made_are_named_on_the_page(
    tmp_path: Path, splits: dict[str, Path], command: Callable
):
    checkpoint = save_checkpoint(tmp_path / "export")
    for name in ("train", "val"):
        shutil.copytree(splits[name], tmp_path / name)
    options = ["--train", tmp_path / "train", "--val", tmp_path / "val", "--baselines", ""]
    assert command(checkpoint, *options, "--metrics", "rank").code == 0
    for shard in (tmp_path / "train").glob("**/*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b"IHDR", b"XXXX").replace(b"\xff\xd8\xff", b"XXX"))
    # The features are cached; only thumbnails need the images.
    outcome = command(checkpoint, *options, "--metrics", "rank,knn")
    assert outcome.code == 0, outcome.err
    assert (
        "knn" in json.loads((checkpoint / "eval/7/results.json").read_text())["representations"]["pretrained"]
    )
    page = (checkpoint / "eval/7/report.html").read_text()
    assert "Not drawn: nearest neighbours: " in page and page.count("<svg") > 4


def test_a_page_that_cannot_be_written_leaves_the_results(tmp_path: Path, command: Callable):
    np.savez(tmp_path / "x.npz", features=CLOUD, labels=CLASS, split=SPLIT)
    (tmp_path / "out/report.html").mkdir(parents=True)
    outcome = command(tmp_path / "x.npz", "--out", tmp_path / "out", "--metrics", "knn,rank")
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert "knn" in json.loads((tmp_path / "out/results.json").read_text())["representations"]["pretrained"]


def test_a_feature_set_that_the_checkpoint_lacks_is_named(tmp_path: Path, data, command: Callable):
    checkpoint = save_checkpoint(tmp_path / "export")
    quick = ["--metrics", "rank", "--baselines", "", "--features", "projector,angles", "--json"]
    results = json.loads(command(checkpoint, *data, *quick).out)
    assert {entry["metric"] for entry in results["left_out"]} == {
        "feature set projector",
        "feature set angles",
    }


def test_features_that_are_not_finite_are_counted_in_one_line(tmp_path: Path, data, command: Callable):
    checkpoint = save_checkpoint(tmp_path / "export")
    weights = load_file(checkpoint / "encoder.safetensors")
    weights["norm.weight"][0] = float("nan")
    save_file(weights, checkpoint / "encoder.safetensors")
    outcome = command(checkpoint, *data, "--metrics", "rank", "--initialisations", "1")
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert "44 of 44 images" in line and "NaN or infinite features (embedding)" in line


def test_a_projector_that_is_not_finite_costs_only_itself(tmp_path: Path, data, command: Callable):
    described = {"hidden": 16, "layers": 2, "width": 4, "angles": None}
    folder = save_checkpoint(tmp_path / "head", projector=described)
    weights = build_mlp(24, MLPConfig(hidden=16, layers=2), 4, seed=3).state_dict()
    weights = {name: w * float("nan") if w.is_floating_point() else w for name, w in weights.items()}
    save_file(weights, folder / "projector.safetensors")
    outcome = command(folder, *data, "--metrics", "rank", "--baselines", "", "--json")
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    assert list(results["representations"]) == ["pretrained"]
    (entry,) = results["left_out"]
    assert entry["metric"] == "feature set projector" and entry["reason"].startswith(
        "84 of 84 images give NaN"
    )
    outcome = command(folder, *data, "--metrics", "rank", "--baselines", "", "--features", "projector")
    assert outcome.code == 2 and "(projector)" in outcome.err
