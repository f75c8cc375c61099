"""Measure the memory that `pack` takes for the names of images, before any is read.

Prints a Markdown row for RESULTS.md. The names are made, not read from a folder.
"""

import argparse
import resource
import sys

from data_pipeline.dataset.description import Split
from data_pipeline.packing.assignment import assign
from data_pipeline.packing.listing import Item


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", type=int, help="number of names")
    count = parser.parse_args().names
    before = peak()
    classes = [f"class{i:02d}" for i in range(50)]
    items = []
    for i in range(count):
        label = sys.intern(classes[i % 50])
        items.append(Item(f"{label}/patient_{i // 40:06d}/image_{i:08d}.jpg", 100_000, 10**18 + i, label))
    split = Split(val_fraction=0.1, test_fraction=0, grouped=False, by_column=False)
    assigned = assign(items, classes, split, 256 * 10**6)
    assert assigned.fingerprint
    taken = peak() - before
    print(f"| {count} | {taken / 2**20:.0f} | {taken / count:.0f} | `{COMMAND} {count}` |")


COMMAND = "PYTHONPATH=. python benchmarks/images/listing.py"


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
