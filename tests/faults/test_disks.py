"""Disks that are full, read-only or at their quota: one line, whole files, and the run continues afterwards.

A full disk under checkpoints: tests/distributed/test_refusals.py; under a packing: test_pack_refusals.py.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from isotorus import jsonl
from isotorus.errors import exit_code
from pretrain.checkpoint.export.command import main as export
from tests.distributed.runs import ENVIRONMENT, ROOT, Run, losses, rows, train
from tests.faults.conftest import STEPS, command_or_skip
from tests.pretrain.checkpoint.export.checkpoints import SMALL, save_checkpoint

Mount = Callable[..., Path]


def fill(disk: Path) -> Path:
    """Write a file that leaves no free block on a disk."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def error_of(done: "subprocess.CompletedProcess[str]") -> str:
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(said) == 1 and "Traceback" not in done.stderr, done.stderr
    return said[0]


def test_a_row_is_written_whole_or_not_at_all(tmp_path: Path, mounted: Mount):
    disk = mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64k", "tmpfs")
    path = disk / "metrics.jsonl"
    file = jsonl.StepLog(path, step=0)
    file.write({"step": 1, "loss": 0.5})
    filler = fill(disk)
    step = 1
    with pytest.raises(OSError, match="No space left"):  # some fit into the file's last block
        while step < 1000:
            file.write({"step": step + 1, "loss": 0.5})
            step += 1
    written = path.read_bytes()
    assert written.endswith(b"}\n") and [json.loads(x)["step"] for x in written.splitlines()][-1] == step
    with pytest.raises(OSError, match="No space left"):
        jsonl.StepLog(path, step)  # as a run does that continues
    assert path.read_bytes() == written and sorted(x.name for x in disk.iterdir()) == ["filler", path.name]
    filler.unlink()
    jsonl.StepLog(path, step).write({"step": step + 1, "loss": 0.5})
    assert [row["step"] for row in jsonl.read(path)] == list(range(1, step + 2))


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_full_disk_while_logging(recipe: Path, tmp_path: Path, mounted: Mount):
    """The run folder is full, its checkpoints are elsewhere; afterwards there is one MLflow run."""
    folder = mounted(tmp_path / "runs/tiny", "-t", "tmpfs", "-o", "size=16m", "tmpfs")
    (tmp_path / "elsewhere").mkdir()
    (folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    tracked = ("tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    long = ("steps=100000", "optimizer.final_lr_ratio=1", "checkpoint.every=20", *tracked)
    run = Run(1, recipe, folder, *long)
    run.wait_for(lambda: (folder / "checkpoints/latest").exists())
    run.wait_for(lambda: (folder / "mlflow.json").exists())
    run.wait_for(lambda: json.loads((folder / "mlflow.json").read_text())["run_id"])
    known = json.loads((folder / "mlflow.json").read_text())["run_id"]
    filler = fill(folder)
    assert run.end() == 2, run.stderr
    assert f"error: run {folder}: No space left on device" in run.stderr and "Traceback" not in run.stderr
    assert (folder / "metrics.jsonl").read_bytes().endswith(b"}\n")
    before = losses(folder)
    assert "No space left" in error_of(train(1, recipe, *long))
    assert losses(folder) == before
    filler.unlink()
    newest = (folder / "checkpoints/latest").resolve().name
    step = int(newest.removeprefix("step_"))
    assert max(before) - step <= 20
    done = train(1, recipe, *long, f"steps={step + 3}")
    assert done.returncode == 0 and f"continuing {folder} from {newest}" in done.stderr, done.stderr
    assert [row["step"] for row in rows(folder)] == list(range(1, step + 4))
    record = json.loads((folder / "mlflow.json").read_text())
    # Another number of steps is another parameter, so the MLflow run was replaced.
    assert record["run_id"] != known and record["complete"]
    client = MlflowClient(record["uri"])
    (shown,) = client.search_runs([client.get_experiment_by_name("isotorus").experiment_id])
    assert shown.info.run_id == record["run_id"]


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_disk_that_errors_made_read_only(
    whole: dict[int, float], recipe: Path, tmp_path: Path, mounted: Mount
):
    image, trigger = tmp_path / "disk", Path("/sys/fs/ext4")
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    command_or_skip("mkfs.ext4", "-q", "-F", "-e", "remount-ro", image)
    mount = ("-t", "ext4", "-o", "loop,errors=remount-ro", image)
    folder = mounted(tmp_path / "runs", *mount) / "tiny"
    device = subprocess.run(
        ["findmnt", "-no", "SOURCE", folder.parent], capture_output=True, text=True, check=True
    ).stdout.strip()
    trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
    if not trigger.exists():
        pytest.skip(f"there is no {trigger}")
    run = Run(2, recipe, folder, *STEPS)
    run.wait_for(lambda: (folder / "checkpoints/latest").exists())
    trigger.write_text("test")
    assert run.end() == 2, run.stderr
    said = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "ead-only file system" in said[0] and "Traceback" not in run.stderr
    assert "ead-only file system" in error_of(train(2, recipe, *STEPS))

    subprocess.run(["umount", folder.parent], check=True)
    subprocess.run(["e2fsck", "-fy", image], capture_output=True)
    subprocess.run(["mount", *mount, folder.parent], check=True)
    done = train(2, recipe, *STEPS)
    assert done.returncode == 0 and f"continuing {folder} from step_" in done.stderr, done.stderr
    assert losses(folder) == whole


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_quota_reached_while_saving(
    whole: dict[int, float], recipe: Path, tmp_path: Path, quota: Callable[[int], Path]
):
    disk = quota(3 * 2**20)
    folder = disk / "tiny"
    here = (*STEPS, f"runs={disk}", "checkpoint.every=1")
    said = error_of(train(2, recipe, *here))
    assert "uota exceeded" in said and "raise the quota or free some space" in said
    newest = max(path.parent.name for path in folder.glob("checkpoints/step_*/COMPLETE"))
    subprocess.run(["btrfs", "qgroup", "limit", "none", disk], check=True)
    done = train(2, recipe, *here)
    assert done.returncode == 0 and f"continuing {folder} from {newest}" in done.stderr, done.stderr
    assert losses(folder) == whole


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_packing_on_a_quota_and_on_a_read_only_disk(
    images: Path, tmp_path: Path, mounted: Mount, quota: Callable[[int], Path]
):
    def pack(dest: Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "data_pipeline", "pack", images, dest, "--shard-size", "30KB"]
        return subprocess.run(
            [*command, "--workers", "1"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
        )

    sealed = mounted(tmp_path / "sealed", "-t", "tmpfs", "-o", "ro", "tmpfs")
    assert "ead-only" in error_of(pack(sealed / "cells"))
    disk = quota(160 * 2**10)
    assert "uota" in error_of(pack(disk / "cells"))
    subprocess.run(["btrfs", "qgroup", "limit", "none", disk], check=True)
    assert pack(disk / "cells").returncode == 0
    verify = [sys.executable, "-m", "data_pipeline", "verify", disk / "cells"]
    assert subprocess.run(verify, cwd=ROOT, env=ENVIRONMENT).returncode == 0


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_results_of_an_evaluation_on_a_full_disk(recipe: Path, shards: Path, tmp_path: Path, mounted: Mount):
    assert train(1, recipe, "steps=2").returncode == 0
    out = mounted(tmp_path / "results", "-t", "tmpfs", "-o", "size=4m", "tmpfs")
    filler = fill(out)

    def evaluate() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "eval_suite", tmp_path / "runs/tiny", "--out", out]
        data = ["--train", shards, "--val", shards]
        return subprocess.run([*command, *data], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)

    assert "No space left on device" in error_of(evaluate())
    assert not list(out.glob("*.json")) and not list(out.glob("*.html"))
    filler.unlink()
    assert evaluate().returncode == 0
    assert (out / "results.json").exists() and (out / "report.html").exists()


@pytest.mark.parametrize("format", ["timm", "torch", "onnx", "mlflow"])
def test_a_full_disk_while_exporting(tmp_path: Path, mounted: Mount, format: str, capsys):
    """Each library has an error of its own for it; the user gets one line, and no folder."""
    disk = mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=200k", "tmpfs")
    save_checkpoint(tmp_path / "step", "vit_small_patch14_dinov2", SMALL)
    store = ["--mlflow", f"sqlite:///{tmp_path}/mlflow.db"] if format == "mlflow" else []
    given = [str(tmp_path / "step"), "--out", str(disk / "out"), "--format", format, *store]
    assert exit_code(lambda: export(given)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: exporting to {disk / 'out'}: No space left on device"), said
    assert "free some space" in said and list(disk.iterdir()) == []
