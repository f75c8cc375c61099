"""Measure the recall of the winding memory against the number of items, and of FAISS in equal memory.

    python -m benchmarks.memory [--angles 8] [--noise 0.4]

Items are uniform on T^m, so there is no structure that a store could use. Each query is a stored item with a
little noise and counts as recalled if that item is the first answer. The winding memory takes m + 12 bytes an
item, and a few for its cells. At equal memory FAISS holds as many of the items as fit into the same bytes: 8m
bytes of float32 cosines and sines and 8 for the id with Flat and IVF, 2m and 8 with 8-bit quantisation (SQ8),
m/2 and 8 with product codes (PQ). The recall of each with all items is given too.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from eval_suite.usefulness.angle_retrieval import bins_for
from pretrain.geometry.memory import WindingMemory

ITEMS = (1_000, 10_000, 100_000)
QUERIES = 300
CELLS = 32


def circles(angles: NDArray[np.float64]) -> NDArray[np.float32]:
    pairs = np.stack([np.cos(angles), np.sin(angles)], axis=2)
    return np.ascontiguousarray(pairs.reshape(len(angles), -1), dtype=np.float32)


def indexes(m: int, n: int) -> dict[str, tuple[int, Callable[[], faiss.Index]]]:
    """Return the bytes an item takes, and a function that makes an empty index, for each kind of index."""
    d, lists = 2 * m, max(1, int(n**0.5))

    def ivf(make: Callable[[faiss.Index], faiss.Index]) -> Callable[[], faiss.Index]:
        def build() -> faiss.Index:
            index = make(faiss.IndexFlatL2(d))
            index.nprobe = min(lists, CELLS)
            return index

        return build

    return {
        "Flat": (4 * d + 8, lambda: faiss.IndexFlatL2(d)),
        "IVF": (4 * d + 8, ivf(lambda q: faiss.IndexIVFFlat(q, d, lists))),
        "SQ8": (d + 8, lambda: faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_8bit)),
        "PQ": (d // 4 + 8, lambda: faiss.IndexPQ(d, d // 4, 8)),
    }


def clock(search: Callable[..., Any], *arguments: object) -> tuple[Any, float]:
    """Return the answer to all queries, and microseconds a query."""
    started = time.perf_counter()
    answer = search(*arguments)
    return answer, (time.perf_counter() - started) / QUERIES * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--angles", type=int, default=8)
    parser.add_argument("--noise", type=float, default=0.4, help="radians, of every angle (default 0.4)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    random = np.random.default_rng(given.seed)
    print("items  store                    bytes an item  held   recall   µs a query")
    for n in ITEMS:
        angles = random.uniform(-np.pi, np.pi, (n, given.angles))
        wanted = random.integers(0, n, QUERIES)
        queries = angles[wanted] + given.noise * random.standard_normal((QUERIES, given.angles))
        memory = WindingMemory(given.angles, bins_for(n, given.angles))
        memory.add(angles, np.arange(n))
        budget = memory.nbytes
        for cells, name in ((CELLS, f"winding, {CELLS} cells"), (None, "winding, exact")):
            found, micro = clock(memory.query, queries, 1, cells)
            show(n, name, budget / n, 1.0, (found.ids[:, 0] == wanted).mean(), micro)
        x, q = circles(angles), circles(queries)
        for name, (size, build) in indexes(given.angles, n).items():
            for held, title in ((min(n, budget // size), f"{name}, same bytes"), (n, f"{name}, all items")):
                index = build()
                # Items are in random order, so the first ones are a random part.
                index.train(x)
                index.add(x[:held])
                (_, ids), micro = clock(index.search, q, 1)
                show(n, title, size, held / n, (ids[:, 0] == wanted).mean(), micro)


def show(n: int, name: str, size: float, held: float, recall: float, microseconds: float) -> None:
    print(
        f"{n:>7} {name:<24} {size:>12.1f} {100 * held:>5.0f} % {100 * recall:>6.1f} % {microseconds:>10.0f}"
    )


if __name__ == "__main__":
    main()
