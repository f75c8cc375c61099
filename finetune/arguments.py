"""The options of `isotorus finetune`."""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from typing import get_args

from data_pipeline.tables.cells import MISSING, cell_list
from eval_suite import arguments
from isotorus.errors import ArgumentParser, UserError
from isotorus.processes import usable_cores
from pretrain.models.config import FeatureSet

BASELINES = ("probe", "scratch")
EPILOG = """examples:
  isotorus finetune runs/mine shards/train --val shards/val --test shards/test --out runs/tuned
  isotorus finetune runs/mine shards/train --val shards/val --out runs/grade --targets table.csv \\
      --target-columns grade --target-kind regression
  isotorus finetune runs/mine shards/train --val shards/val --out runs/tuned optimizer.lr=1e-4
  torchrun --nproc-per-node 8 -m finetune runs/mine shards/train --val shards/val --out runs/tuned

If the command is killed, the same command continues it. docs/finetune.md has more."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the command; raises UserError for values that cannot work."""
    parser = ArgumentParser(
        prog="isotorus finetune",
        description="Train a pretrained encoder with a linear head on labelled images, keep the step that is "
        "best on val, and compare it with a linear probe on the same encoder and with training from scratch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    a_checkpoint = "a run folder (its newest checkpoint), a checkpoint folder or its weights, a timm model"
    add("name", metavar="CHECKPOINT_OR_RUN", help=f"{a_checkpoint}, or an address in a mirror (s3://…)")
    add("shards", metavar="SHARDS", help="packed data set with the labels or masks to learn from")
    add("--val", required=True, metavar="SHARDS", help="packed data set by which the best step is chosen")
    add("--test", metavar="SHARDS", help="packed data set that is scored once, at the end (default: --val)")
    add("--out", required=True, metavar="FOLDER", help="folder of the run; its last part is the run's name")
    _add_targets(parser)
    _add_training(parser)
    beside = "baselines: probe (a linear probe on the encoder as it is), scratch (the same "
    more = "network from random weights, which takes as long again), or none (default %(default)s)"
    add("--baselines", default="probe", metavar="A,B", help=beside + more)
    add("--workers", type=arguments.at_least(0), default=min(8, usable_cores()), help="decoding processes")
    arguments.add_seed(parser)
    arguments.add_mlflow(parser)
    fields = "any field of a recipe, as for `isotorus train`, such as optimizer.lr=1e-4"
    add("overrides", nargs="*", metavar="dotted.key=value", help=fields)
    # DeepSpeed's launcher adds this option to every command. It is ignored, as LOCAL_RANK holds the same
    # number.
    add("--local_rank", help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args(argv)
    if (given.targets is None) != (given.target_columns is None):
        raise UserError("--targets and --target-columns belong together: name the file and its columns")
    none = given.baselines.strip() == "none"
    given.baselines = () if none else arguments.names(given.baselines, BASELINES, "--baselines")
    return given


def _add_targets(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--targets", metavar="FILE", help="CSV or Parquet file to predict (default: the packed labels)")
    add("--target-columns", metavar="A,B,…", type=_columns, help="columns of --targets to predict")
    arguments.add_key_column(parser)
    kinds = ["multiclass", "multilabel", "regression", "segmentation"]
    how = "how to read the targets (default: by their values); segmentation: predict the packed masks"
    add("--target-kind", choices=kinds, help=f"{how} (the default for a set with masks and without labels)")
    empty = f"values that mean 'no target', besides empty cells (default: {','.join(MISSING)}, and -1 for "
    add("--missing", metavar="A,B,…", type=cell_list, help=f"{empty}classes that are whole numbers)")
    fewer = "number of labelled images to learn from, or their share such as 10%%, the same of each class"
    add("--labels", metavar="N", type=_labels, help=f"{fewer} (default: all)")


def _add_training(parser: argparse.ArgumentParser) -> None:
    add, whole = parser.add_argument, arguments.at_least
    add("--epochs", type=arguments.above_zero, default=20.0, help="passes over the images (default 20)")
    least = "smallest number of steps, so that few labels get more epochs (default %(default)s)"
    add("--min-steps", type=whole(1), default=300, metavar="N", help=least)
    add("--batch-size", type=whole(2), default=64, help="images in a step, all ranks (default %(default)s)")
    add("--lr", type=arguments.above_zero, default=5e-4, help="peak learning rate (default %(default)s)")
    fall = "factor of the learning rate from each block to the one before it; 1: none (default %(default)s)"
    add("--layer-decay", type=_share, default=0.75, metavar="F", help=fall)
    add("--freeze", type=whole(0), default=0, metavar="N", help="number of first blocks that are not trained")
    start = (
        "the linear layer's first weights: those of a linear probe on the encoder as it is, or random ones"
    )
    add("--head", choices=["probe", "random"], default="probe", help=f"{start} (default %(default)s)")
    read = "what of the encoder the linear layer reads, such as stages: the maps of a ConvNet's last stages"
    best = "default: the set on which a linear probe is best on val; embedding with --head random"
    add("--features", choices=get_args(FeatureSet), help=f"{read} ({best})")
    adapters = "train low-rank adapters of this rank in place of the encoder's own weights; 8 is usual"
    add("--lora", type=whole(1), metavar="RANK", help=f"{adapters} (needs isotorus[lora])")
    first = "steps at the start in which only the head learns (default: 0; a tenth with --head random)"
    add("--head-steps", type=whole(0), metavar="N", help=first)
    add(
        "--mixup",
        type=_not_negative,
        default=0.0,
        metavar="ALPHA",
        help="α of mixup, which averages pairs of images (0.8 is usual; default 0: off)",
    )
    add(
        "--cutmix",
        type=_not_negative,
        default=0.0,
        metavar="ALPHA",
        help="α of CutMix, which swaps rectangles of images (1 is usual; default 0: off)",
    )
    share = "share of a target that is spread over all classes (default %(default)s)"
    add("--label-smoothing", type=_share_below_1, default=0.0, metavar="S", help=share)
    blended = (
        "keep the weights of the best step, not their blend with the weights at the start that is best on val"
    )
    add("--no-blend", dest="blend", action="store_false", help=blended)
    early = "end after N checkpoints in a row that were not better on val (default: never)"
    add("--patience", type=whole(1), metavar="N", help=early)


def _columns(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _labels(text: str) -> int | float:
    """Return a number of labels, or a share of them; for argparse's `type`."""
    with contextlib.suppress(ValueError):
        if text.endswith("%") and 0 < (share := float(text[:-1]) / 100) <= 1:
            return share
        if int(text) > 0:
            return int(text)
    raise argparse.ArgumentTypeError(
        f"{text}: expected a number of images such as 100, or a share such as 10%"
    )


def _within(allowed: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    """Return an argparse type for the numbers that are `allowed`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
        return value

    return read


_share = _within(lambda x: 0 < x <= 1, "a number above 0, at most 1")
_share_below_1 = _within(lambda x: 0 <= x < 1, "a number from 0 to below 1")
_not_negative = _within(lambda x: 0 <= x < float("inf"), "0 or a number above 0")
