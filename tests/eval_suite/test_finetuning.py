"""Fine-tuning as a metric of the evaluation: its rows and sentences, and what a second evaluation does."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from eval_suite.arguments import options, parse
from eval_suite.inputs.find import find
from eval_suite.report.sentences import about_finetuning
from eval_suite.usefulness.finetuning import RECIPE
from finetune import recipe
from finetune.arguments import parse as finetune
from pretrain.checkpoint import folders
from pretrain.config import flatten
from tests.console import ROOT
from tests.eval_suite.eval_samples import ONE, run_command, save_checkpoint
from tests.eval_suite.report.compared import results

LEARNED = ("augment.", "data.batch_size", "encoder.", "objective.", "optimizer.", "steps", "views.")
"""Fields of a recipe that change what an encoder learns."""
ONLY = ("--metrics", "probe,finetune_tenth", "--baselines", "untrained", *ONE)


def test_fine_tuning_brings_a_tenth_of_the_labels_along():
    asked = options(parse(["run", "--metrics", "knn,finetune"])).useful.metrics
    assert asked == ("knn", "finetune", "finetune_tenth")
    assert "finetune" not in options(parse(["run"])).useful.metrics


def test_the_sentence_compares_with_the_probe_and_with_scratch():
    found = results(baselines={"untrained": (0.7, (0.05, 0.15))})
    assert about_finetuning(found) == ""
    ours = {"auroc": 0.91, "labels": 1634, "reported_on": "test"}
    ours["over_probe"] = {"auroc": {"value": 0.02, "interval": [0.005, 0.035]}}
    found["representations"]["pretrained"]["finetune"] = ours
    found["differences"]["untrained"]["finetune"] = {"auroc": {"value": -0.01, "interval": [-0.03, 0.01]}}
    assert about_finetuning(found) == (
        "Fine-tuning, on the test split: on 1,634 labels AUROC 91.0\u00a0%, +2.0 points against a linear "
        "probe (+0.5 to +3.5), −1.0 points against training from scratch (−3.0 to +1.0)."
    )


def test_new_defaults_of_fine_tuning_are_a_new_version_of_the_recipe(
    splits: dict[str, Path], checkpoint: Path
):
    args = finetune(
        [f"{checkpoint}", f"{splits['train']}", "--val", f"{splits['val']}", "--out", "runs/tuned"]
    )
    args.workers = 0  # by default their number depends on the machine
    config = flatten(recipe.build(args, *find([args.name])).model_dump(mode="json"))
    learned = {key: value for key, value in config.items() if key.startswith(LEARNED)}
    text = json.dumps([vars(args), learned], sort_keys=True)
    for name, path in {**splits, "checkpoint": checkpoint}.items():
        text = text.replace(str(path), name)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    advice = "if a default has changed, raise RECIPE, because results of before do not count any more"
    assert {RECIPE: digest} == {2: "3b4b0f1d621d55fe"}, f"{advice}; then change both numbers here"


@pytest.mark.nightly
def test_an_evaluation_fine_tunes_on_a_tenth_and_does_so_once(data: list[object], tmp_path: Path):
    run = tmp_path / "run"
    save_checkpoint(run / "checkpoints/step_00000007")
    first = run_command(run, *data, *ONLY)
    assert first.code == 0, first.err
    found = json.loads((run / "eval/7/results.json").read_text())
    ours, untrained = (found["representations"][name] for name in ("pretrained", "untrained"))
    tenth = ours["finetune_tenth"]
    assert tenth["labels"] == 4 and tenth["reported_on"] == "test"
    low, high = tenth["auroc_interval"]
    assert low <= tenth["auroc"] <= high
    difference = found["differences"]["untrained"]["finetune_tenth"]["auroc"]["value"]
    assert difference == pytest.approx(tenth["auroc"] - untrained["finetune_tenth"]["auroc"])
    page = (run / "eval/7/report.html").read_text()
    assert "fine-tuning on a tenth of the labels" in page and "Fine-tuning, on the test split: on 4" in page
    assert "Fine-tuning, on the test split" in first.out and "Fine-tune: isotorus finetune" in first.out
    tuned = Path(tenth["run"])
    assert (tuned / "encoder.safetensors").is_file()
    before = (tuned / "metrics.jsonl").stat().st_mtime_ns
    again = run_command(run, *data, *ONLY, "--draws", "3")  # another option, so that all is measured again
    assert again.code == 0 and (tuned / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.nightly
def test_a_fine_tuning_that_is_refused_is_left_out_with_its_reason(
    data: list[object], checkpoint: Path, tmp_path: Path
):
    table = tmp_path / "table.csv"
    table.write_text("key,grade\n" + "".join(f"{i},{'ab'[i % 2] if i < 20 else 'b'}\n" for i in range(44)))
    targets = ["--targets", table, "--target-columns", "grade", "--missing", "b"]
    outcome = run_command(checkpoint, *data, *ONLY, *targets)
    assert outcome.code == 0, outcome.err
    found = json.loads(next(checkpoint.glob("eval/*/results.json")).read_text())
    reasons = {entry["metric"]: entry["reason"] for entry in found["left_out"]}
    assert "one class, a" in reasons["finetune_tenth"]


@pytest.mark.nightly
def test_a_killed_evaluation_leaves_no_training_behind_and_is_continued(
    data: list[object], checkpoint: Path, tmp_path: Path
):
    options = ["--metrics", "finetune_tenth", "--baselines", "pixels", "--workers", "0", "--out", tmp_path]
    command = [sys.executable, "-m", "eval_suite", checkpoint, *data, *options]
    killed = subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("finetune/*/checkpoints/step_*/COMPLETE")):
        assert killed.poll() is None
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    training = next(tmp_path.glob("finetune/*"))
    while any(str(training) in " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])):
        time.sleep(0.1)
    stopped = int(folders.latest(training / "checkpoints").name.removeprefix("step_"))
    assert 0 < stopped < 300
    outcome = run_command(checkpoint, *data, *options[:-4], "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["representations"]["pretrained"]["finetune_tenth"]["steps"] == 300
    rows = [json.loads(line)["step"] for line in (training / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows)) and rows[-1] == 300
