"""Commands other than `train` on a real Slurm of two nodes, and what is refused before it is submitted."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
import pytest

from eval_suite import __main__ as eval_suite
from isotorus.errors import exit_code
from launch import work
from launch.__main__ import main
from tests.distributed.runs import ENVIRONMENT, ROOT
from tests.eval_suite.eval_samples import pack, save_checkpoint
from tests.launch.slurm_cluster import Cluster, cluster

pytestmark = pytest.mark.timeout(900)
NODES = ["--nodes", "2", "--ranks-per-node", "1"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def submit(folder: Path, *arguments: object, nodes: int = 2) -> tuple[subprocess.Popen[str], str]:
    """Submit a job that is followed to its end; return the process that follows it, and its number."""
    options = ["--nodes", nodes, "--ranks-per-node", "1", "--cpus-per-rank", "2", "--time", "30", "--wait"]
    options += ["--output", folder / "slurm"]
    process = subprocess.Popen(
        [str(word) for word in (sys.executable, "-m", "launch", "slurm", *options, *arguments)],
        cwd=ROOT,
        env=ENVIRONMENT | {"SLURM_CONF": os.environ["SLURM_CONF"]},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    number = process.stdout.readline().removeprefix("job ").partition(":")[0]
    assert number, "it was not submitted"
    return process, number


def kill_all(words: str) -> None:
    """SIGKILL the ranks whose command line has these words."""
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if words in line and "-u -m eval_suite" in line:
            process.kill()


@pytest.mark.nightly
def test_an_evaluation_over_two_nodes_is_killed_continued_and_compared(slurm: Cluster, tmp_path: Path):
    run = tmp_path / "runs/a"
    for step in range(1, 7):
        save_checkpoint(run / f"checkpoints/step_{step:08d}", step=step, config={"steps": 6})
    train, val = (pack(tmp_path / name, ["a", "b"] * 10, seed=seed) for seed, name in enumerate(("t", "v")))
    options = ["--metrics", "knn,rank", "--baselines", "", "--workers", "0", "--every", "1"]
    process, number = submit(tmp_path, "eval", "--", run, "--train", train, "--val", val, *options)
    log = tmp_path / f"slurm/eval-{number}.log"

    def results() -> dict[str, int]:
        """Return, for each step whose results and report are finished, when the results were written."""
        sealed = [path.parent for path in run.glob("eval/[0-9]*/.seal")]
        return {each.name: (each / "results.json").stat().st_mtime_ns for each in sealed}

    slurm.wait_for(number, lambda: results() or slurm.job(number)["JobState"] == "FAILED", log)
    assert results(), log.read_text()
    kill_all(str(run))
    slurm.wait_for(number, lambda: "is queued again" in log.read_text(), log)
    before = results()
    assert 0 < len(before) < 6 and not (run / "eval/comparison.html").exists()
    slurm.wait_for_state(number, "COMPLETED", "FAILED", log=log)
    assert process.wait(120) == 0, log.read_text()
    after = results()
    assert len(after) == 6 and {step: after[step] for step in before} == before
    with (run / "eval/results.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]
    assert (run / "eval/comparison.html").exists()
    text = log.read_text()
    assert "left to other parts" in text and "exit code 137" in text


@pytest.mark.nightly
def test_a_set_packed_on_two_nodes_is_that_of_one(slurm: Cluster, images: Path, tmp_path: Path):
    options = ["--labels", "folder", "--shard-size", "30KB", "--workers", "1"]
    process, number = submit(tmp_path, "pack", "--", images, tmp_path / "many", *options)
    slurm.wait_for_state(number, "COMPLETED", "FAILED")
    log = (tmp_path / f"slurm/pack-{number}.log").read_text()
    assert process.wait(120) == 0, log
    subprocess.run(
        [sys.executable, "-m", "data_pipeline", "pack", images, tmp_path / "one", *options], check=True
    )

    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert content(tmp_path / "many") == content(tmp_path / "one")


@pytest.mark.nightly
def test_vectors_of_two_nodes_are_those_of_one_process(slurm: Cluster, tmp_path: Path):
    encoder = save_checkpoint(tmp_path / "encoder")
    shards = pack(tmp_path / "shards", ["a", "b"] * 15 + [""], seed=0)
    options = ["--workers", "0", "--batch-size", "4", "--out"]
    process, number = submit(tmp_path, "embed", "--", encoder, shards, *options, tmp_path / "many.parquet")
    assert process.wait(400) == 0, (tmp_path / f"slurm/embed-{number}.log").read_text()
    one = [sys.executable, "-m", "eval_suite", "embed", encoder, shards, *options, tmp_path / "one.parquet"]
    subprocess.run([*map(str, one)], check=True, env=ENVIRONMENT)

    many, alone = (pyarrow.parquet.read_table(tmp_path / f"{name}.parquet") for name in ("many", "one"))
    assert many.num_rows == 31 and many.column_names == alone.column_names
    for name in many.column_names:
        found, expected = many[name].to_pylist(), alone[name].to_pylist()
        if isinstance(expected[0], list):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        else:
            assert found == expected, name


@pytest.mark.nightly
def test_a_fine_tuning_on_two_nodes_is_interrupted_and_goes_on(slurm: Cluster, tmp_path: Path):
    encoder = save_checkpoint(tmp_path / "encoder")
    sizes = {"train": 30, "val": 10, "test": 11}
    train, val, test = (pack(tmp_path / name, ["a", "b"] * n, seed=n) for name, n in sizes.items())
    options = ["--val", val, "--test", test, "--out", tmp_path / "tuned", "--features", "embedding"]
    options += ["--epochs", "20", "--min-steps", "1", "--batch-size", "10", "--workers", "0"]
    options += ["tracking.enabled=false", "log_every=1"]
    process, number = submit(tmp_path, "finetune", "--", encoder, train, *options)
    log = tmp_path / f"slurm/finetune-{number}.log"

    def steps() -> list[int]:
        found = sorted((tmp_path / "tuned").rglob("metrics.jsonl"))
        rows = [json.loads(line) for path in found for line in path.read_text().splitlines()]
        return [row["step"] for row in rows if "loss" in row]

    slurm.wait_for(number, lambda: steps() or slurm.job(number)["JobState"] == "FAILED", log)
    slurm.call("scancel", "--signal=USR1", number)
    slurm.wait_for_state(number, "PENDING", "FAILED", log=log)
    slurm.wait_for_state(number, "COMPLETED", "FAILED", log=log)
    assert process.wait(120) == 0, log.read_text()
    assert slurm.job(number)["Restarts"] == "1" and "continuing" in log.read_text()
    assert steps() == sorted(set(steps())) and max(steps()) == 120
    assert "finetuned" in json.loads((tmp_path / "tuned/results.json").read_text())["scores"]


@pytest.mark.nightly
def test_a_job_evaluates_what_another_job_trains(slurm: Cluster, recipe: Path, tmp_path: Path):
    train, val = (pack(tmp_path / name, ["a", "b"] * 10, seed=seed) for seed, name in enumerate(("t", "v")))
    folder, one = tmp_path / "runs/tiny", {"nodes": 1}
    longer = ("steps=60", "checkpoint.every=15", "checkpoint.keep_last=null", "data.channels=3")
    training, number = submit(tmp_path, "--", "--config", recipe, f"data.path={train}", *longer, **one)
    slurm.wait_for(number, lambda: (folder / "checkpoints").is_dir() or _failed(slurm, number))
    options = ["--metrics", "knn,rank", "--baselines", "", "--workers", "0", "--every", "15", "--watch"]
    options += ["--poll", "1", "--train", train, "--val", val]
    watching, watcher = submit(tmp_path, "eval", "--", folder, *options, **one)
    log = tmp_path / f"slurm/eval-{watcher}.log"
    assert training.wait(400) == 0 and watching.wait(400) == 0, log.read_text()
    with (folder / "eval/results.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [15, 30, 45, 60]


def _failed(slurm: Cluster, number: str) -> bool:
    return slurm.job(number)["JobState"] == "FAILED"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "--"], "nothing after --; write eval -- …"),
        (["eval", "--", "runs/a", "--part", "0/2"], "the launcher gives each node its part"),
        (["eval", "--", "layers", "runs/a"], "eval layers runs in one process"),
        (["eval", "--", "runs/a", "--watch"], "--watch runs on one node"),
        (["--sweep", "embed", "--", "runs/a"], "--sweep is a grid of training runs"),
    ],
)
def test_what_cannot_be_launched_is_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["launch", "slurm", *NODES, "--dry-run", *arguments])
    assert exit_code(main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_the_commands_of_eval_that_are_not_launched_are_all_but_embed():
    assert set(work.SUBCOMMANDS) == eval_suite.SUBCOMMANDS.keys() - {"embed"}


def test_the_value_of_an_option_is_no_command(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = [*NODES, "--dry-run", "--partition", "eval", "--", "--config", str(recipe)]
    monkeypatch.setattr(sys, "argv", ["launch", "slurm", *words])
    assert exit_code(main) == 0
    script = capsys.readouterr().out
    assert "--partition=eval" in script and "eval_suite" not in script and "--job-name=tiny" in script
