"""Measure training steps on CPUs with several settings of environment variables, which take turns.

    python benchmarks/surroundings.py configs/quickstart.yaml data.path=data/solar-cells/train \
        --setting THP_MEM_ALLOC_ENABLE=0 --setting THP_MEM_ALLOC_ENABLE=1

For each setting, `--rounds` runs are started. Prints a Markdown row for RESULTS.md for each setting, with
medians over its runs: the seconds of a forward and of a backward pass (medians over steps, without the first
steps), the CPU seconds of the training process (user + system), and its largest memory in GiB.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
WARM_UP = 3
"""Number of steps at the start of a run that are not counted."""
_RUN = """
import resource, runpy, sys
sys.argv[0] = "pretrain"
try:
    runpy.run_module("pretrain", run_name="__main__")
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("USED", used.ru_utime, used.ru_stime, used.ru_maxrss)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="dotted.key=value")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE[,NAME=VALUE…]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {setting: [] for setting in given.setting}
    for _ in range(given.rounds):
        for setting in given.setting:
            found[setting].append(measure(given.config, given.overrides, setting, given.steps))
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    for setting, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        passes = f"{middle['forward']:.3f} | {middle['backward']:.3f}"
        used = f"{middle['user']:.1f} + {middle['system']:.1f} | {middle['memory']:.2f}"
        print(
            f"| {machine} | torch {torch.__version__} | {given.config.stem} | {setting} | {passes} | {used} |"
        )


def measure(config: Path, overrides: list[str], setting: str, steps: int) -> dict[str, float]:
    """Return the seconds of a step's passes, the CPU seconds of a whole run and its memory in GiB."""
    variables = dict(pair.split("=", 1) for pair in setting.split(","))
    with tempfile.TemporaryDirectory() as folder:
        own = [f"runs={folder}", "name=run", f"steps={steps}", "log_every=1", "tracking.enabled=false"]
        done = subprocess.run(
            [sys.executable, "-c", _RUN, "--config", str(config), *overrides, *own],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
            capture_output=True,
            text=True,
        )
        if "USED" not in done.stdout:
            sys.exit(done.stderr)
        rows = [
            json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        ]
    user, system, memory = (float(each) for each in done.stdout.split("USED")[1].split())
    counted = rows[WARM_UP:]
    return {
        "forward": statistics.median(row["seconds_forward"] for row in counted),
        "backward": statistics.median(row["seconds_backward"] for row in counted),
        "user": user,
        "system": system,
        "memory": memory / 2**20,
    }


if __name__ == "__main__":
    main()
