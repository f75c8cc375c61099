"""The summary has at most five lines, and what it says to try is a command that the program takes."""

import copy
import re
import shlex
from typing import Any

import pytest

from eval_suite.arguments import parse
from eval_suite.layers.conclusion import conclusion
from eval_suite.report.over_seeds import Evaluated, Row
from eval_suite.report.summary.advice import advice
from eval_suite.report.summary.lines import MOST, summary
from eval_suite.report.summary.of_comparison import of_comparison
from pretrain.__main__ import parse as pretrain_parse
from pretrain.checkpoint.export import command as export_command
from pretrain.config import fields
from pretrain.sweep import main as sweep_main
from tests.eval_suite.report.compared import results

AHEAD = {"untrained": (0.70, (0.07, 0.13)), "pixels": (0.77, (0.01, 0.05))}
FIELDS = {name for name, *_ in fields()}
HEALTHY = [{"step": s, "loss": 0.3, "sigreg_over_null": 2.0, "data_wait": 0.02} for s in range(1, 41)]
SPLITS = {name: {"path": f"my shards/{name}", "labelled": 0} for name in ("train", "val")}


def outcomes() -> dict[str, dict[str, Any]]:
    """Return results of every kind of outcome, by a name."""
    unlabelled = results(baselines={})
    unlabelled |= {"kind": None, "reported_on": None, "data": SPLITS}
    unlabelled["left_out"] = [{"metric": "probe", "reason": "train has no labels"}]
    unlabelled["representations"]["pretrained"] = {
        "rank": {"effective_rank": 7.8},
        "views": {"lidar": 12.0, "alignment": 0.3},
    }
    labelled = copy.deepcopy(unlabelled)
    labelled["data"] = {name: of | {"labelled": 10} for name, of in SPLITS.items()}
    elsewhere = copy.deepcopy(unlabelled)
    elsewhere["checkpoint"] |= {"run": None, "encoder": "features from elsewhere", "folder": "x.npz"}
    folder = results(baselines={"untrained": (0.9, (-0.12, -0.08))}, run=None, folder="a model")
    return {
        "ahead": results(baselines=AHEAD),
        "ahead of untrained": results(
            ours=0.6, baselines={"untrained": (0.5, (0.07, 0.13)), "pixels": (0.9, (-0.4, -0.2))}
        ),
        "unclear": results(baselines={"untrained": (0.79, (-0.02, 0.04))}),
        "behind": results(baselines={"untrained": (0.9, (-0.12, -0.08))}),
        "without baselines": results(baselines={}) | {"data": SPLITS},
        "unlabelled": unlabelled,
        "labels not asked for": labelled,
        "features from elsewhere": elsewhere,
        "model folder": folder,
    }


def is_taken(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that the command's own parser has its options, and that the fields of a recipe exist."""
    isotorus, name, *words = shlex.split(command)
    assert isotorus == "isotorus"
    keys = {found[1] for word in words if (found := re.match(r"([a-z_.]+)=", word))}
    assert keys <= FIELDS
    if name == "eval":
        parse(words)
        return
    mains = {"export": export_command.main, "sweep": sweep_main, "train": pretrain_parse}
    with pytest.raises(SystemExit):
        mains[name](["--help"])
    known = capsys.readouterr().out
    assert all(word in known for word in words if word.startswith("--"))


@pytest.mark.parametrize("name", outcomes())
def test_it_has_few_lines_and_ends_with_something_to_try(name: str, capsys: pytest.CaptureFixture[str]):
    lines = summary(outcomes()[name], HEALTHY)
    assert len(lines) <= MOST and all(len(line.text) < 400 for line in lines)
    assert [line.about for line in lines][:2] == ["good for", "health"]
    assert lines[-1].about == "try next"
    is_taken(lines[-1].command, capsys)


def test_a_name_that_a_shell_would_split_stays_one_word():
    found = results(baselines=AHEAD, folder="runs/my run; rm -rf x/checkpoints/latest")
    assert "runs/my run; rm -rf x/checkpoints/latest" in shlex.split(advice(found).command)


@pytest.mark.parametrize(
    ("task", "features", "refused"),
    [("multiclass", "embedding", False), ("multiclass", "stages", True), ("segmentation", "embedding", True)],
)
def test_a_layer_that_timm_cannot_hold_is_exported_otherwise(task: str, features: str, refused: bool):
    """`export` refuses its default format, timm, for a layer on other features, and for masks."""
    tuned = {"run": None, "folder": "runs/tuned", "supervised": {"task": task, "features": features}}
    found = advice(results(baselines=AHEAD, **tuned)).command
    assert found == "isotorus export runs/tuned --out encoder" + refused * " --format onnx"


def test_an_unhealthy_run_is_named_with_what_to_change_first():
    rows = [row | {"sigreg_over_null": 18.0, "data_wait": 0.4} for row in HEALTHY]
    lines = {line.about: line for line in summary(outcomes()["behind"], rows)}
    assert "SIGReg over null 18 (healthy: 1 to 3)" in lines["health"].text
    assert "1 more" in lines["health"].text
    assert lines["try next"].text.startswith("Raise objective.weight")
    # Whoever is ahead of every baseline is used, whatever the curves were.
    assert "objective.weight" not in summary(outcomes()["ahead"], rows)[-1].text


def test_without_labels_it_says_what_is_measured_and_how_to_give_labels():
    first, *_, last = summary(outcomes()["unlabelled"], [])
    assert "LiDAR 12" in first.text and "alignment 0.3" in first.text and "effective rank 7.8" in first.text
    assert "No scores against labels: train has no labels." in first.text
    assert "nearest neighbours" in first.text
    assert "--targets labels.csv" in last.command


def test_a_verdict_of_none_names_what_is_nearest():
    found = outcomes()["ahead"]
    none = {"name": "none of these", "nearest": "a circle, but for its dimension", "flat_torus": None}
    found["geometry"] = {"embedding": {"verdict": none}}
    (line,) = (line for line in summary(found, HEALTHY) if line.about == "geometry")
    assert "nearest: a circle, but for its dimension" in line.text


def test_of_several_rows_the_best_is_named_with_its_interval(tmp_path, capsys):
    made = [
        results(ours=ours, name=name, baselines=AHEAD) for name, ours in (("a", 0.7), ("b", 0.8), ("c", 0.79))
    ]
    rows = [Row(of["checkpoint"]["name"], of, (Evaluated(of, tmp_path),)) for of in made]
    first, *_, last = lines = of_comparison(rows, [])
    assert len(lines) <= MOST
    assert "b, step 500 (linear probe, AUROC 80.0" in first.text and "78.0 to 82.0" in first.text
    assert "1 of the other 2 rows lie within it" in first.text
    is_taken(last.command, capsys)


def test_layers_are_concluded_beside_the_untrained_encoder(capsys):
    values = {"rank": [40.0, 50.0, 8.0], "dormant": [0.1, 0.7, 0.0]}
    run = {
        "name": "a",
        "folder": "runs/a",
        "checkpoints": [{"step": 10, "folder": "runs/a/checkpoints/step_10", "values": values}],
        "untrained": {"rank": [40.0, 45.0, 44.0]},
    }
    lines = {line.about: line for line in conclusion(run, "shards/val")}
    assert "effective rank 44 (untrained) → 8" in lines["last block"].text
    assert "largest at block 1, 50, and falls to 8" in lines["through depth"].text
    assert "dormant in block 1" in lines["health"].text
    is_taken(lines["try next"].command, capsys)
