"""Evaluating and packing on a real Slurm of two nodes, and what is refused before it is submitted."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
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


def submit(folder: Path, *arguments: object) -> tuple[subprocess.Popen[str], str]:
    """Submit a job that is followed to its end; return the process that follows it, and its number."""
    options = [*NODES, "--time", "30", "--output", folder / "slurm", "--wait", "--cpus-per-rank", "2"]
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
