"""python -m data_pipeline pack | index | verify | info | preview"""

import argparse
import contextlib
import os
import re
import sys
from pathlib import Path

from data_pipeline.dataset import info
from data_pipeline.dataset.description import subsets
from data_pipeline.packing.manifest import Columns
from data_pipeline.storage.reader import is_remote
from data_pipeline.verifying.verify import strangers, verify
from isotorus.errors import ArgumentParser, UserError, exit_code

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 done, 1 damage found. Raises `UserError` for what the user can mend."""
    args = _parser().parse_args(arguments)
    match args.command:
        case "pack":
            return _pack(args)
        case "index":
            return _index(args)
        case "verify":
            return _verify(args.dest, args.workers)
        case "preview":
            return _preview(args)
        case _:
            return _info(args.dest, args.json)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m data_pipeline", description="Pack images into shards, and check them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    pack = commands.add_parser("pack", help="images → WebDataset shards, index and statistics")
    pack.add_argument("source", type=Path, metavar="SRC", help="folder of the images")
    pack.add_argument("dest", type=_folder, metavar="DEST", help="folder for the shards")
    pack.add_argument(
        "--labels",
        help="'folder': class = first-level folder; or a CSV or Parquet file that lists the images",
    )
    pack.add_argument("--image-column", default="image", help="its column of paths relative to SRC")
    pack.add_argument("--label-column", default="label", help="its column of class names; empty = no label")
    pack.add_argument("--group-column", help="its column whose equal values are never split apart")
    pack.add_argument(
        "--group-pattern", help="instead: regular expression whose (group) in an image's path names its group"
    )
    pack.add_argument("--val-fraction", type=float, default=0.0, help="share that goes to DEST/val")
    pack.add_argument("--test-fraction", type=float, default=0.0, help="share that goes to DEST/test")
    pack.add_argument("--append", action="store_true", help="add the images that DEST does not have yet")
    pack.add_argument(
        "--channels", type=_positive, help="leave out images that cannot be had with so many channels"
    )
    pack.add_argument(
        "--shard-size", type=_size, default="256MB", help="about this much a shard (%(default)s)"
    )
    pack.add_argument("--workers", type=_positive, default=cores, help="processes (%(default)s)")
    pack.add_argument("--strict", action="store_true", help="refuse if any file would have to be left out")

    point = commands.add_parser("index", help="tars that are there already → index and statistics")
    point.add_argument("tars", nargs="+", metavar="TARS", help="WebDataset tars, or folders or URLs of them")
    point.add_argument("dest", metavar="DEST", help="folder for the index; may be that of the tars")
    point.add_argument("--label-key", help="field of the samples' .json that is the label; default: the .cls")
    point.add_argument("--classes", type=Path, help="file of class names, one a line, for labels by number")
    point.add_argument("--image-extension", help="e.g. left.png, where samples have several images")
    point.add_argument(
        "--channels", type=_positive, help="leave out images that cannot be had with so many channels"
    )
    point.add_argument("--append", action="store_true", help="add the tars that DEST does not have yet")
    point.add_argument("--workers", type=_positive, default=cores, help="processes (%(default)s)")
    point.add_argument("--strict", action="store_true", help="refuse if any image cannot be read")

    check = commands.add_parser("verify", help="check every byte; exit code 1 if there is damage")
    check.add_argument("dest", metavar="DEST")
    check.add_argument("--workers", type=_positive, default=cores, help="processes (%(default)s)")

    show = commands.add_parser("info", help="what a packed data set holds")
    show.add_argument("dest", metavar="DEST")
    show.add_argument("--json", action="store_true", help="for scripts")

    page = commands.add_parser("preview", help="a page of what the encoder will see")
    page.add_argument("dest", metavar="DEST", help="a packed data set, or the folder of a split")
    page.add_argument("--config", help="a recipe's YAML file, or the name of a packaged one")
    page.add_argument("--out", type=Path, required=True, metavar="PAGE.html", help="is written over")
    page.add_argument("--samples", type=_positive, default=24, help="images shown (%(default)s)")
    page.add_argument("--seed", type=int, default=0, help="another shows other images (%(default)s)")
    page.add_argument("--workers", type=_positive, default=cores, help="processes (%(default)s)")
    page.add_argument("--json", action="store_true", help="print what was found for scripts")
    return parser


def _folder(text: str) -> Path:
    if is_remote(text):
        raise argparse.ArgumentTypeError(
            f"{text} is no folder on a disk; pack into one, and copy it to the store"
        )
    return Path(text)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 256MB, got {text!r}")
    return max(int(float(match[1]) * _UNITS[match[2]]), 1)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _pack(args: argparse.Namespace) -> int:
    from data_pipeline.packing.pack import Options, pack  # here, as the other commands need no decoders

    if min(args.val_fraction, args.test_fraction) < 0 or args.val_fraction + args.test_fraction >= 1:
        raise UserError(
            f"--val-fraction {args.val_fraction:g} --test-fraction {args.test_fraction:g}: "
            "expected shares from 0 that are less than 1 together"
        )
    if args.group_column is not None and args.labels in (None, "folder"):
        raise UserError("--group-column names a column of a table; give that with --labels FILE.csv")
    if args.group_column is not None and args.group_pattern is not None:
        raise UserError("--group-column and --group-pattern both say what a group is; give one of them")
    columns = Columns(args.image_column, args.label_column, args.group_column)
    options = Options(
        labels=args.labels,
        columns=columns,
        group_pattern=args.group_pattern,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        channels=args.channels,
        shard_size=args.shard_size,
        append=args.append,
        workers=args.workers,
        strict=args.strict,
    )
    print(pack(args.source, args.dest, options))
    return 0


def _index(args: argparse.Namespace) -> int:
    from data_pipeline.existing_tars.tar_index import Options, index
    from data_pipeline.existing_tars.tar_scan import Rule

    extension = args.image_extension and args.image_extension.lower().removeprefix(".")
    options = Options(
        rule=Rule(extension, args.label_key, args.channels),
        classes=args.classes,
        append=args.append,
        workers=args.workers,
        strict=args.strict,
    )
    print(index(args.tars, args.dest, options))
    return 0


def _verify(dest: str, workers: int) -> int:
    folders = subsets(dest) or [dest]
    damage = [line for folder in folders for line in verify(folder, workers)]
    for line in damage:
        print(f"damage: {line}")
    if damage:
        print(
            f"{dest}: {len(damage)} damage{'s' * (len(damage) > 1)} found; bring back the files named above "
            "from a copy. Without one: pack again, or if only index.npy, shards.npy or dataset.json is "
            f"damaged, make them anew with: python -m data_pipeline index {dest} NEW_FOLDER"
        )
        return 1
    for folder in folders:
        if unknown := strangers(folder):
            print(f"note: {folder} holds tars that are not in the data set: {', '.join(unknown)}")
    print(f"{dest}: whole")
    return 0


def _info(dest: str, as_json: bool) -> int:
    sets = subsets(dest)
    folders = sets or [dest]
    if as_json:
        print(info.as_json(folders, split=bool(sets)))
    else:
        print("\n".join(map(info.as_text, folders)))
    return 0


def _preview(args: argparse.Namespace) -> int:
    # Here, because torch takes seconds that the other commands need not wait.
    from data_pipeline.preview import preview

    with contextlib.redirect_stdout(sys.stderr):  # the progress, so that scripts can read the result
        found = preview(
            args.dest, args.config, args.out, samples=args.samples, seed=args.seed, workers=args.workers
        )
    print(found.as_json() if args.json else found.as_text())
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
