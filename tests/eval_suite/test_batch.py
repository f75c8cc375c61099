"""Many checkpoints are compared, reused if finished, watched for, and not stopped by one that fails."""

import csv
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from data_pipeline.dataset_writer.name_channels import name_channels
from pretrain.models.encoder import build_encoder
from tests.eval_suite.eval_samples import KWARGS, Outcome, run_command, save_checkpoint, write_description

QUICK = ["--metrics", "knn,rank", "--baselines", ""]


def save(run: Path, step: int, last: int = 4, *, damaged: bool = False) -> Path:
    """Save a checkpoint of a run of `last` steps; COMPLETE is written last."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    save_checkpoint(folder, step=step, complete=False, config={"steps": last})
    if damaged:
        (folder / "encoder.json").write_text("{")
    (folder / "COMPLETE").touch()
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 1 to 4 and a logged loss."""
    folder = tmp_path / "runs" / "a"
    for step in (1, 2, 3, 4):
        save(folder, step)
    rows = [{"step": step, "loss": 2.0 / step} for step in (1, 2, 3, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def crash(step: int, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make the evaluation of a step fail with an unexpected exception, also in a process of its own."""

    def load(file: Path) -> dict[str, object]:
        if f"step_{step:08d}" in str(file):
            raise KeyError("sklearn")
        return load_file(file)

    patch.setattr("eval_suite.inputs.checkpoints.load_file", load)
    folder.mkdir()
    named = f"any('step_{step:08d}' in x for x in sys.orig_argv)"
    (folder / "sitecustomize.py").write_text(f"import sys\nif {named}: sys.modules['sklearn'] = None\n")
    patch.setenv("PYTHONPATH", str(folder))


def results_of(run: Path) -> list[int]:
    written = run.glob("eval/*/results.json")
    return sorted(int(path.parent.name) for path in written if not path.parent.is_symlink())


def test_many_checkpoints_are_compared_though_one_fails(run: Path, data: list[object]):
    damaged = run / "checkpoints/step_00000002/encoder.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    outcome = run_command(run, *data, *QUICK, "--every", "1")
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: a, step 2: ") and "not a whole safetensors file" in line
    assert results_of(run) == [1, 3, 4]

    with (run / "eval/results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["step"]) for row in table] == [1, 3, 4]
    found = json.loads((run / "eval/3/results.json").read_text())["representations"]["pretrained"]
    assert float(table[1]["pretrained/knn/balanced_accuracy"]) == found["knn"]["balanced_accuracy"]
    assert [float(row["training/loss"]) for row in table] == pytest.approx([2, 2 / 3, 0.5])
    assert pq.read_table(run / "eval/results.parquet").to_pylist()[2]["step"] == 4
    page = (run / "eval/comparison.html").read_text()
    assert 'href="3/report.html"' in page and "Over the steps of training" in page

    before = (run / "eval/3/results.json").stat().st_mtime_ns
    (run / "checkpoints/step_00000001/encoder.json").write_text("{")
    again = run_command(run, *data, *QUICK, "--every", "1")
    assert again.code == 1 and "failed: a, step 1: " in again.err and "is not JSON" in again.err
    assert (run / "eval/3/results.json").stat().st_mtime_ns == before


def test_a_crash_costs_one_evaluation_and_leaves_its_traceback(run: Path, data: list[object], tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        crash(2, tmp_path / "patch", patch)
        outcome = run_command(run, *data, *QUICK, "--every", "2")
    left = run / "eval/2/error.txt"
    assert outcome.code == 1 and results_of(run) == [4]
    assert f"failed: a, step 2: KeyError: 'sklearn'; see {left}" in outcome.err
    assert "Traceback" in left.read_text() and "pretrained" in left.read_text()
    assert run_command(run, *data, *QUICK, "--every", "2").code == 0
    assert results_of(run) == [2, 4] and not left.exists()


@pytest.mark.nightly
def test_evaluations_side_by_side(
    run: Path, data: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.rmtree(run / "checkpoints/step_00000001")
    crash(3, tmp_path / "patch", monkeypatch)
    outcome = run_command(run, *data, *QUICK, "--every", "1", "--jobs", "2", "--json")
    assert outcome.code == 1, outcome.err
    left = run / "eval/3/error.txt"
    assert "failed: a, step 3: ModuleNotFoundError: " in outcome.err
    assert f"see {left}" in outcome.err and "Traceback" in left.read_text()
    found = json.loads(outcome.out)
    assert sorted(each["checkpoint"]["step"] for each in found) == [2, 4]
    assert results_of(run) == [2, 4]


def test_the_part_that_ends_last_compares_all_and_nothing_is_evaluated_twice(run: Path, data: list[object]):
    options = [run, *data, *QUICK, "--every", "1"]
    first = run_command(*options, "--part", "1/2")
    assert first.code == 0 and "part 1/2: 2 evaluated, 2 left to other parts" in first.out, first.err
    assert results_of(run) == [2, 4] and not (run / "eval/comparison.html").exists()
    before = {path: path.stat().st_mtime_ns for path in run.glob("eval/*/results.json")}
    idle = run_command(*options, "--part", "4/5")
    assert idle.code == 0 and "part 4/5: 0 evaluated, 2 left" in idle.out, idle.err

    last = run_command(*options, "--part", "0/2")
    assert last.code == 0 and "comparison.html" in last.out, last.err
    assert results_of(run) == [1, 2, 3, 4] and (run / "eval/comparison.html").exists()
    with (run / "eval/results.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_parts_find_the_results_of_an_encoder_that_finds_channels_by_name(
    splits: dict[str, Path], tmp_path: Path
):
    named = {name: shutil.copytree(folder, tmp_path / name) for name, folder in splits.items()}
    for folder in named.values():
        name_channels(folder, ["a", "b", "c"])
    kwargs = KWARGS | {"in_chans": 4, "channel_embedding": True}
    of = {"channels": 4, "channel_names": ["a", "b", "c", "d"], "mean": [0.5] * 4, "std": [0.2] * 4}
    for step in (1, 2):
        (folder := tmp_path / f"runs/a/checkpoints/step_{step:08d}").mkdir(parents=True)
        weights = build_encoder("vit_tiny_patch16_224", kwargs, seed=0).state_dict()
        save_file(weights, folder / "encoder.safetensors")
        write_description(folder, kwargs, step=step, config={"steps": 2}, **of)
        (folder / "COMPLETE").touch()
    options = ["--train", named["train"], "--val", named["val"], "--folds", "0", *QUICK, "--every", "1"]
    for part, said in (("0/2", "1 left to other parts"), ("1/2", "comparison.html")):
        outcome = run_command(tmp_path / "runs/a", *options, "--part", part)
        assert outcome.code == 0 and said in outcome.out, outcome.err


def test_parts_find_the_results_of_files_of_features(tmp_path: Path):
    files = [tmp_path / f"{name}.npy" for name in "ab"]
    for seed, file in enumerate(files):
        np.save(file, np.random.default_rng(seed).normal(size=(60, 5)))
    for part, said in (("0/2", "1 left to other parts"), ("1/2", "comparison.html")):
        outcome = run_command(*files, "--metrics", "rank", "--part", part)
        assert outcome.code == 0 and said in outcome.out, outcome.err


@pytest.mark.parametrize(
    ("options", "said"), [(["2/2"], "expected I/N"), (["0/2", "--watch"], "--watch waits")]
)
def test_parts_that_cannot_be_are_refused(run: Path, data: list[object], options: list[str], said: str):
    outcome = run_command(run, *data, *QUICK, "--part", *options)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and said in outcome.err


def test_watching_a_run_until_its_last_step(tmp_path: Path, data: list[object]):
    run = tmp_path / "runs" / "b"
    (run / "checkpoints").mkdir(parents=True)
    outcomes: list[Outcome] = []
    options = [*data, *QUICK, "--every", "1", "--watch", "--poll", "0.1"]
    watching = threading.Thread(target=lambda: outcomes.append(run_command(run, *options)))
    watching.start()
    time.sleep(0.5)  # there is nothing to evaluate yet
    save(run, 2)
    deadline = time.monotonic() + 120
    while results_of(run) != [2]:
        assert watching.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    save(run, 3, damaged=True)
    save(run, 4)
    watching.join(120)
    assert not watching.is_alive() and outcomes[0].code == 1, outcomes
    assert results_of(run) == [2, 4] and "failed: b, step 3: " in outcomes[0].err


def test_watching_what_is_no_run_is_refused(tmp_path: Path, data: list[object]):
    outcome = run_command(tmp_path, *data, *QUICK, "--watch")
    assert outcome.code == 2 and "is neither a run nor a folder of runs" in outcome.err


def test_jobs_under_torchrun_are_refused(run: Path, data: list[object], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = run_command(run, *data, "--jobs", "2")
    assert outcome.code == 2 and "--jobs starts its own processes" in outcome.err
