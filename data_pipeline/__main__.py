"""`python -m data_pipeline`: pack, index, verify, preview, remove, compact, name-channels and info."""

import argparse
import contextlib
import math
import sys
from pathlib import Path

from data_pipeline.dataset import info
from data_pipeline.dataset.channel_names import channel_list
from data_pipeline.dataset.description import subsets
from data_pipeline.dataset_writer.name_channels import name_channels
from data_pipeline.decoders import intensity_arguments
from data_pipeline.packing import mask_arguments, reading_arguments
from data_pipeline.packing.manifest import Columns
from data_pipeline.packing.shard_size import read_size
from data_pipeline.packing.share import read_share
from data_pipeline.storage.reader import is_remote
from data_pipeline.tables.cells import MISSING, cell_list
from data_pipeline.verifying.verify import unknown_tars, verify
from data_pipeline.withdrawal import command as withdrawal
from isotorus.errors import ArgumentParser, UserError, exit_code, one_line
from isotorus.numbers import positive
from isotorus.processes import usable_cores


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 for success, 1 if `verify` found damage.

    Raises `UserError` for mistakes that the user can correct.
    """
    args = _parser().parse_args(arguments)
    match args.command:
        case "pack":
            return _pack(args)
        case "index":
            return _index(args)
        case "verify":
            return _check(args)
        case "preview":
            return _preview(args)
        case "remove" | "compact":
            return _withdraw(args)
        case "name-channels":
            print(name_channels(args.dest, args.names))
            return 0
        case _:
            return _info(args.dest, args.json)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with its sub-commands."""
    parser = ArgumentParser(
        prog="isotorus",
        description="Pack images into data sets for training, check them and look at them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_pack(commands.add_parser("pack", help="turn a folder of images into a data set for training"))
    _add_index(commands.add_parser("index", help="make a data set of existing WebDataset tar files"))
    _add_preview(
        commands.add_parser("preview", help="write an HTML page that shows what the encoder will see")
    )
    check = commands.add_parser("verify", help="check every byte of a data set; exit code 1 if it is damaged")
    check.add_argument("dest", nargs="+", metavar="DEST", help="folder or URL of a data set")
    phi = "instead, list the fields that may identify a person; exit code 1 if there are any"
    kinds = check.add_mutually_exclusive_group()
    kinds.add_argument("--phi", action="store_true", help=phi)
    copies = "instead, list near copies; exit code 1 if an image of one set has a near copy in another"
    kinds.add_argument("--duplicates", action="store_true", help=copies)
    allow = "with --duplicates: exit code 0 also where there are near copies across sets"
    check.add_argument("--allow-across", action="store_true", help=allow)
    listed = "with --duplicates: write all near copies to this file, a JSON object a line"
    check.add_argument("--out", type=Path, metavar="FILE.jsonl", help=listed)
    _add_workers(check)
    taken = commands.add_parser("remove", help="take images out of a data set, as when a patient withdraws")
    withdrawal.add_remove(taken)
    _add_workers(taken)
    rewritten = commands.add_parser("compact", help="delete the bytes of images that were removed")
    withdrawal.add_compact(rewritten)
    _add_workers(rewritten)
    named = commands.add_parser("name-channels", help="name the channels of a data set")
    named.add_argument("dest", type=_folder, metavar="DEST", help="folder of a data set, or of a split")
    order = "the names, in the order of the images, such as dapi,gfp"
    named.add_argument("names", type=channel_list, metavar="A,B,…", help=order)
    show = commands.add_parser("info", help="show what a data set contains")
    show.add_argument("dest", metavar="DEST", help="folder or URL of a data set")
    show.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return parser


def _add_pack(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pack`."""
    add = parser.add_argument
    add("source", type=_source, metavar="SRC", help="folder that contains the images")
    add("dest", type=_folder, metavar="DEST", help="local folder to write the data set to")
    labels = "'folder': the class of an image is the first folder in its path; or a CSV or Parquet file that"
    add("--labels", help=f"{labels} has a row for each image")
    paths = "column of the --labels file with the paths of the images, relative to SRC (default %(default)s)"
    add("--image-column", default="image", help=paths)
    names = "column of the --labels file with class names (default %(default)s)"
    add("--label-column", default="label", help=names)
    group = "images of one group, e.g. of a patient, go to the same side of the split"
    add("--group-column", help=f"column of the --labels file with the group of each image; {group}")
    pattern = "regular expression such as 'patient([0-9]+)': the text in parentheses is the image's group"
    add("--group-pattern", help=f"instead of --group-column, applied to the image's path: {pattern}")
    header = (
        "instead of --group-column, for DICOM, NIfTI and FITS: field of the header with the group, such as "
    )
    add("--group-field", metavar="FIELD", help=f"{header}PatientID; only a hash of it is kept")
    sides = "column of the --labels file that says train, val or test for each image"
    add("--split-column", help=f"{sides}; instead of the fractions")
    for name in ("val", "test"):
        share = f"fraction of the images (or groups) to put into DEST/{name} (default %(default)s)"
        add(f"--{name}-fraction", type=float, default=0.0, help=share)
    alike = "divide each class in these fractions, as far as groups that stay whole allow"
    add("--stratify", action="store_true", help=f"{alike} (default: by the hash of each group or image)")
    _add_missing(parser)
    add("--append", action="store_true", help="add the images that the data set in DEST does not contain yet")
    mask_arguments.add_to(parser)
    _add_channels(parser)
    order = "names of the channels, in the order of the images, such as dapi,gfp"
    files = "(default: as OME-TIFF, OME-Zarr and GeoTIFF files state them)"
    add("--channel-names", metavar="A,B,…", type=channel_list, help=f"{order} {files}")
    reading_arguments.add_to(parser)
    intensity_arguments.add_to(parser)
    stop = "publish nothing if an image has a near copy in another set of the split (default: print a note)"
    add("--check-duplicates", action="store_true", help=stop)
    copies = (
        "leave out near copies of other images, and list them in DEST/duplicates.jsonl; images are decoded "
    )
    add("--drop-duplicates", action="store_true", help=f"{copies}twice")
    add(
        "--shard-size",
        type=read_size,
        default="256MB",
        help="approximate size of a shard (default %(default)s)",
    )
    _add_workers(parser)
    some = "write only part I (from 0) of N parts of the shards, so that N processes on one or many nodes "
    some += "share the work; then the same command without --part publishes the data set"
    add("--part", type=read_share, metavar="I/N", help=some)
    add("--strict", action="store_true", help="stop with an error if any file would be left out")


def _add_index(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `index`."""
    add = parser.add_argument
    add("tars", nargs="+", metavar="TARS", help="WebDataset tar files, or folders or URLs that contain them")
    add("dest", metavar="DEST", help="local folder to write the index to; may be that of the tar files")
    key = "field of each sample's .json file that contains its label; default: the label is the .cls file"
    add("--label-key", help=key)
    ending = "what the names of the files with labels end in, e.g. txt (default: cls; json with --label-key)"
    add("--label-extension", metavar="EXT", type=_ending, help=ending)
    patient = "field of each sample's .json file with its group, such as a patient"
    add("--group-key", help=f"{patient}; the intervals of an evaluation draw whole groups")
    add("--classes", type=Path, help="text file with one class name per line, for labels that are numbers")
    _add_missing(parser)
    several = "which image to use where samples contain several, e.g. left.png"
    alike = "put the name of its tar before each key, for tars whose samples are numbered alike"
    add("--tar-names-in-keys", action="store_true", help=alike)
    add("--image-extension", type=_ending, help=several)
    _add_channels(parser)
    intensity_arguments.add_to(parser)
    add("--append", action="store_true", help="add the tar files that the data set does not contain yet")
    _add_workers(parser)
    add("--strict", action="store_true", help="stop with an error if any image cannot be read")


def _add_preview(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `preview`."""
    add = parser.add_argument
    add("dest", metavar="DEST", help="folder or URL of a data set, or folder that contains those of a split")
    add("--config", help="YAML file of a training recipe, or the name of a packaged recipe")
    add("--out", type=Path, required=True, metavar="PAGE.html", help="page to write; replaced if it exists")
    add("--samples", type=positive, default=24, help="number of images to show (default %(default)s)")
    add("--seed", type=int, default=0, help="seed that chooses the images to show (default %(default)s)")
    _add_workers(parser)
    add("--json", action="store_true", help="print the summary as JSON, for scripts")


def _add_missing(parser: argparse.ArgumentParser) -> None:
    text = f"labels that mean 'no label', besides empty ones (default: {','.join(MISSING)}, and -1 where "
    text += "classes are whole numbers)"
    parser.add_argument("--missing", metavar="A,B,…", type=cell_list, help=text)


def _add_channels(parser: argparse.ArgumentParser) -> None:
    text = "leave out images that cannot be converted to this number of channels (1 and 3 can be converted)"
    parser.add_argument("--channels", type=positive, help=text)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    text = "number of processes (default: the number of CPU cores, here %(default)s)"
    parser.add_argument("--workers", type=positive, default=usable_cores(), help=text)


def _folder(text: str) -> Path:
    """Read a local path from the command line."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(
            f"{text} is no folder on a disk; pack into one, and copy it to the store"
        )
    return Path(text)


def _source(text: str) -> Path:
    """Read the path of a local folder of images from the command line."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"{text} is no folder on a disk; copy the images to one")
    return Path(text)


def _ending(text: str) -> str:
    """Read the ending of a name from the command line, with or without its first dot."""
    return text.lower().removeprefix(".")


def _refuse_contradictions(args: argparse.Namespace) -> None:
    """Raise `UserError` for options of `pack` that contradict each other."""
    if min(args.val_fraction, args.test_fraction) < 0 or args.val_fraction + args.test_fraction >= 1:
        raise UserError(
            f"--val-fraction {args.val_fraction:g} --test-fraction {args.test_fraction:g}: "
            "expected shares from 0 that are less than 1 together"
        )
    if args.mpp is not None and not 0 < args.mpp < math.inf:
        raise UserError(f"--mpp {args.mpp:g}: expected micrometres a pixel above 0, such as 0.5")
    if args.tissue is not None and not 0 <= args.tissue <= 1:
        raise UserError(f"--tissue {args.tissue:g}: expected a share from 0 to 1")
    if args.labels in (None, "folder"):
        for option in ("group_column", "split_column", "missing"):
            if getattr(args, option) is not None:
                raise UserError(
                    f"--{option.replace('_', '-')} is about a table; give that with --labels FILE.csv"
                )
    options = ("group_column", "group_pattern", "group_field")
    given = [f"--{name.replace('_', '-')}" for name in options if getattr(args, name) is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} both say what a group is; give one of them")
    fractions = bool(args.val_fraction or args.test_fraction)
    if args.split_column is not None and (fractions or args.stratify):
        raise UserError("--split-column names the set of each image; leave out the fractions and --stratify")
    if args.check_duplicates and (args.append or not (fractions or args.split_column)):
        raise UserError(
            "--check-duplicates is about the sets of a new split; give fractions or --split-column, and for "
            "other sets use: isotorus verify --duplicates"
        )
    if args.part is not None and args.append:
        raise UserError("--part is for a new data set; leave it out with --append")
    if args.stratify and not args.append and (args.labels is None or not fractions):
        raise UserError("--stratify divides classes; give --labels, and --val-fraction or --test-fraction")


def _pack(args: argparse.Namespace) -> int:
    """Run `pack`; raise `UserError` for options that contradict each other."""
    # Imported here: the other commands do not need the image decoders.
    from data_pipeline.field_formats.picture import Reading
    from data_pipeline.packing.pack import Options, pack

    _refuse_contradictions(args)
    columns = Columns(args.image_column, args.label_column, args.group_column, args.split_column)
    given = {name: getattr(args, name) for name in Reading.model_fields if getattr(args, name) is not None}
    options = Options(
        labels=args.labels,
        columns=columns,
        missing=args.missing,
        group_pattern=args.group_pattern,
        group_field=args.group_field,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        stratify=args.stratify,
        channels=args.channels,
        channel_names=args.channel_names,
        reading=Reading(**given) if given else None,
        intensity=intensity_arguments.chosen(args),
        shard_size=args.shard_size,
        append=args.append,
        drop_duplicates=args.drop_duplicates,
        check_duplicates=args.check_duplicates,
        workers=args.workers,
        part=args.part,
        **mask_arguments.chosen(args),
        strict=args.strict,
    )
    print(pack(args.source, args.dest, options))
    return 0


def _index(args: argparse.Namespace) -> int:
    """Run `index`."""
    from data_pipeline.existing_tars.tar_index import Options, index
    from data_pipeline.existing_tars.tar_scan import Rule

    rule = Rule(
        image_extension=args.image_extension,
        label_field=args.label_key,
        channels=args.channels,
        group_field=args.group_key,
        missing=args.missing,
        label_extension=args.label_extension,
        tar_names_in_keys=args.tar_names_in_keys,
    )
    options = Options(
        rule=rule,
        classes=args.classes,
        intensity=intensity_arguments.chosen(args),
        append=args.append,
        workers=args.workers,
        strict=args.strict,
    )
    print(index(args.tars, args.dest, options))
    return 0


def _check(args: argparse.Namespace) -> int:
    """Run `verify` on each data set, or look for near copies in all of them together."""
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


def _info(dest: str, as_json: bool) -> int:
    """Run `info` on a data set, or on all sets of a split."""
    sets = subsets(dest)
    folders = sets or [dest]
    if as_json:
        print(info.as_json(folders, split=bool(sets)))
    else:
        print("\n".join(map(info.as_text, folders)))
    return 0


def _withdraw(args: argparse.Namespace) -> int:
    """Run `remove` or `compact`."""
    (withdrawal.run_remove if args.command == "remove" else withdrawal.run_compact)(args)
    return 0


def _preview(args: argparse.Namespace) -> int:
    # Imported here: torch takes seconds to import, and the other commands do not need it.
    """Run `preview`."""
    from data_pipeline.preview import preview

    with contextlib.redirect_stdout(sys.stderr):  # progress goes to stderr, so that scripts can read stdout
        summary = preview(
            args.dest, args.config, args.out, samples=args.samples, seed=args.seed, workers=args.workers
        )
    print(summary.as_json() if args.json else summary.as_text())
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
