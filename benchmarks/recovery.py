"""Measure how soon a run continues after SIGKILL, and how long each part of a start takes; 2 ranks.

`python -m benchmarks.recovery DATA --repeats 3` trains a small ViT on a packed data set of grey images.
Recovery is the time from the signal to the first row of metrics.jsonl that the new processes write.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

RECIPE = {
    "name": "run",
    "steps": 100_000,
    "log_every": 1,
    "data": {"batch_size": 8, "workers": 1, "channels": 1},
    "views": {"global_size": 32, "local_views": 2, "local_size": 16},
    "encoder": {
        "name": "vit_tiny_patch16_224",
        "kwargs": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
    },
    "optimizer": {"final_lr_ratio": 1},
    "engine": {"precision": "fp32"},
    "checkpoint": {"every": 10, "keep_last": 2},
    "tracking": {"enabled": False},
}


class Run:
    """A run under the launcher, in a folder of its own."""

    def __init__(self, data: str, folder: Path, restarts: int) -> None:
        self.folder = folder / "run"
        recipe = folder / "recipe.yaml"
        section = RECIPE | {"runs": str(folder), "data": RECIPE["data"] | {"path": data}}  # type: ignore[operator]
        recipe.write_text(yaml.safe_dump(section))
        launcher = [
            "torchrun",
            "--standalone",
            "--nproc-per-node",
            "2",
            "--max-restarts",
            str(restarts),
            "--",
        ]
        self.command = [sys.executable, "-m", "launch", *launcher, "--config", str(recipe)]
        self.log = folder / "stderr"

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = psutil.Popen(self.command, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def ranks(self) -> list[psutil.Process]:
        return sorted(self.process.children(), key=lambda rank: int(rank.environ()["RANK"]))

    def wait_for(self, happened: Callable[[], object]) -> None:
        while not happened():
            assert self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE, (
                self.log.read_text()
            )
            time.sleep(0.02)

    def rows_since(self, moment: float) -> int:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return sum(json.loads(line)["time"] > moment for line in lines if line.endswith("}"))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def recover(run: Run, launcher: bool, start_again: bool) -> float:
    """Return the seconds from the SIGKILL of the launcher, or of rank 1, to the next row."""
    run.wait_for(lambda: (run.folder / "checkpoints/latest").exists())
    ranks = run.ranks()
    killed = time.monotonic()
    (run.process if launcher else ranks[1]).kill()
    if start_again:
        run.process.wait()
        run.start()
    psutil.wait_procs(ranks)
    ended = time.time()  # rows written from now on come from new processes
    run.wait_for(lambda: run.rows_since(ended))
    return time.monotonic() - killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a packed data set")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    measured: dict[str, list[float]] = {}
    starts: dict[str, list[float]] = {}
    for _ in range(given.repeats):
        for what in ("one rank, --max-restarts", "one rank, started again", "launcher, started again"):
            with tempfile.TemporaryDirectory() as folder:
                run = Run(
                    str(Path(given.data).resolve()), Path(folder), restarts=int("--max-restarts" in what)
                )
                run.start()
                seconds = recover(run, "launcher" in what, start_again="again" in what)
                measured.setdefault(what, []).append(seconds)
                run.stop()
                for total, parts, cpu in re.findall(
                    r"^(.*) s from the start to the first step: (.*); (.*) s of CPU time$",
                    run.log.read_text(),
                    re.M,
                ):
                    starts.setdefault("total", []).append(float(total))
                    starts.setdefault("CPU time", []).append(float(cpu))
                    for part in parts.split(", "):
                        name, _, value = part.rpartition(" ")
                        starts.setdefault(name, []).append(float(value))
    print("SIGKILL to the next step, s: median (all)")
    for what, values in measured.items():
        print(f"  {what}: {statistics.median(values):.1f} ({', '.join(f'{x:.1f}' for x in values)})")
    print(f"start to first step on rank 0, s: median of {len(starts['total'])}")
    for part, values in starts.items():
        print(f"  {part}: {statistics.median(values):.1f}")
    print(subprocess.run(["uptime"], capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
