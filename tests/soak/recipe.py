"""The run of the soak, and its images."""

import shutil
from pathlib import Path

from benchmarks.same_bits import RECIPE, pack

PORT = 9000
ENDLESS = 10**9
"""Steps of the run, which the learning rate does not depend on."""
EVERY = 25
"""Steps between checkpoints."""
KEPT = 3
"""Number of checkpoints that are kept."""


def options(folder: Path, data: str, steps: int) -> list[str]:
    """Return the arguments of `isotorus train`."""
    mine = {
        "name": "run",
        "runs": folder,
        "steps": steps,
        "data.path": data,
        "data.workers": 1,
        "data.batch_size": 32,
        "optimizer.final_lr_ratio": 1,
        "optimizer.warmup_steps": 100,
        "checkpoint.every": EVERY,
        "checkpoint.keep_last": KEPT,
    }
    kept = [each for each in RECIPE.split() if each.partition("=")[0] not in mine]
    return kept + [f"{key}={value}" for key, value in mine.items()]


def prepare(folder: Path) -> Path:
    """Pack the images once; return the folder of the store's buckets."""
    pack(folder)
    bucket = folder / "s3/bucket"
    if not bucket.exists():
        shutil.copytree(folder / "packed", bucket / "images")
    return folder / "s3"
