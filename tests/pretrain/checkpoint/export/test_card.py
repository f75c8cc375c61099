"""The model card beside an export: its facts are the run's, its code runs, strangers' texts stay texts."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from isotorus import jsonl
from pretrain.checkpoint.export.command import main
from pretrain.checkpoint.export.export import export
from tests.pretrain.checkpoint.export.checkpoints import SMALL, save_checkpoint

RUNS = Path(__file__).parents[3] / "formats/runs"


def card_of(folder: Path, *options: str) -> str:
    assert main([str(folder), "--out", str(folder.parent / "out"), *options]) == 0
    text = (folder.parent / "out/README.md").read_text()
    shutil.rmtree(folder.parent / "out")
    return text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that an earlier version has trained and evaluated, without checksums of what tests change."""
    folder = Path(shutil.copytree(RUNS / "torus", tmp_path / "torus", symlinks=True))
    (folder / "checkpoints/latest/COMPLETE").unlink()
    return folder


def test_its_facts_are_those_of_the_run(run: Path):
    results = json.loads((run / "eval/6/results.json").read_text())
    text = card_of(run, "--data-license", "CC-BY-4.0")
    description = json.loads((run / "checkpoints/latest/encoder.json").read_text())
    row = [x for x in jsonl.read(run / "metrics.jsonl") if x["step"] <= description["step"]][-1]
    assert f"| data | fingerprint `{description['data_fingerprint']}` |" in text
    assert f"| images | {round(row['samples'] / row['epoch'])} |" in text
    assert "| licence of the data | CC-BY-4.0 |" in text
    assert f"{row['step']} steps, {row['samples']} images" in text and "of training steps" in text
    size = description["image_size"]
    assert f"| size | {size} × {size} pixels" in text
    assert all(f"{x:.6g}" in text for x in description["mean"] + description["std"])
    knn = results["representations"]["pretrained"]["knn"]
    low, high = knn["auroc_interval"]
    assert f"| k-NN, AUROC | {knn['auroc']:.3f} ({low:.3f} to {high:.3f}) | not compared |" in text
    rank = results["geometry"]["angles"]["rank"]["effective_rank"]
    assert f"- Torus head's angles: the effective rank is {rank:.1f}." in text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert recipe["objective"]["kind"] == "torus" and "data" not in recipe and "tracking" not in recipe


def test_it_says_by_which_rule_numbers_became_brightness(run: Path):
    assert "brightness of numbers" not in card_of(run)
    file = run / "checkpoints/latest/encoder.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intensity": ["window:-160,240 --fill=0.5"]}))
    assert "| brightness of numbers | `window:-160,240 --fill=0.5`, as after `--intensity`" in card_of(run)


def test_the_hub_reads_its_front_matter(run: Path):
    data = ModelCard(card_of(run)).data
    assert data.library_name == "timm" and data.pipeline_tag == "image-feature-extraction"
    assert "isotorus" in data.tags and data.license is None  # that of the weights is not known


def test_baselines_and_certificate(run: Path):
    file = run / "eval/6/results.json"
    results = json.loads(file.read_text())
    results["representations"]["pixels"] = {"knn": {"auroc": 0.125}}
    results["representations"]["untrained-2"] = {"knn": {"auroc": 0.25}}
    results["representations"]["projector"] = {"knn": {"auroc": 0.75}}  # part of the model, no baseline
    results["geometry"]["angles"]["verdict"] = {"name": "flat 2-torus"}
    file.write_text(json.dumps(results))
    weights = results["checkpoint"]["weights_sha256"]
    certificate = {
        "inputs": {"weights_sha256": weights},
        "headline": "A torus that is there",
        "windings": {"right_share_interval": [0.95, 0.99]},
    }
    (run / "eval/6/certificate.json").write_text(json.dumps(certificate))
    text = card_of(run)
    assert "| 0.250 (`untrained-2`) |" in text and "the verdict is `flat 2-torus`" in text
    assert "`A torus that is there`; windings are right for 95.0 % to 99.0 % of the images" in text
    assert "no certificate" not in text
    (run / "eval/6/certificate.json").write_text(json.dumps(certificate | {"inputs": {}}))
    assert "A torus that is there" not in card_of(run)


def test_what_is_not_known_is_said(run: Path):
    file = run / "eval/6/results.json"
    results = json.loads(file.read_text())
    results["checkpoint"]["weights_sha256"] = "of other weights"
    file.write_text(json.dumps(results))
    (run / "metrics.jsonl").unlink()
    text = card_of(run)
    assert "Not evaluated: the run's folder has no evaluation of these weights." in text
    assert "Any task: these weights were not evaluated." in text
    assert "| images | not recorded |" in text and "| cost | not recorded |" in text
    assert "| licence of the data | not stated |" in text


def test_averaged_weights_have_a_card_of_their_own(run: Path):
    weights = run / "checkpoints/latest/encoder.safetensors"
    averaged = weights.with_name("encoder_average.safetensors")
    averaged.write_bytes(weights.read_bytes())
    (run / "eval/6").rename(run / "eval/6-average")
    assert main([str(averaged), "--out", str(run.parent / "out")]) == 0
    text = (run.parent / "out/README.md").read_text()
    assert "These are the averaged weights of step 6" in text and "eval/6-average/results.json" in text


@pytest.mark.parametrize(
    "samples", ["1e400", "NaN", "1" + "0" * 400, '"x"', "1e-320", "-1", "true"], ids=lambda x: x[:6]
)
def test_numbers_that_no_run_has(run: Path, samples: str):
    row = f'{{"step": 1, "samples": {samples}, "epoch": {samples}, "images_per_second": {samples}}}'
    (run / "metrics.jsonl").write_text(row + "\n")
    file = run / "eval/6/results.json"
    file.write_text(re.sub(r'("auroc": )[\d.]+', rf"\g<1>{samples}", file.read_text()))
    assert "## Training" in card_of(run)


@pytest.mark.parametrize(
    "damage", ["[]", "{", '{"checkpoint": 1}', '{"checkpoint": {"weights_sha256": "WEIGHTS"}}'], ids=len
)
def test_damaged_results_do_not_stop_an_export(run: Path, damage: str):
    file = run / "eval/6/results.json"
    weights = json.loads(file.read_text())["checkpoint"]["weights_sha256"]
    file.write_text(damage.replace("WEIGHTS", weights))
    assert "## Scores" in card_of(run)


def test_texts_of_a_stranger_stay_texts(run: Path):
    evil = "`</code>\n\n# x <script>alert(1)</script> | [a](http://x) ``` "
    file = run / "eval/6/results.json"
    results = json.loads(file.read_text())
    results["reported_on"] = evil
    results["geometry"]["angles"]["verdict"] = {"name": evil}
    results["representations"]["pixels" + evil] = {"knn": {"auroc": 0.125}}
    file.write_text(json.dumps(results))
    description = run / "checkpoints/latest/encoder.json"
    values = json.loads(description.read_text())
    values["data_fingerprint"] = evil
    values["config"]["objective"]["kind"] = evil
    description.write_text(json.dumps(values))
    text = card_of(run)
    outside_of_code = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert "<script" not in outside_of_code and "http" not in outside_of_code
    assert text.count("```") == 4 and "\n# x" not in text


@pytest.mark.usefixtures("no_trace_log")
@pytest.mark.parametrize(
    ("format", "images"),
    [
        ("timm", [(1, 8), (2, 8), (1, 16), (3, 8)]),
        ("transformers", [(1, 8), (2, 8), (3, 8)]),
        ("onnx", [(1, 8)]),
        ("torch", [(1, 8), (1, 16)]),
    ],
)
def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format, images):
    monkeypatch.chdir(tmp_path)
    for channels, depth in images:
        step = tmp_path / f"{channels}-{depth}"
        save_checkpoint(step, "vit_small_patch14_dinov2", SMALL, channels)
        description = json.loads((step / "encoder.json").read_text())
        (step / "encoder.json").write_text(json.dumps(description | {"depth": depth}))
        pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).convert("L" if channels == 1 else "RGB").save("photo.jpg")
        export(step, tmp_path / f"out {channels}-{depth}", format)
        text = (tmp_path / f"out {channels}-{depth}/README.md").read_text()
        names: dict = {}
        exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
        assert names["vectors"].shape == (1, 48) and f"{depth} bits a channel" in text
