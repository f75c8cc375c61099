"""`python -m data_pipeline`: pack, index, verify, preview, remove, compact, name-channels and info.

Each command but the last two has its arguments and its text in `command.py` of its room.
"""

import argparse
import sys

import data_pipeline.existing_tars.command as index
import data_pipeline.packing.command as pack
import data_pipeline.preview.command as preview
import data_pipeline.verifying.command as verify
import data_pipeline.withdrawal.command as withdrawal
from data_pipeline.dataset import info
from data_pipeline.dataset.channel_names import channel_list
from data_pipeline.dataset.description import subsets
from data_pipeline.dataset_writer.name_channels import name_channels
from data_pipeline.shared_arguments import add_workers, local_folder
from isotorus.errors import ArgumentParser, exit_code


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 for success, 1 if `verify` found damage.

    Raises `UserError` for mistakes that the user can correct.
    """
    args = _parser().parse_args(arguments)
    match args.command:
        case "pack":
            pack.run(args)
        case "index":
            index.run(args)
        case "verify":
            return verify.run(args)
        case "preview":
            preview.run(args)
        case "remove":
            withdrawal.run_remove(args)
        case "compact":
            withdrawal.run_compact(args)
        case "name-channels":
            print(name_channels(args.dest, args.names))
        case _:
            _info(args.dest, args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with its sub-commands."""
    parser = ArgumentParser(
        prog="isotorus",
        description="Pack images into data sets for training, check them and look at them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pack.add_to(commands.add_parser("pack", help="turn a folder of images into a data set for training"))
    index.add_to(commands.add_parser("index", help="make a data set of existing WebDataset tar files"))
    page = "write an HTML page that shows what the encoder will see"
    preview.add_to(commands.add_parser("preview", help=page))
    damage = "check every byte of a data set; exit code 1 if it is damaged"
    verify.add_to(commands.add_parser("verify", help=damage))
    taken = commands.add_parser("remove", help="take images out of a data set, as when a patient withdraws")
    withdrawal.add_remove(taken)
    add_workers(taken)
    rewritten = commands.add_parser("compact", help="delete the bytes of images that were removed")
    withdrawal.add_compact(rewritten)
    add_workers(rewritten)
    named = commands.add_parser("name-channels", help="name the channels of a data set")
    named.add_argument("dest", type=local_folder, metavar="DEST", help="folder of a data set, or of a split")
    order = "the names, in the order of the images, such as dapi,gfp"
    named.add_argument("names", type=channel_list, metavar="A,B,…", help=order)
    show = commands.add_parser("info", help="show what a data set contains")
    show.add_argument("dest", metavar="DEST", help="folder or URL of a data set")
    show.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return parser


def _info(dest: str, as_json: bool) -> None:
    """Run `info` on a data set, or on all sets of a split."""
    sets = subsets(dest)
    folders = sets or [dest]
    if as_json:
        print(info.as_json(folders, split=bool(sets)))
    else:
        print("\n".join(map(info.as_text, folders)))


if __name__ == "__main__":
    sys.exit(exit_code(main))
