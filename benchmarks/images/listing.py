"""Measure what `pack` takes for the names of images, from the folder or table to the tasks, before any is
read.

Makes a folder of empty files named like images, and a table that lists them with a class, a group and a text
for each. If these are there, prints a Markdown row for RESULTS.md: the peak memory of the process in MiB,
first with the libraries alone, and its CPU time in µs a name.
"""

import argparse
import os
import resource
import time
from collections import Counter
from pathlib import Path

from data_pipeline.dataset_writer.staging import Base, State
from data_pipeline.decoders.intensity import NONE
from data_pipeline.decoders.pixels import NEWEST_RULES
from data_pipeline.packing import build, pack
from data_pipeline.packing.assignment import assign
from data_pipeline.packing.listing import class_names
from data_pipeline.packing.manifest import Columns
from data_pipeline.packing.pack import Options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", type=int, help="number of names")
    parser.add_argument("folder", type=Path, help="folder for the empty files")
    parser.add_argument("--table", action="store_true", help="list the images in a table, with groups")
    given = parser.parse_args()
    source = given.folder / str(given.names)
    table = source.with_suffix(".csv")
    if not table.exists():
        make(source, table, given.names)
        return  # another process measures, whose memory has held nothing else
    options = Options(labels="folder", val_fraction=0.1)
    if given.table:
        options = Options(labels=table, columns=Columns(group="patient"), val_fraction=0.1)
    before, start = peak(), time.process_time()
    plan(source, options)
    cpu = (time.process_time() - start) / given.names * 1e6
    what = "table with groups" if given.table else "folder"
    print(f"| {what} | {given.names} | {before / 2**20:.0f} | {peak() / 2**20:.0f} | {cpu:.0f} |")


def make(source: Path, table: Path, count: int) -> None:
    """Make `count` empty files in 50 classes, with 40 for each patient, and the table that lists them."""
    rows = []
    for i in range(count):
        folder = f"class{i // 40 % 50:02d}/patient_{i // 40:06d}"
        if i % 40 == 0:
            (source / folder).mkdir(parents=True)
        os.close(os.open(source / folder / f"image_{i:08d}.jpg", os.O_CREAT))
        rows.append(f"{folder}/image_{i:08d}.jpg,class{i // 40 % 50:02d},{i // 40},a text about image {i}\n")
    table.write_text("image,label,patient,text\n" + "".join(rows))


def plan(source: Path, options: Options) -> None:
    """Do what `pack` does before it opens an image."""
    items, _ = pack._list(source, options, Counter())
    assigned = assign(items, class_names(items), options.split, options.shard_size)
    bases = {name: Base(generation=0, next_shard=0) for name in assigned.sets}
    state = State(
        plan=assigned.fingerprint, bases=bases, channels=None, pixel_rules=NEWEST_RULES, intensity=NONE
    )
    tasks = build._tasks(source, source / "not-written", assigned, state)
    assert sum(len(task.items) for of_set in tasks.values() for task in of_set) == len(items)


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
