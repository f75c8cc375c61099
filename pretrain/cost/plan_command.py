"""`isotorus plan --config x.yaml --gpus 64 --gpu h100`: its options, and what it prints."""

import argparse
import json
import math
from typing import Any

from data_pipeline.storage.cache import default_folder
from isotorus.errors import ArgumentParser, UserError
from isotorus.processes import collector_paused
from pretrain.config import Config, load_config
from pretrain.cost import goodput, links, remembered
from pretrain.cost.datasheets import KNOWN


def main(arguments: list[str]) -> int:
    """Run the command."""
    with remembered.kept_in(default_folder() / "counts"):
        return _plan(_parse(arguments))


def _plan(options: argparse.Namespace) -> int:
    """Print what was asked for; return the exit code."""
    config = load_config(options.config, options.overrides)
    machine = links.machine(
        options.gpu, options.machine, options.gpus_per_node, options.inside, options.between
    )
    # Imported here because it imports torch; a mistake in the arguments or the recipe is refused before that.
    with collector_paused():
        from pretrain.cost.plan import Request, as_json, estimate, nearest_fit, scaling
        from pretrain.cost.plan_text import goodput_json, show, show_failures, show_scaling, show_smaller
        from pretrain.cost.smaller import MONTH, smaller_recipe
        from pretrain.preflight.model import check_model

    if options.failures is None:
        options.failures = 0.0 if options.gpu == "cpu" else goodput.LLAMA
    images = options.images or _dataset_size(config)
    if images and max(options.gpus) > images:
        raise UserError(
            f"--gpus {max(options.gpus)}: more than the {images:,} images of the data set; use fewer GPUs"
        )
    request = Request(
        options.gpus[0], options.gpu, options.mfu, images, options.disk * 1e9, machine, options.overlap
    )
    model = check_model(config, request.gpus)
    figures = estimate(config, request, model)
    failures = goodput.of_run(
        figures.gpus, options.failures, options.restart, figures.checkpoint_seconds, options.stall
    )
    remedy = None if figures.memory.fits else nearest_fit(config, request, model)
    several = len(options.gpus) > 1
    rows = scaling(config, request, model, options.gpus, options.grow_batch) if several else []
    hours = figures.speed.hours
    smaller = smaller_recipe(config, figures.flops, hours, figures.gpus) if hours > MONTH else None
    if options.json:
        found = as_json(config, figures, remedy)
        expected = goodput_json(config, figures, failures)
        more = {"scaling": [row.as_json() for row in rows], "failures": expected, "smaller_recipe": smaller}
        print(json.dumps(found | more, indent=2))
        return 0
    show(config, request, figures, remedy)
    if hours > MONTH:
        show_smaller(hours, figures.gpus, config.data.batch_size, smaller)
    if rows:
        show_scaling(rows)
    show_failures(config, figures, failures)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = ArgumentParser(
        prog="isotorus plan",
        description="What a run costs: parameters, FLOPs, memory a GPU, images/s, hours, checkpoints. "
        "No data and no GPU are needed.",
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a packaged recipe")
    parser.add_argument(
        "--gpus",
        type=_numbers,
        default=[1],
        help="ranks in all (default 1); several numbers, as in 8,64,512, add a table of them",
    )
    parser.add_argument(
        "--grow-batch",
        action="store_true",
        help="in that table the batch grows with the GPUs; by default it is always that of the recipe",
    )
    parser.add_argument("--gpu", choices=[*KNOWN, "cpu"], default="h100", help="default h100")
    parser.add_argument(
        "--machine",
        help=f"nodes and their links: {', '.join(links.MACHINES)} (default: the usual one of --gpu)",
    )
    node = "ranks of a node (default: that of --machine, mostly 8)"
    parser.add_argument("--gpus-per-node", type=_positive(int), help=node)
    parser.add_argument("--inside", help=f"link inside a node: {', '.join(links.LINKS)}")
    parser.add_argument(
        "--between", help="link between nodes, from the same list; 4xeth-100 means four of them for each node"
    )
    parser.add_argument(
        "--no-overlap",
        dest="overlap",
        action="store_false",
        help="assume that communication waits until the computation ends",
    )
    parser.add_argument(
        "--mfu",
        type=_positive(float),
        help="assume that the run reaches this share of the peak, such as 0.4 (default: predict the speed)",
    )
    parser.add_argument(
        "--images", type=_positive(int), help="in the data set, for epochs; by default data.path is asked"
    )
    parser.add_argument(
        "--disk", type=_positive(float), default=2.0, help="GB/s that all ranks write together (default 2)"
    )
    parser.add_argument(
        "--failures",
        type=_at_least_zero,
        help=f"interruptions in 1,000 GPU-days (default {goodput.LLAMA:.2f}, as of Llama 3; on CPUs 0)",
    )
    parser.add_argument(
        "--restart",
        type=_at_least_zero,
        default=goodput.RESTART,
        help=f"seconds from a failure to the next step (default {goodput.RESTART:g})",
    )
    waits = "seconds that training waits for a checkpoint"
    parser.add_argument(
        "--stall",
        type=_at_least_zero,
        help=f"{waits} (default {100 * goodput.STALL:.1f} %% of writing it)",
    )
    parser.add_argument("--json", action="store_true", help="all figures, in bytes, FLOPs and seconds")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    return parser.parse_intermixed_args(arguments)


def _numbers(text: str) -> list[int]:
    """Return numbers of GPUs from text such as "8,64,512"."""
    return [_positive(int)(number) for number in text.split(",")]


_numbers.__name__ = "positive int"  # shown by argparse: "invalid positive int value"


def _positive(kind: type) -> Any:
    """Return a converter for argparse that refuses zero and negative numbers."""

    def convert(text: str) -> Any:
        value = kind(text)
        if value <= 0:
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"  # shown by argparse: "invalid positive int value"
    return convert


def _at_least_zero(text: str) -> float:
    """Return a number that is not negative."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


_at_least_zero.__name__ = "number of at least 0"


def _dataset_size(config: Config) -> int | None:
    """Return the number of images in the data set; None where it cannot be opened from here."""
    try:
        return len(config.data.open())
    except UserError:  # the data may lie on another machine, where the run will be
        return None
