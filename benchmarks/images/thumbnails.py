"""Measure the CPU time of packing without a split, and with one, in which `pack` looks for near copies.

PYTHONPATH=. python benchmarks/images/thumbnails.py --images photos/
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

from data_pipeline.packing.pack import Options, pack


def seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    taken: dict[float, list[float]] = {0.0: [], 0.2: []}
    for _ in range(given.rounds):
        for fraction, times in taken.items():
            with tempfile.TemporaryDirectory() as folder:
                before = seconds()
                pack(
                    given.images, Path(folder) / "set", Options(val_fraction=fraction, allow_duplicates=True)
                )
                times.append(seconds() - before)
    for fraction, times in taken.items():
        median = statistics.median(times)
        print(f"val_fraction={fraction}: {median:.2f} s of CPU time ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
