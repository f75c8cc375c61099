"""Measure start-up and speed of the sample order, on a simulated set of 10⁹ samples in 10⁵ remote shards.

Every figure is the best of several runs; prints a Markdown row for RESULTS.md.
"""

import argparse
import functools
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import DESCRIPTION, Description, Extent, Generation
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.moments import Moments
from data_pipeline.dataset.table_files import INDEX, ROW, SHARDS, shard_row
from data_pipeline.order import Order

SIZE = 100_000
"""Bytes of each sample."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--shards", type=int, default=10**5)
    parser.add_argument("--batch", type=int, default=1024)
    given = parser.parse_args()
    columns = [f"{given.samples:.0e} in {given.shards:.0e}"]
    for kind in "uniform", "windowed":
        orders = {sources: make_order(kind, sources, given.samples, given.batch) for sources in (1, 3)}
        with tempfile.TemporaryDirectory() as folder:
            _, _, indices = orders[1].locate(np.arange(given.batch))
            simulate(Path(folder), given.samples, given.shards, indices)
            open_ = functools.partial(first_batch, folder, orders[1], given.batch)
            columns.append(f"{best(open_, 9) * 1e3:.0f}")
        batch = np.arange(10**10, 10**10 + given.batch)
        for order in orders.values():
            columns.append(f"{given.batch / best(functools.partial(order.locate, batch), 300) / 1e6:.2f}")
    name = f"{platform.processor() or 'CPU'}, 1 thread"
    print(f"| {name} | numpy {np.__version__} | {' | '.join(columns)} | `python benchmarks/order.py` |")


def make_order(kind: Literal["uniform", "windowed"], sources: int, samples: int, batch_size: int) -> Order:
    """Return the order of several sources with equally many samples and the weights 1, 2, …."""
    weights = range(1, sources + 1)
    bytes_ = [samples * SIZE] * sources
    return Order([samples] * sources, weights, 0, kind, batch_size=batch_size, bytes=bytes_)


def first_batch(folder: str | Path, order: Order, batch_size: int) -> list[tuple[str, int, int]]:
    """Open the data set and return where the samples of the first batch lie."""
    _, _, indices = order.locate(np.arange(batch_size))
    return Dataset(folder).ranges(indices)


def best(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def simulate(folder: Path, samples: int, shards: int, indices: NDArray[np.int64]) -> None:
    """A data set of sparse files: all shards are named, but of the index only the rows `indices` are there.

    Sample i is the (i % m)-th of shard i // m, m = samples / shards, and begins at `SIZE` times that.
    """
    each = samples // shards
    index = np.lib.format.open_memmap(folder / INDEX, "w+", ROW, (samples,))
    rows = np.zeros(len(indices), dtype=ROW)
    rows["shard"], within = np.divmod(indices, each)
    rows["offset"], rows["size"] = within * SIZE, SIZE
    index[indices] = rows

    names = np.array([f"s3://bucket/{number:06d}.tar" for number in range(shards)], dtype=bytes)
    table = np.zeros(shards, dtype=shard_row(names.itemsize))
    table["name"], table["bytes"], table["samples"] = names, each * SIZE, each
    table["first"] = np.arange(shards) * each
    np.save(folder / SHARDS, table)

    side = Extent(min=256, median=256, max=256)
    generation = Generation(
        count=samples,
        shards=shards,
        bytes=samples * SIZE,
        classes=[],
        class_counts=[],
        channels=3,
        depth=8,
        sixteen_bit=0,
        extensions=["jpg"],
        extension_counts=[samples],
        mean=[0.5] * 3,
        std=[0.25] * 3,
        moments=Moments(pixels=0, totals=[0] * 3, squares=[0] * 3),
        width=side,
        height=side,
        skipped=0,
        split=None,
        plan="",
        fingerprint="0" * 16,
    )
    (folder / DESCRIPTION).write_text(Description(generations=[generation]).model_dump_json())


if __name__ == "__main__":
    main()
