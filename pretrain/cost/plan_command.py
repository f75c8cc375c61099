"""`isotorus plan --config x.yaml --gpus 64 --gpu h100`: its options, and what it prints."""

import argparse
import json
from typing import Any

from isotorus.errors import ArgumentParser, UserError
from pretrain.config import Config, load_config
from pretrain.cost.datasheets import KNOWN


def main(arguments: list[str]) -> int:
    """Run the command."""
    options = _parse(arguments)
    config = load_config(options.config, options.overrides)
    # Imported here because it imports torch; a mistake in the arguments or the recipe is refused before that.
    from pretrain.cost.plan import Request, as_json, estimate, nearest_fit, show

    images = options.images or _dataset_size(config)
    node = options.gpus_per_node
    request = Request(options.gpus, options.gpu, options.mfu, images, options.disk * 1e9, node)
    figures = estimate(config, request)
    remedy = None if figures.memory.fits else nearest_fit(config, request)
    if options.json:
        print(json.dumps(as_json(config, figures, remedy), indent=2))
    else:
        show(config, request, figures, remedy)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = ArgumentParser(
        prog="isotorus plan",
        description="What a run costs: parameters, FLOPs, memory a GPU, images/s, hours, checkpoints. "
        "No data and no GPU are needed.",
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a packaged recipe")
    parser.add_argument("--gpus", type=_positive(int), default=1, help="ranks in all (default 1)")
    node = "ranks of a node, for engine.shard=node (default 8)"
    parser.add_argument("--gpus-per-node", type=_positive(int), default=8, help=node)
    parser.add_argument("--gpu", choices=[*KNOWN, "cpu"], default="h100", help="default h100")
    parser.add_argument(
        "--mfu", type=_positive(float), default=0.4, help="share of the peak that is reached (default 0.4)"
    )
    parser.add_argument(
        "--images", type=_positive(int), help="in the data set, for epochs; by default data.path is asked"
    )
    parser.add_argument(
        "--disk", type=_positive(float), default=2.0, help="GB/s that all ranks write together (default 2)"
    )
    parser.add_argument("--json", action="store_true", help="all figures, in bytes, FLOPs and seconds")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    return parser.parse_intermixed_args(arguments)


def _positive(kind: type) -> Any:
    """Return a converter for argparse that refuses zero and negative numbers."""

    def convert(text: str) -> Any:
        value = kind(text)
        if value <= 0:
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"  # shown by argparse: "invalid positive int value"
    return convert


def _dataset_size(config: Config) -> int | None:
    """Return the number of images in the data set; None where it cannot be opened from here."""
    try:
        return len(config.data.open())
    except UserError:  # the data may lie on another machine, where the run will be
        return None
