"""The command `verify`: its arguments, and what it prints."""

import argparse
from pathlib import Path

from data_pipeline.dataset.description import subsets
from data_pipeline.shared_arguments import add_workers
from data_pipeline.verifying.verify import unknown_tars, verify
from isotorus.errors import UserError, one_line


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("dest", nargs="+", metavar="DEST", help="folder or URL of a data set")
    phi = "instead, list the fields that may identify a person; exit code 1 if there are any"
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--phi", action="store_true", help=phi)
    copies = "instead, list near copies; exit code 1 if an image of one set has a near copy in another"
    kinds.add_argument("--duplicates", action="store_true", help=copies)
    allow = "with --duplicates: exit code 0 also where there are near copies across sets"
    parser.add_argument("--allow-across", action="store_true", help=allow)
    listed = "with --duplicates: write all near copies to this file, a JSON object a line"
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help=listed)
    add_workers(parser)


def run(args: argparse.Namespace) -> int:
    """Verify each data set, or look for near copies in all of them together; returns the exit code."""
    if args.duplicates:
        from data_pipeline.verifying.copies import check

        return check(args.dest, args.workers, args.out, allow_across=args.allow_across)
    if args.out is not None or args.allow_across:
        raise UserError("--out and --allow-across are about near copies; give them with --duplicates")
    return max((_phi if args.phi else _verify)(dest, args.workers) for dest in args.dest)


def _verify(dest: str, workers: int) -> int:
    """Run `verify` on a data set, or on all sets of a split, and print what is damaged."""
    folders = subsets(dest) or [dest]
    damage = [line for folder in folders for line in verify(folder, workers)]
    for line in damage:
        print(f"damage: {one_line(line)}")
    if damage:
        print(
            f"{dest}: {len(damage)} damage{'s' * (len(damage) > 1)} found; bring back the files named above "
            "from a copy. Without one: pack again, or if only index.npy, shards.npy or dataset.json is "
            f"damaged, make them again with: isotorus index {dest} NEW_FOLDER"
        )
        return 1
    for folder in folders:
        if unknown := unknown_tars(folder):
            print(f"note: {folder} holds tars that are not in the data set: {', '.join(unknown)}")
    print(f"{dest}: whole")
    return 0


def _phi(dest: str, workers: int) -> int:
    """Run `verify --phi` on a data set, or on all sets of a split, and print the identifying fields."""
    from data_pipeline.verifying.phi import phi

    folders = subsets(dest) or [dest]
    lines = [f"{folder}: {line}" for folder in folders for line in phi(folder, workers)]
    for line in lines:
        print(f"identifying: {line}")
    if lines:
        print(
            f"{dest}: {len(lines)} identifying field{'s' * (len(lines) > 1)}; before you give "
            "the set to others, pack again without the --keep, columns or headers that they come from"
        )
        return 1
    print(
        f"{dest}: no identifying field by its name, in JSON and in headers of images; values, pixels and the "
        "names of files were not judged"
    )
    return 0
