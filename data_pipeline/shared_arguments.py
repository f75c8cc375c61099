"""Arguments that several commands of `python -m data_pipeline` share."""

import argparse
from pathlib import Path

from data_pipeline.storage.reader import is_remote
from data_pipeline.tables.cells import MISSING, cell_list
from isotorus.numbers import positive
from isotorus.processes import usable_cores


def add_missing(parser: argparse.ArgumentParser) -> None:
    """Add --missing."""
    text = f"labels that mean 'no label', besides empty ones (default: {','.join(MISSING)}, and -1 where "
    text += "classes are whole numbers)"
    parser.add_argument("--missing", metavar="A,B,…", type=cell_list, help=text)


def add_channels(parser: argparse.ArgumentParser) -> None:
    """Add --channels."""
    text = "leave out images that cannot be converted to this number of channels (1 and 3 can be converted)"
    parser.add_argument("--channels", type=positive, help=text)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add --workers."""
    text = "number of processes (default: the number of CPU cores, here %(default)s)"
    parser.add_argument("--workers", type=positive, default=usable_cores(), help=text)


def local_folder(text: str) -> Path:
    """Read the path of a local data set from the command line."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(
            f"{text} is no folder on a disk; pack into one, and copy it to the store"
        )
    return Path(text)
