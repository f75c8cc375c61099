"""`isotorus watch`: what it says about a run is what the run's files say."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from pretrain.monitoring.progress_of import notes, standing
from pretrain.monitoring.watch_command import main, sparkline
from pretrain.run_control.lock import hold

WATCH = [sys.executable, "-m", "pretrain", "watch"]


def make_run(folder: Path, rows: int, *, steps: int = 100, ago: float = 0.0, saved: int = 0, **more) -> Path:
    """Write a run whose rows are 10 steps and 5 seconds apart, the last one `ago` seconds old."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, "steps": steps}))
    now = time.time() - ago
    with (folder / "metrics.jsonl").open("w") as file:
        for i in range(rows):
            row = {"step": 10 * (i + 1), "loss": 2.0 - i / 10, "data_wait": 0.02, "images_per_second": 50.0}
            file.write(json.dumps(row | more | {"time": now - 5 * (rows - 1 - i)}) + "\n")
        file.write('{"step": 999, "lo')  # a row that is being written
    if saved:
        place = folder / "checkpoints" / f"step_{saved:08d}"
        place.mkdir(parents=True)
        (place / "COMPLETE").touch()
    return folder


def test_the_time_that_is_left(tmp_path: Path):
    now = standing(make_run(tmp_path / "a", rows=6))
    assert (now.step, now.steps, now.finished, now.stands_still) == (60, 100, False, False)
    assert now.seconds_a_step == pytest.approx(0.5) and now.seconds_left == pytest.approx(20)
    assert now.series("loss") == pytest.approx([2.0, 1.9, 1.8, 1.7, 1.6, 1.5])


def test_what_is_unhealthy_is_said_with_a_remedy(tmp_path: Path):
    assert notes(standing(make_run(tmp_path / "well", rows=6))) == []
    said = {
        "data.workers": {"data_wait": 0.4},
        "results-are-bad.md": {"collapsed": 1.0},
        "optimizer.lr": {"skipped_steps": 30},
        "corrupt.jsonl": {"corrupt_samples": 2},
    }
    for i, (remedy, values) in enumerate(said.items()):
        (note,) = notes(standing(make_run(tmp_path / str(i), rows=6, **values)))
        assert remedy in note
    (note,) = notes(standing(make_run(tmp_path / "hangs", rows=6, ago=600)))
    assert "nothing was logged for 10 min" in note
    # A run that has ended well is silent because it has ended.
    assert notes(standing(make_run(tmp_path / "done", rows=10, ago=600, saved=100))) == []


def test_curves():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3, 3]) == "▁▁▁" and sparkline([]) == ""
    assert sparkline([float(i) for i in range(1000)], width=4) == "▁▃▆█"


def test_a_run_and_a_folder_of_runs(tmp_path: Path):
    make_run(tmp_path / "runs/done", rows=10, saved=100)
    make_run(tmp_path / "runs/half", rows=5)
    done = subprocess.run([*WATCH, tmp_path / "runs/done"], capture_output=True, text=True)
    assert done.returncode == 0 and "done: step 100 of 100, finished" in done.stdout
    assert "next: isotorus eval" in done.stderr
    both = subprocess.run([*WATCH, tmp_path / "runs"], capture_output=True, text=True)
    lines = [line.split() for line in both.stdout.splitlines()]
    assert ["done", "100", "100", "1.1000", "finished"] in lines
    assert ["half", "50", "100", "1.6000", "25", "s", "left"] in lines


def test_a_damaged_run_hides_no_other_and_contradicts_nothing(tmp_path: Path, capsys):
    runs = tmp_path / "runs"
    make_run(runs / "well", rows=5)
    (make_run(runs / "folder", rows=5) / "metrics.jsonl").unlink()
    (runs / "folder/metrics.jsonl").mkdir()
    (make_run(runs / "lost", rows=10, saved=100) / "metrics.jsonl").write_bytes(b"\0\xff")
    (make_run(runs / "config", rows=5, ago=600) / "config.yaml").write_text(": [")
    make_run(runs / "null", rows=5, images_per_second=None, skipped_steps=None, data_wait=None)
    make_run(runs / "less", rows=10, steps=50, saved=100)  # `steps` was lowered
    make_run(runs / "killed", rows=1, ago=3600)
    assert main([str(runs), "--once"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "well 50 100 1.6000 25 s left" in table and "folder 0 cannot be read" in table
    seen = {}
    for run in ("lost", "null", "config", "less", "killed"):
        assert main([str(runs / run), "--once"]) == 0
        seen[run] = " ".join(capsys.readouterr().out.split())
    assert "lost: step 100 of 100, finished" in seen["lost"] and " 100%" in seen["lost"]
    assert "null: step 50 of 100, 25 s left" in seen["null"] and "images/s" not in seen["null"]
    assert "config.yaml cannot be read" in seen["config"]
    assert " 100%" in seen["less"] and "step 100 of 50, finished" in seen["less"]
    assert (
        "killed: step 10 of 100, stands still" in seen["killed"]
        and "same command continues it" in seen["killed"]
    )
    assert not standing(make_run(tmp_path / "first", rows=1, ago=100)).stands_still


def test_a_run_that_does_not_begin_says_what_to_look_at(tmp_path: Path, capsys):
    run = make_run(tmp_path / "run", rows=0)
    assert notes(standing(run)) == []
    old = time.time() - 600
    os.utime(run / "config.yaml", (old, old))
    (note,) = notes(standing(run))
    assert "no row after 10 min" in note and "no process holds the run" in note and "log" in note
    assert main([str(run), "--once"]) == 0 and "has not begun" in capsys.readouterr().out
    # While its process lives, the first rows may only be late.
    with hold(run):
        (note,) = notes(standing(run))
    assert f"process {os.getpid()} on " in note and "log_every" in note
    assert "no process" in notes(standing(run))[0], "the lock is empty again"


class Terminal:
    """`isotorus watch` in a terminal of its own, whose output is read all the time."""

    def __init__(self, run: Path) -> None:
        self._ours, theirs = pty.openpty()
        command = [*WATCH, run, "--every", "0.1"]
        self.process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, text=True)
        os.close(theirs)
        self.seen = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # at its end
            while part := os.read(self._ours, 10_000):
                self.seen += part.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            time.sleep(0.05)


def test_it_follows_a_run_to_its_end(tmp_path: Path):
    run = make_run(tmp_path / "run", rows=5)
    terminal = Terminal(run)
    terminal.wait_for("step 50 of 100")
    place = run / "checkpoints/step_00000100"
    place.mkdir(parents=True)
    (place / "COMPLETE").touch()
    _, said = terminal.process.communicate(timeout=60)
    assert terminal.process.returncode == 0 and "next: isotorus eval" in said
    terminal.wait_for("finished")


def test_ctrl_c_ends_it_quietly(tmp_path: Path):
    terminal = Terminal(make_run(tmp_path / "run", rows=5))
    terminal.wait_for("step 50 of 100")
    terminal.process.send_signal(signal.SIGINT)
    _, said = terminal.process.communicate(timeout=60)
    assert (terminal.process.returncode, said) == (0, "")


@pytest.mark.parametrize("given", ["nowhere", "."])
def test_what_is_no_run_is_one_line(given: str, tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [*WATCH, given],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2 and "is no run (it has no config.yaml)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
