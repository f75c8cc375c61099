"""Compare the k-NN graph and ten eigenvalues of its Laplacian with scikit-learn's graph and scipy's eigsh.

    python benchmarks/geometry/graph.py [--data clusters torus latent noise] [--threads 2] [--n 50000]

Both sides make the graph A of the k nearest neighbours by Euclidean distance, symmetric by union, with
entries 1, and take the 11 largest eigenvalues of D^-½ A D^-½; scipy's `eigsh(which="LA")` has its defaults.
Ours may search by cells, so the recall is printed, and the largest relative difference of eigenvalues. Each
side runs in its own process with `--threads` threads; data, imports and compiled code are ready before the
clock starts.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA = {
    "clusters": "100 clusters, each Gaussian in 16 dimensions of its own, and noise",
    "torus": "flat torus and noise",
    "latent": "8 latent dimensions through a random tanh layer, and noise",
    "noise": "isotropic Gaussian",
}


def make(kind: str, n: int, d: int) -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    noise = random.standard_normal((n, d), dtype=np.float32)
    if kind == "noise":
        return noise
    if kind == "clusters":
        centre, frame = random.normal(size=(100, d)), random.normal(size=(100, 16, d)) / 4
        label = random.integers(100, size=n)
        x = centre[label] + 0.3 * noise
        for cluster in range(100):
            rows = label == cluster
            x[rows] += random.normal(size=(int(rows.sum()), 16)) @ frame[cluster]
        return x.astype(np.float32)
    if kind == "torus":
        angles = random.uniform(0, 2 * np.pi, (n, 2))
        frame, _ = np.linalg.qr(random.normal(size=(d, 4)))
        x = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) @ frame.T
        return (x + 0.1 / np.sqrt(d) * noise).astype(np.float32)
    hidden = np.tanh(random.normal(size=(n, 8)) @ random.normal(size=(8, 256)) / np.sqrt(8))
    return (hidden @ random.normal(size=(256, d)) / 16 + 0.1 * noise).astype(np.float32)


def theirs(x: NDArray[np.float32], k: int) -> dict[str, object]:
    import scipy.sparse
    from scipy.sparse.linalg import eigsh
    from sklearn.neighbors import kneighbors_graph

    clock = Clock()
    adjacency = kneighbors_graph(x, k, n_jobs=int(os.environ["OMP_NUM_THREADS"]))
    adjacency = adjacency.maximum(adjacency.T).tocsr()
    graph_time = clock.lap()
    scale = scipy.sparse.diags_array(1 / np.sqrt(np.asarray(adjacency.sum(axis=1)).ravel()))
    values = eigsh(scale @ adjacency @ scale, k=11, which="LA", return_eigenvectors=False)
    return {"graph": graph_time, "spectrum": clock.lap(), "eigenvalues": sorted(1 - values)[1:], "recall": 1}


def ours(x: NDArray[np.float32], k: int) -> dict[str, object]:
    from eval_suite.geometry import graph, nearest

    graph.laplacian_spectrum(graph.knn_graph(x[:1500], k), 10)
    clock = Clock()
    found = nearest.neighbours(x, k)
    adjacency = graph.from_neighbours(found.ids)
    graph_time = clock.lap()
    spectrum = graph.laplacian_spectrum(adjacency, 10)
    zeros = [0.0] * (spectrum.components - 1)
    values = [*zeros, *spectrum.eigenvalues.tolist()][:10]
    return {"graph": graph_time, "spectrum": clock.lap(), "eigenvalues": values, "recall": found.recall}


class Clock:
    """A clock for time by the clock and CPU time of all cores."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def lap(self) -> tuple[float, float]:
        """Return the seconds by the clock and of all cores since the last lap."""
        now = time.perf_counter(), time.process_time()
        wall, cpu = now[0] - self.start[0], now[1] - self.start[1]
        self.start = now
        return wall, cpu


def in_own_process(who: str, kind: str, arguments: argparse.Namespace) -> dict[str, object]:
    threads = str(arguments.threads)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    # Waiting threads sleep, so that CPU time counts work alone.
    environment = os.environ | dict.fromkeys(names, threads) | {"OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, __file__, "--run", who, "--data", kind, "--n", str(arguments.n)]
    command += ["--d", str(arguments.d), "--k", str(arguments.k)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--d", type=int, default=384)
    parser.add_argument("--k", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--run", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        sys.path.insert(0, str(Path(__file__).parents[2]))
        x = make(arguments.data[0], arguments.n, arguments.d)
        print(json.dumps({"ours": ours, "theirs": theirs}[arguments.run](x, arguments.k)))
        return
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("numpy", "scipy", "scikit-learn", "numba"))
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads; {versions}")
    for kind in arguments.data:
        rows = {}
        for who in ("ours",) if arguments.only_ours else ("ours", "theirs"):
            rows[who] = found = in_own_process(who, kind, arguments)
            times = "; ".join(
                f"{part} {found[part][0]:.1f} s ({found[part][1]:.1f} of CPU)"
                for part in ("graph", "spectrum")
            )
            print(f"{kind} ({DATA[kind]}), {who}: {times}; recall {found['recall']:.4f}", flush=True)
        if len(rows) == 2:
            wall, cpu = (
                sum(rows["theirs"][part][i] for part in ("graph", "spectrum"))
                / sum(rows["ours"][part][i] for part in ("graph", "spectrum"))
                for i in (0, 1)
            )
            mine, other = (np.array(rows[who]["eigenvalues"]) for who in ("ours", "theirs"))
            error = np.abs(mine - other).max() / max(other.max(), 1e-6)
            print(f"{kind}: {wall:.1f} times faster ({cpu:.1f} in CPU time), eigenvalues within {error:.1e}")


if __name__ == "__main__":
    main()
