"""Measure what each part of an evaluation costs.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py ARCHIVE [--images 10000] [-- --metrics probe,knn …]

ARCHIVE is a tar of image files in a folder for each class, such as CIFAR-10's. So many of its images, drawn
at random, are packed into train, val and test (70, 15, 15 %), and a ViT of 4 blocks of 96, as it is
initialised, is evaluated on them by the command; what follows -- is passed on to it. Prints for each activity
that the command names while it works the seconds by the clock and the CPU seconds of the process (those of
its own processes are in the last row), and the load of the machine: other work on it disturbs CPU seconds
least.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import timm
from safetensors.torch import save_file

from data_pipeline.__main__ import main as data_main
from eval_suite import progress
from eval_suite.__main__ import main as eval_main

KWARGS = {"patch_size": 4, "depth": 4, "embed_dim": 96, "num_heads": 3, "num_classes": 0, "in_chans": 3}


class Costs:
    """Seconds and CPU seconds of each activity, which begins when the command names it."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.activity, self.began = "start", (time.perf_counter(), time.process_time())

    def doing(self, activity: str) -> None:
        """Add what was spent since the last call to the last activity, and begin another one."""
        now = time.perf_counter(), time.process_time()
        for i in (0, 1):
            self.spent[self.activity][i] += now[i] - self.began[i]
        self.activity, self.began = activity.split(", ")[0], now


def take(archive: str, images: int, size: int, out: Path) -> None:
    """Unpack `images` files of a tar of folders, drawn at random, and save a checkpoint for `size` pixels."""
    with tarfile.open(archive) as tar:
        names = sorted(m.name for m in tar if m.isfile())
    chosen = set(np.random.default_rng(0).permutation(names)[:images].tolist())
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name in chosen:
                _, label, name = member.name.split("/")[-3:]
                file = out / "images" / label / f"{member.name.split('/')[0]}-{name}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(tar.extractfile(member).read())
    kwargs = KWARGS | {"img_size": size}
    model = timm.create_model("vit_tiny_patch16_224", **kwargs)
    (out / "model").mkdir()
    save_file(model.state_dict(), out / "model/encoder.safetensors")
    described = {"name": "vit_tiny_patch16_224", "kwargs": kwargs, "embedding_width": KWARGS["embed_dim"]}
    described |= {"image_size": size, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    (out / "model/encoder.json").write_text(json.dumps({"format": 1, **described, "seed": 0, "step": 0}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32)
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    ours, passed = sys.argv[1:at], sys.argv[at + 1 :]
    given = parser.parse_args(ours)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        take(given.archive, given.images, given.size, out)
        divided = [
            "--labels",
            "folder",
            "--val-fraction",
            "0.15",
            "--test-fraction",
            "0.15",
            "--allow-duplicates",
        ]
        with contextlib.redirect_stdout(sys.stderr):
            data_main(["pack", str(out / "images"), str(out / "set"), *divided])
        data = [part for name in ("train", "val", "test") for part in (f"--{name}", str(out / "set" / name))]
        sys.argv = ["eval_suite", str(out / "model"), *data, *passed]
        costs = Costs()
        progress.doing = costs.doing
        code = eval_main()
        costs.doing("end")
    print(
        f"\n{given.images:,} images, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, exit {code}\n"
    )
    print("| activity | s | CPU s |\n|---|---|---|")
    for activity, (wall, cpu) in sorted(costs.spent.items(), key=lambda item: -item[1][1]):
        print(f"| {activity} | {wall:.1f} | {cpu:.1f} |")
    total = np.sum(list(costs.spent.values()), axis=0)
    print(f"| all | {total[0]:.1f} | {total[1]:.1f} |")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"| its processes | | {children.ru_utime + children.ru_stime:.1f} |")


if __name__ == "__main__":
    main()
