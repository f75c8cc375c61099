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
from data_pipeline.verifying.verify import unknown_tars, verify
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
        prog="python -m data_pipeline",
        description="Pack images into data sets for training, check them and look at them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_pack(commands.add_parser("pack", help="turn a folder of images into a data set for training"))
    _add_index(commands.add_parser("index", help="make a data set of existing WebDataset tar files"))

    check = commands.add_parser(
        "verify", help="check every byte of a data set; exit code 1 if any is damaged"
    )
    check.add_argument("dest", metavar="DEST", help="folder or URL of a data set")
    _add_workers(check)

    show = commands.add_parser("info", help="show what a data set contains")
    show.add_argument("dest", metavar="DEST", help="folder or URL of a data set")
    show.add_argument("--json", action="store_true", help="print JSON, for scripts")

    page = commands.add_parser("preview", help="write an HTML page that shows what the encoder will see")
    page.add_argument("dest", metavar="DEST", help="folder or URL of a data set, or the folder of a split")
    page.add_argument("--config", help="YAML file of a training recipe, or the name of a packaged recipe")
    page.add_argument(
        "--out", type=Path, required=True, metavar="PAGE.html", help="file to write; replaced if it exists"
    )
    page.add_argument(
        "--samples", type=_positive, default=24, help="number of images to show (default %(default)s)"
    )
    page.add_argument(
        "--seed", type=int, default=0, help="seed that chooses the images to show (default %(default)s)"
    )
    _add_workers(page)
    page.add_argument("--json", action="store_true", help="print the summary as JSON, for scripts")
    return parser


def _add_pack(pack: argparse.ArgumentParser) -> None:
    pack.add_argument("source", type=Path, metavar="SRC", help="folder that contains the images")
    pack.add_argument("dest", type=_folder, metavar="DEST", help="local folder to write the data set to")
    pack.add_argument(
        "--labels",
        help="'folder': the class of an image is the first folder in its path; or a CSV or Parquet file "
        "with one row for each image",
    )
    pack.add_argument(
        "--image-column",
        default="image",
        help="column of the --labels file with the paths of the images relative to SRC (default %(default)s)",
    )
    pack.add_argument(
        "--label-column",
        default="label",
        help="column of the --labels file with class names; an empty cell means no label (default %(default)s)",
    )
    pack.add_argument(
        "--group-column",
        help="column of the --labels file, e.g. the patient; images with equal values go to the same side of "
        "the split",
    )
    pack.add_argument(
        "--group-pattern",
        help="alternative to --group-column: a regular expression such as 'patient([0-9]+)'; the part of the "
        "path in parentheses is the group",
    )
    for name in ("val", "test"):
        pack.add_argument(
            f"--{name}-fraction",
            type=float,
            default=0.0,
            help=f"fraction of the images (or groups) to put into DEST/{name} (default %(default)s)",
        )
    pack.add_argument(
        "--append", action="store_true", help="add to an existing data set the images it does not contain yet"
    )
    _add_channels(pack)
    pack.add_argument(
        "--shard-size", type=_size, default="256MB", help="approximate size of a shard (default %(default)s)"
    )
    _add_workers(pack)
    pack.add_argument(
        "--strict", action="store_true", help="stop with an error if any file would be left out"
    )


def _add_index(index: argparse.ArgumentParser) -> None:
    index.add_argument(
        "tars", nargs="+", metavar="TARS", help="WebDataset tar files, or folders or URLs that contain them"
    )
    index.add_argument(
        "dest", metavar="DEST", help="local folder to write the index to; may be the folder of the tar files"
    )
    index.add_argument(
        "--label-key",
        help="field of each sample's .json file that contains its label; without this option the label is "
        "read from the .cls file",
    )
    index.add_argument(
        "--classes", type=Path, help="text file with one class name per line, for labels that are numbers"
    )
    index.add_argument(
        "--image-extension", help="which image to use where samples contain several, e.g. left.png"
    )
    _add_channels(index)
    index.add_argument(
        "--append",
        action="store_true",
        help="add to an existing data set the tar files it does not contain yet",
    )
    _add_workers(index)
    index.add_argument("--strict", action="store_true", help="stop with an error if any image cannot be read")


def _add_channels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--channels",
        type=_positive,
        help="leave out images that cannot be converted to this number of channels",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--workers",
        type=_positive,
        default=cores,
        help="number of processes; by default one for each CPU core, here %(default)s",
    )


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
        if unknown := unknown_tars(folder):
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
        summary = preview(
            args.dest, args.config, args.out, samples=args.samples, seed=args.seed, workers=args.workers
        )
    print(summary.as_json() if args.json else summary.as_text())
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
