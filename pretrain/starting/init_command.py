"""`isotorus init SHARDS > recipe.yaml`: write a recipe for a data set and a machine."""

import re
import sys
from pathlib import Path

from data_pipeline.dataset.index import Dataset
from isotorus.errors import ArgumentParser
from pretrain.cost.datasheets import KNOWN

_NAME = re.compile(r"[^\w.+=-]+")


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(
        prog="isotorus init",
        description="Write a recipe for a packed data set and a machine to standard output, with the reason "
        "of each value as a comment.",
    )
    parser.add_argument("data", metavar="SHARDS", help="packed data set to train on, such as shards/train")
    parser.add_argument("--gpu", choices=[*KNOWN, "cpu"], help="accelerator (default: that of this machine)")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="how many in all (default: those of this machine)"
    )
    parser.add_argument("--hours", type=float, help="longest training (default 24; on CPUs 0.25)")
    parser.add_argument("--name", help="name of the run (default: that of the data set's folder)")
    options = parser.parse_args(arguments)
    if options.gpus is not None and options.gpus < 1:
        parser.error(f"--gpus {options.gpus}: expected 1 or more")
    if options.hours is not None and not 0 < options.hours < 1e6:
        parser.error(f"--hours {options.hours:g}: expected a number above 0")
    data = Dataset(options.data)
    # Imported here because it takes seconds; a mistake in the arguments is refused before that.
    from pretrain.starting import found, recipe

    images, machine = found.images(data), found.machine(options.gpu, options.gpus)
    hours = options.hours or (0.25 if machine.gpu == "cpu" else 24.0)
    text, config = recipe.written(images, machine, hours, options.name or _named(options.data))
    sys.stdout.write(text)
    sys.stdout.flush()
    target = "recipe.yaml" if not sys.stdout.isatty() else f"{config.name}.yaml (write this text to it)"
    # A comment of YAML, because a shell's &> writes it into the recipe.
    if machine.note:
        print(f"# note: {machine.note}", file=sys.stderr)
    print(
        f"# next: isotorus train --config {target}, or isotorus preview {options.data} --config {target} "
        "--out views.html to see what it does to the images",
        file=sys.stderr,
    )
    return 0


def _named(path: str) -> str:
    """Return a name for the run: that of the data set's folder, and of its parent if it is called train."""
    parts = [part for part in Path(path.rstrip("/")).parts if part not in ("train", "/", ".", "..")]
    return _NAME.sub("-", parts[-1]).strip("-") if parts else "run"
