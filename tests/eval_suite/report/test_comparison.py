"""Several runs of one sweep are compared end to end: rows over seeds, links, and the three files."""

import csv
import json
import shlex
from pathlib import Path

import pytest
import yaml

from eval_suite import terminal
from eval_suite.batch import Outcome, Task
from eval_suite.report import comparison
from finetune.arguments import parse as finetune
from tests.eval_suite.eval_samples import run_command, save_checkpoint
from tests.eval_suite.report.compared import evaluated


def test_a_sweep_over_seeds_is_one_row_for_each_step(tmp_path: Path, data: list[object]):
    for seed in (0, 1):
        run = tmp_path / "runs" / f"a-quite-long-name-of-a-run-lr=0.0001-weight=0.05-seed={seed}"
        for step in (5, 10):
            save_checkpoint(run / f"checkpoints/step_{step:08d}", step=step, seed=seed)
        config = {"name": run.name, "seed": seed, "steps": 10, "tracking": {"parent": str(seed)}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "metrics.jsonl").write_text('{"step": 4, "loss": 4.0}\n{"step": 10, "loss": 1.0}\n')
    quick = ["--metrics", "knn", "--baselines", "untrained", "--features", "embedding"]
    outcome = run_command(tmp_path / "runs", *data, *quick, "--every", "5")
    assert outcome.code == 0, outcome.err
    name = "a-quite-long-name-of-a-run-lr=0.0001-weight=0.05"
    # Names are not cut, though the terminal has 80 columns.
    assert outcome.out.count(f" {name} ") == 2 and f"{name}, 2 seeds, step 10: " in outcome.out
    out = tmp_path / "runs/eval"
    with (out / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["name"], row["step"], row["seeds"], row["n"]) for row in table] == [
        (name, "5", "0, 1", "2"),
        (name, "10", "0, 1", "2"),
    ]
    single = [
        json.loads((run / "eval/10/results.json").read_text())["representations"]["pretrained"]["knn"][
            "auroc"
        ]
        for run in sorted((tmp_path / "runs").glob("a-*"))
    ]
    assert float(table[1]["pretrained/knn/auroc"]) == pytest.approx(sum(single) / 2)
    assert float(table[0]["training/loss"]) == pytest.approx(3.5)  # between 4 at step 4 and 1 at step 10
    assert (table[0]["best"], table[1]["best"]) in (("true", "false"), ("false", "true"))
    for run in (tmp_path / "runs").glob("a-*"):
        assert (run / "eval/best/results.json").is_file()
    page = (out / "comparison.html").read_text()
    assert "4 checkpoints in 2 rows" in page and "2 seeds: " in page and "Differences over seeds" in page


def test_correlations_are_a_table(tmp_path: Path):
    losses = {1: 0.9, 2: 0.5, 3: 0.4, 4: 0.3}
    steps = [
        evaluated(tmp_path, "a", step=step, losses=losses, ours=score, baselines={})
        for step, score in ((1, 0.5), (2, 0.6), (3, 0.8), (4, 0.7))
    ]
    comparison.write(comparison.compare(steps), tmp_path)
    with (tmp_path / "correlations.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["score"] for row in table] == ["linear probe, balanced accuracy", "linear probe, AUROC"]
    assert float(table[1]["rho"]) == pytest.approx(-0.8)
    assert -1 <= float(table[1]["low"]) < -0.8 < float(table[1]["high"]) <= 1
    comparison.write(comparison.compare(steps[:2]), tmp_path)  # two checkpoints have no correlation
    assert not (tmp_path / "correlations.csv").exists()


def test_masks_have_a_column_beside_the_other_scores(tmp_path: Path):
    both = [evaluated(tmp_path, name, ours=0.8, baselines={}) for name in ("a", "b")]
    for each, miou in zip(both, (0.612, 0.487), strict=True):
        found = {"miou": miou, "miou_interval": [miou - 0.05, miou + 0.05]}
        each.results["representations"]["pretrained"]["segmentation_probe"] = found
    comparison.write(comparison.compare(both), tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert "<th>segmentation probe, mIoU</th>" in page
    assert "<strong>61.2</strong><small>56.2–66.2</small>" in page and "<td>48.7<small>" in page


def test_one_evaluation_ends_with_seven_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = evaluated(tmp_path, "a", ours=0.8, baselines={"untrained": (0.7, (0.05, 0.15))})
    one.results["data"] = {name: {"path": f"my/{name}", "labelled": 100} for name in ("train", "val", "test")}
    one.results["target_options"] = ["--targets=a table.csv", "--target-columns=grade"]
    one.folder.mkdir(parents=True)
    (one.folder / "report.html").touch()
    terminal.show([Outcome(Task("a", "a", one.folder), one.results)], ["MLflow: here"], quiet=False)
    lines = capsys.readouterr().out.splitlines()[-7:]
    said = ["Done", "Result", "Report", "MLflow", "Vectors", "Fine-tune", "Your own images"]
    assert [line.split(":")[0] for line in lines] == said
    assert "Pretraining helps: 10.0 points ahead of the untrained encoder" in lines[1]
    assert "Next: use it: isotorus export" in lines[1]
    given = finetune(shlex.split(lines[5])[3:])
    assert (given.val, given.test, given.targets) == ("my/val", "my/test", "a table.csv")
    assert f"--config {tmp_path}/runs/a/config.yaml name=mine data.path=" in lines[6]
    assert lines[4].endswith(f"isotorus embed {tmp_path}/runs/a my/train --out vectors.parquet")


def test_train_and_held_out_scores_stand_side_by_side_over_the_steps(tmp_path: Path):
    steps = []
    for step, fitted in ((1, 0.8), (2, 0.95), (3, 1.0)):
        one = evaluated(tmp_path, "a", step=step, ours=0.8, baselines={})
        one.results["representations"]["pretrained"]["probe"]["train"] = {"auroc": fitted}
        steps.append(one)
    comparison.write(comparison.compare(steps), tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    section = page.split("Train and held-out images side by side")[1].split("</section>")[0]
    assert section.count("<svg") == 1 and "linear probe, AUROC" in section
    assert section.count("stroke-dasharray") == 1
    with (tmp_path / "results.csv").open() as file:
        assert [row["pretrained/probe/train/auroc"] for row in csv.DictReader(file)] == ["0.8", "0.95", "1"]
    comparison.write(comparison.compare([evaluated(tmp_path, "b", step=1, ours=0.8, baselines={})]), tmp_path)
    assert "side by side</h2>" not in (tmp_path / "comparison.html").read_text().split("Side by side")[1]
