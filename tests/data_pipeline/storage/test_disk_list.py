"""The list on the disk is a list: same elements, same order, also sorted, in part and in another process."""

import os
import random
import signal
import subprocess
import sys
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from data_pipeline.dataset.description import Split
from data_pipeline.packing.assignment import assign
from data_pipeline.packing.listing import Item, class_names
from data_pipeline.storage.disk_list import DiskList, batches
from isotorus.errors import UserError


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 1000])
def test_it_gives_back_what_was_added(length: int) -> None:
    numbers = DiskList(range(length))
    assert len(numbers) == length and list(numbers) == list(numbers) == list(range(length))
    for start, stop in ((0, length), (length // 3, length // 2), (length // 2, length), (length, length)):
        part = numbers.part(start, stop)
        assert len(part) == stop - start and list(part) == list(range(start, stop))


def test_it_sorts_as_sorted_does() -> None:
    drawn = random.Random(0)
    pairs = [(drawn.randrange(1000), i) for i in range(70_000)]  # more than are sorted at once
    assert list(DiskList(pairs).ordered(lambda pair: pair[0])) == sorted(pairs)


def test_a_part_is_read_in_another_process_and_outlives_the_list() -> None:
    numbers = DiskList(range(1000))
    part = numbers.part(300, 999)
    del numbers
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(sum, part).result() == sum(range(300, 999))


def test_a_part_of_a_part_is_read_too() -> None:
    part = DiskList(range(1000)).part(100, 900).part(200, 700)
    assert list(part) == list(range(300, 800))


def test_a_process_that_is_killed_leaves_no_file(tmp_path: Path) -> None:
    program = """
import os, signal
from data_pipeline.storage.disk_list import DiskList
numbers = DiskList(range(1000))
assert len(list(numbers.ordered(lambda x: -x))) == 1000
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(tmp_path)})
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_in_one_line() -> None:
    numbers = DiskList(range(10))
    said = pytest.raises(UserError, match=r"temporary files \(TMPDIR\): No space left .*; free some")
    with suppress(OSError), Path("/dev/full").open("wb") as numbers._file, said:  # closing it fails too
        for i in range(300):
            numbers.append(i)


def test_batches() -> None:
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.nightly
def test_planning_needs_no_more_memory_for_more_names() -> None:
    peaks = []
    for count in (35_000, 70_000):
        tracemalloc.start()
        names = (f"class{i % 50}/patient{i // 40}/{i}.jpg" for i in range(count))
        items = DiskList(Item(name, 10**5, 10**18, name.partition("/")[0]) for name in names)
        split = Split(val_fraction=0.1, test_fraction=0, grouped=False)
        assert assign(items, class_names(items), split, 10**8).fingerprint
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
