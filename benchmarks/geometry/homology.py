"""Measure time and peak memory of homology to dimension 2 of a noisy flat torus in R⁶⁴, ours and plain
ripser.

Each figure comes from a process of its own; prints Markdown rows for RESULTS.md. Plain ripser is stopped at
its limits, because 1,000 landmarks take more than 10 GB.
"""

import argparse
import contextlib
import importlib.metadata
import platform
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
from joblib.externals.loky import get_reusable_executor
from scipy.spatial.distance import pdist, squareform

from eval_suite.geometry import homology, known_spaces, landmarks

RUNS = [("significance", 500), ("barcode", 500), ("plain", 500), ("barcode", 1000), ("plain", 1000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--plain-seconds", type=int, default=170, help="plain ripser's bound")
    parser.add_argument("--plain-gigabytes", type=float, default=8, help="plain ripser's bound")
    parser.add_argument("--case", choices=sorted({case for case, _ in RUNS}), help="only this, here")
    parser.add_argument("--landmarks", type=int, default=500)
    given = parser.parse_args()
    if given.case:
        measure(given)
        return
    print("| machine | versions | what | landmarks | found | seconds | CPU seconds | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for case, count in [
        ("significance", 500),
        ("barcode", 500),
        ("plain", 500),
        ("barcode", 1000),
        ("plain", 1000),
    ]:
        command = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--landmarks", str(count)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        words = outcome.stdout.strip() or f"stopped (exit {outcome.returncode}) | | | "
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ripser", "numba"))
        name = f"{platform.processor() or 'CPU'}, {given.jobs} processes"
        print(f"| {name} | {versions} | {case} | {count} | {words} |", flush=True)


def measure(given: argparse.Namespace) -> None:
    x = known_spaces.sample("flat torus", given.samples, 64, given.noise, seed=0)
    # Code that numba compiles once and keeps on disk is not timed.
    homology.barcodes(x[:20])
    if given.case == "significance":
        began = Clocks()
        found = homology.betti(x, count=given.landmarks, draws=given.draws, jobs=given.jobs)
        report(f"{found.betti[2]}, {found.betti[3]}", began)
        return
    cloud = landmarks.cloud(landmarks.reduce(x), given.landmarks)
    points = cloud.denoised[cloud.landmarks]
    if given.case == "barcode":
        began = Clocks()
        threshold = homology.last_death(squareform(pdist(points)), 2)
        bars = homology.barcodes(points, threshold=threshold)
    else:
        from ripser import ripser

        space = int(given.plain_gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_CPU, (given.plain_seconds, given.plain_seconds + 5))
        began = Clocks()
        bars = ripser(points, maxdim=2)["dgms"]
    longest = [np.sort(rows[:, 1] - rows[:, 0])[::-1][:3].round(2).tolist() for rows in bars[1:]]
    report(f"longest {longest[0]}, {longest[1]}", began)


class Clocks:
    """Time and memory of this process and its children from the creation of this object on."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.peak = time.perf_counter(), cpu_seconds(), 0
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self.ended.wait(0.05):
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [process, *process.children(recursive=True)]
                self.peak = max(self.peak, sum(one.memory_info().rss for one in family))


def cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def report(found: str, clocks: Clocks) -> None:
    wall = time.perf_counter() - clocks.wall
    clocks.ended.set()
    # While ripser runs in this process nothing is sampled; the kernel keeps that peak.
    peak = max(clocks.peak, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    # Children's time counts once they have ended.
    get_reusable_executor().shutdown(wait=True)
    print(f"{found} | {wall:.0f} | {cpu_seconds() - clocks.cpu:.0f} | {peak / 1e6:.0f}")


if __name__ == "__main__":
    main()
