"""Jobs on a real Slurm of two nodes: how they end, how they are queued again, and what is refused."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from isotorus.errors import UserError, exit_code
from launch.__main__ import main
from tests.distributed.runs import ENVIRONMENT, ROOT, losses, rows, train
from tests.launch.slurm_cluster import NODES, Cluster, cluster

pytestmark = pytest.mark.timeout(900)

PASSWORD = "correct-horse-battery"
ENDLESS = ("steps=100000", "optimizer.final_lr_ratio=1", "checkpoint.every=100000", "stopping.grace=15")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


class Job:
    """A run of two nodes with a rank each, submitted by the command and followed to its end."""

    def __init__(self, slurm: Cluster, recipe: Path, options: list[str], overrides: tuple[str, ...]) -> None:
        self.slurm, self.folder = slurm, recipe.parent / "runs/tiny"
        command = [sys.executable, "-m", "launch", "slurm", "--wait", *options]
        self.process = subprocess.Popen(
            [*command, "--", "--config", str(recipe), *overrides],
            cwd=ROOT,
            env=ENVIRONMENT | {"SLURM_CONF": os.environ["SLURM_CONF"], "MLFLOW_TRACKING_PASSWORD": PASSWORD},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.number = self.process.stdout.readline().removeprefix("job ").partition(":")[0]
        assert self.number, "it was not submitted"
        self.log = self.folder.parent / f"slurm/tiny-{self.number}.log"

    def wait_for(self, happened: Callable[[], object]) -> None:
        self.slurm.wait_for(self.number, happened, self.log)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: any(row["step"] >= step for row in rows(self.folder)))

    def wait_for_state(self, *states: str) -> dict[str, str]:
        self.wait_for(lambda: self.slurm.job(self.number)["JobState"] in states)
        return self.slurm.job(self.number)

    def end(self) -> int:
        """Wait for the end; return the exit code of the command."""
        return self.process.wait(120)

    def checkpoints(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step_*"))


@pytest.fixture
def submit(slurm: Cluster, recipe: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def submit(*overrides: str, options: str = "--nodes 2 --ranks-per-node 1 --time 30") -> Job:
        jobs.append(Job(slurm, recipe, options.split(), overrides))
        return jobs[-1]

    yield submit
    for job in jobs:
        subprocess.run(["scancel", "--full", "--signal=KILL", job.number], capture_output=True)
        subprocess.run(["scancel", job.number], capture_output=True)
        job.process.kill()
        job.process.wait()


def ranks(folder: Path) -> list[psutil.Process]:
    """Return the processes that train the run of this folder."""
    recipe = str(folder.parents[1] / "recipe.yaml")
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        if recipe in (process.info["cmdline"] or []) and "RANK" in (process.info["environ"] or {}):
            found.append(process)
    return found


def test_saved_when_asked_and_queued_again_to_the_end(
    submit: Callable[..., Job], slurm: Cluster, tmp_path: Path
):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    overrides = ("tracking.enabled=true", f"tracking.uri={store}", "steps=80", "checkpoint.every=50")
    job = submit(*overrides)
    job.wait_for_step(10)
    arguments = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert len(ranks(job.folder)) == 2
    assert {rank.environ()["MLFLOW_TRACKING_PASSWORD"] for rank in ranks(job.folder)} == {PASSWORD}
    # The same signal, to the same processes, as --signal sends before the time limit.
    slurm.call("scancel", "--signal=USR1", job.number)
    job.wait_for_state("PENDING")
    (saved,) = job.checkpoints()
    assert saved == max(losses(job.folder)) < 80
    assert job.wait_for_state("COMPLETED", "FAILED")["Restarts"] == "1"
    assert job.end() == 0, job.log.read_text()

    assert f"continuing {job.folder} from step_{saved:08d}" in job.log.read_text()
    assert list(losses(job.folder)) == list(range(1, 81))

    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("isotorus").experiment_id])
    assert run.info.status == "FINISHED"
    assert [p.step for p in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, 81))

    written = [path.read_text() for path in job.log.parent.iterdir()]
    assert len(written) == 2 and not any(PASSWORD in text for text in [*arguments, *written])


@pytest.mark.nightly
def test_its_time_ends(submit: Callable[..., Job]):
    # Slurm counts in minutes, and may send the signal up to a minute before the time that was given.
    job = submit(*ENDLESS, options="--nodes 2 --ranks-per-node 1 --time 2 --signal-before 20")
    job.wait_for(lambda: len(job.checkpoints()) == 1)
    job.wait_for_state("PENDING")
    assert job.checkpoints() == [max(losses(job.folder))]
    assert "saved before the end of its time" in job.log.read_text()
    job.wait_for_step(job.checkpoints()[0] + 5)

    # Then the job is cancelled, which leaves it KillWait's 20 seconds.
    job.slurm.call("scancel", job.number)
    job.wait_for(lambda: not ranks(job.folder))
    assert job.wait_for_state("CANCELLED", "PENDING")["JobState"] == "CANCELLED"
    assert len(job.checkpoints()) == 2 and job.checkpoints()[-1] == max(losses(job.folder))
    assert list(losses(job.folder)) == list(range(1, job.checkpoints()[-1] + 1))


@pytest.mark.nightly
def test_a_node_goes_down(submit: Callable[..., Job], slurm: Cluster, recipe: Path, tmp_path: Path):
    overrides = ("steps=400", "optimizer.lr=1e-5", "checkpoint.every=10", "engine.deterministic=true")
    job = submit(*overrides)
    job.wait_for(lambda: len(job.checkpoints()) > 2)
    slurm.call("scontrol", "update", f"nodename={NODES[1]}", "state=down", "reason=test")
    job.wait_for_state("PENDING")
    job.wait_for(lambda: not ranks(job.folder))
    at_hand = job.checkpoints()[-1]
    # Slurm refuses this if slurmd has reported meanwhile that the node is well.
    subprocess.run(["scontrol", "update", f"nodename={NODES[1]}", "state=resume"], capture_output=True)
    assert job.wait_for_state("COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert f"from step_{at_hand:08d}" in job.log.read_text()
    uninterrupted = train(2, recipe, *overrides, "name=uninterrupted")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert losses(job.folder) == pytest.approx(losses(tmp_path / "runs/uninterrupted"), rel=1e-5)


@pytest.mark.nightly
def test_a_killed_rank_is_restarted_a_limited_number_of_times(submit: Callable[..., Job]):
    job = submit(*ENDLESS, options="--nodes 2 --ranks-per-node 1 --time 30 --task-per gpu --max-requeues 1")
    for start in (1, 2):
        job.wait_for(lambda n=start: job.log.exists() and job.log.read_text().count("the first step") == n)
        ranks(job.folder)[0].send_signal(signal.SIGKILL)
        job.wait_for(lambda: not ranks(job.folder))
    assert job.wait_for_state("FAILED", "PENDING")["JobState"] == "FAILED"
    assert job.end() == 137
    assert job.log.with_suffix(".failures").read_text().count("exit code 137") == 2


@pytest.mark.nightly
def test_makes_room_for_another_job_and_comes_back(submit: Callable[..., Job], slurm: Cluster):
    job = submit(*ENDLESS)
    job.wait_for_step(5)
    wanted = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"]
    urgent = slurm.call("sbatch", "--parsable", *wanted).strip()
    slurm.wait_for_state(urgent, "COMPLETED")
    job.wait_for_state("PENDING", "RUNNING")
    (saved,) = job.checkpoints()
    job.wait_for(lambda: f"from step_{saved:08d}" in job.log.read_text())
    job.wait_for_step(saved + 3)


@pytest.mark.nightly
def test_a_sweep_is_an_array(submit: Callable[..., Job], slurm: Cluster, tmp_path: Path):
    store = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    grid = ("steps=4", "optimizer.lr=1e-3,2e-3", "seed=0,1", "tracking.enabled=true", store)
    job = submit(*grid, options="--ranks-per-node 1 --sweep --at-once 2 --task-per gpu")
    job.wait_for(lambda: len(list((tmp_path / "runs/slurm").glob("tiny-*.log"))) == 4)
    assert job.process.wait(400) == 0
    folders = sorted(path.parent for path in (tmp_path / "runs").glob("*/metrics.jsonl"))
    names = [f"tiny-lr={lr}-seed={seed}" for lr in ("1e-3", "2e-3") for seed in (0, 1)]
    assert [folder.name for folder in folders] == names
    assert all(list(losses(folder)) == [1, 2, 3, 4] for folder in folders)

    client = MlflowClient(store.partition("=")[2])
    runs = client.search_runs([client.get_experiment_by_name("isotorus").experiment_id])
    (parent,) = [run.info.run_id for run in runs if run.info.run_name == "tiny"]
    assert [run.data.tags.get("mlflow.parentRunId") for run in runs].count(parent) == 4


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["launch", "slurm", *arguments])
    return main()


def test_dry_run_prints_what_slurm_takes(
    slurm: Cluster, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = ["--gpus-per-node", "2", "--nodes", "2", "--time", "1:00:00", "--memory", "4G"]
    grid = ["--sweep", "--", "--config", str(recipe), "seed=0,1"]
    assert launch(monkeypatch, "--dry-run", *options, "--", "--config", str(recipe)) == 0
    printed = capsys.readouterr().out
    assert not (recipe.parent / "runs").exists()
    checked = subprocess.run(["sbatch", "--test-only"], input=printed, capture_output=True, text=True)
    assert "on nodes 127.0.0.[2-3] in partition main" in checked.stderr
    done = subprocess.run(["bash", "-n"], input=printed, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "#SBATCH --gres=gpu:2\n" in printed and "--nproc-per-node 2 " in printed

    image = ["--container-image", "cells.sif", "--container-runtime", "apptainer"]
    assert launch(monkeypatch, "--dry-run", "--task-per", "gpu", *image, *options, *grid) == 0
    printed = capsys.readouterr().out
    assert "#SBATCH --array=0-1\n" in printed and "1) set -- --config" in printed and "seed=1" in printed
    assert "apptainer exec --nv" in printed and "cells.sif sh -c" in printed and "exec python3 -m" in printed


@pytest.mark.parametrize(
    ("options", "override", "said"),
    [
        ("--ranks-per-node 1 --partition gone", "", "invalid partition specified: gone"),
        ("--ranks-per-node 1 --constraint a100", "", "Invalid feature specification"),
        ("--ranks-per-node 1 --reservation gone", "", "Requested reservation is invalid"),
        ("--ranks-per-node 1 --flying", "", "unrecognized option '--flying'"),
        ("--gpus-per-node 3", "", "Requested node configuration is not available"),
        ("--ranks-per-node 5", "", "less than an image for each of 10 ranks"),
        ("", "", "one of the arguments --gpus-per-node --ranks-per-node is required"),
        ("--gpus-per-node two", "", "--gpus-per-node two: write a number"),
        ("--ranks-per-node 1 --time 1:2:3:4", "", "--time 1:2:3:4 is no time limit of Slurm"),
        ("--ranks-per-node 1 --time 5", "", "--signal-before 300 is not before the end"),
        ("--ranks-per-node 1 --signal-before 60", "", "less than stopping.grace=120 s"),
        ("--ranks-per-node 1 --output /proc/logs", "", "/proc/logs"),
        ("--ranks-per-node 1", "tracking.uri=http://me:secret@there", r"uri=http://\*\*\*@there would stand"),
    ],
)
def test_refusals_are_one_line(
    slurm: Cluster,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    override: str,
    said: str,
):
    nodes = [] if "--nodes" in options else ["--nodes", "2"]
    arguments = [*nodes, *options.split(), "--", "--config", str(recipe), *override.split()]
    monkeypatch.setattr(sys, "argv", ["launch", "slurm", *arguments])
    assert exit_code(main) == 2
    shown = capsys.readouterr().err
    assert re.search(said, shown) and shown.count("\n") == 1 and "secret" not in shown


def test_without_slurm(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"sbatch not found.*use --dry-run"):
        launch(monkeypatch, "--ranks-per-node", "1", "--", "--config", str(recipe))
    assert launch(monkeypatch, "--dry-run", "--ranks-per-node", "1", "--", "--config", str(recipe)) == 0
