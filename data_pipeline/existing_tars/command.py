"""The command `index`: its arguments, and what it prints."""

import argparse
from pathlib import Path

from data_pipeline.decoders import intensity_arguments
from data_pipeline.shared_arguments import add_channels, add_missing, add_workers


def add_to(parser: argparse.ArgumentParser) -> None:
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
    add_missing(parser)
    several = "which image to use where samples contain several, e.g. left.png"
    alike = "put the name of its tar before each key, for tars whose samples are numbered alike"
    add("--tar-names-in-keys", action="store_true", help=alike)
    add("--image-extension", type=_ending, help=several)
    add_channels(parser)
    intensity_arguments.add_to(parser)
    add("--append", action="store_true", help="add the tar files that the data set does not contain yet")
    add_workers(parser)
    add("--strict", action="store_true", help="stop with an error if any image cannot be read")


def run(args: argparse.Namespace) -> None:
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


def _ending(text: str) -> str:
    """Read the ending of a name from the command line, with or without its first dot."""
    return text.lower().removeprefix(".")
