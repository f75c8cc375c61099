"""Train the same 12 steps on two CPU ranks again and again, and compare all that is logged, bit for bit.

    PYTHONPATH=. python benchmarks/same_bits.py FOLDER --runs 200

Each run is a line of FOLDER/runs.jsonl, so the command can be stopped and given again. It prints how many
runs logged the same, and for each other run the first step that differs, with its values.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
RECIPE = (
    "--config lejepa_vits16 name=run steps=12 log_every=1 data.batch_size=8 data.workers=0 data.channels=1 "
    "views.global_size=32 views.local_views=2 views.local_size=16 encoder.name=vit_tiny_patch16_224 "
    "encoder.kwargs.patch_size=8 encoder.kwargs.depth=2 encoder.kwargs.embed_dim=32 "
    "encoder.kwargs.num_heads=2 "
    "objective.sigreg.num_slices=64 objective.projector.hidden=32 objective.projector.width=8 "
    "optimizer.lr=1e-3 optimizer.warmup_steps=3 engine.kind=ddp engine.precision=fp32 "
    "engine.deterministic=true checkpoint.every=4 tracking.enabled=false"
)
TIMES = ("second", "wait", "slowest", "memory", "time")
"""Parts of the names of values that are expected to differ from run to run."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    log = given.folder / "runs.jsonl"
    given.folder.mkdir(parents=True, exist_ok=True)
    pack(given.folder)
    done = read(log)
    while len(done) < given.runs:
        rows = train(given.folder)
        with log.open("a") as file:
            file.write(json.dumps(rows) + "\n")
        done.append(rows)
    report(done)


def read(log: Path) -> list[list[dict[str, float]]]:
    """Return the rows of each finished run; a line that was cut off does not count."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("]")]


def pack(folder: Path) -> None:
    """Pack 60 random grey images, once."""
    if (folder / "packed/dataset.json").exists():
        return
    images, random = folder / "images", np.random.default_rng(0)
    images.mkdir(parents=True, exist_ok=True)
    for i in range(60):
        Image.fromarray(random.integers(0, 256, (40, 40), dtype=np.uint8)).save(images / f"{i:02d}.png")
    run(["-m", "data_pipeline", "pack", str(images), str(folder / "packed"), "--workers", "1"])


def train(folder: Path) -> list[dict[str, float]]:
    """Train once on two ranks, and return the rows of metrics.jsonl without times."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    recipe = [*RECIPE.split(), f"runs={folder}", f"data.path={folder / 'packed'}"]
    run(["-m", "launch", "torchrun", "--standalone", "--nproc-per-node", "2", "--", *recipe])
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in row.items() if not any(x in key for x in TIMES)} for row in rows]


def run(arguments: list[str]) -> None:
    """Run Python in the repository with one thread a process; end with its last line if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit((done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1])


def report(runs: list[list[dict[str, float]]]) -> None:
    """Print how many runs logged the most frequent values, and where each other run begins to differ."""
    counts = Counter(json.dumps(rows) for rows in runs)
    usual = json.loads(counts.most_common(1)[0][0])
    print(f"{counts.most_common(1)[0][1]} of {len(runs)} runs logged the same, to the last bit")
    for number, rows in enumerate(runs):
        for row, expected in zip(rows, usual, strict=True):
            if row != expected:
                off = {key: (row[key], expected[key]) for key in row if row[key] != expected.get(key)}
                print(f"run {number} differs from step {row['step']} on: {off}")
                break


if __name__ == "__main__":
    main()
