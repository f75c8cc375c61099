"""The command `preview`: its arguments, and what it prints."""

import argparse
import contextlib
import sys
from pathlib import Path

from data_pipeline.shared_arguments import add_workers
from isotorus.numbers import positive


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `preview`."""
    add = parser.add_argument
    add("dest", metavar="DEST", help="folder or URL of a data set, or folder that contains those of a split")
    add("--config", help="YAML file of a training recipe, or the name of a packaged recipe")
    add("--out", type=Path, required=True, metavar="PAGE.html", help="page to write; replaced if it exists")
    add("--samples", type=positive, default=24, help="number of images to show (default %(default)s)")
    add("--seed", type=int, default=0, help="seed that chooses the images to show (default %(default)s)")
    add_workers(parser)
    add("--json", action="store_true", help="print the summary as JSON, for scripts")


def run(args: argparse.Namespace) -> None:
    """Run `preview` and print its summary."""
    # Imported here: torch takes seconds to import, and the other commands do not need it.
    from data_pipeline.preview.preview import preview

    with contextlib.redirect_stdout(sys.stderr):  # progress goes to stderr, so that scripts can read stdout
        summary = preview(
            args.dest, args.config, args.out, samples=args.samples, seed=args.seed, workers=args.workers
        )
    print(summary.as_json() if args.json else summary.as_text())
