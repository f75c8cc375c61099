import runpy
import sys
import tracemalloc
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
import pytest

from data_pipeline.order import Order

BENCHMARK = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks/order.py"))
SIZE, BATCH = BENCHMARK["SIZE"], 1024


def lines_of_python(folder: Path, order: Order) -> int:
    """How many lines are executed till the first batch's addresses are there."""
    lines = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        BENCHMARK["first_batch"](folder, order, BATCH)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("kind", ["uniform", "windowed"])
def test_a_billion_samples_open_like_a_thousand_times_fewer(tmp_path: Path, kind: str) -> None:
    lines = []
    for samples, shards in (10**6, 10**3), (10**9, 10**5):
        order = Order([samples], [1], 7, kind, batch_size=BATCH, bytes=[samples * SIZE])
        _, _, indices = order.locate(np.arange(BATCH))
        folder = tmp_path / str(shards)
        folder.mkdir()
        BENCHMARK["simulate"](folder, samples, shards, indices)

        process = psutil.Process()
        resident = process.memory_info().rss
        tracemalloc.start()
        addresses = BENCHMARK["first_batch"](folder, order, BATCH)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1e6  # 10 bytes a shard would be more
        assert process.memory_info().rss - resident < 30e6  # of pages of 39 GB

        each = samples // shards
        expected = [(f"s3://bucket/{i // each:06d}.tar", i % each * SIZE, SIZE) for i in indices.tolist()]
        assert addresses == expected
        lines.append(lines_of_python(folder, order))
    assert lines[1] < 1.1 * lines[0]
