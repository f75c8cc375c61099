"""Train the runs of a fine-tuning one after the other, then compare what they have learned."""

import argparse
import logging
from functools import partial

import torch.distributed as dist

from eval_suite.inputs import find
from finetune import best, blend, compare, head, recipe, report
from finetune.masks.start import write_start
from finetune.processes import on_first
from isotorus import mlflow_store
from isotorus.errors import UserError, from_os_error
from pretrain.__main__ import is_behind_mirror, process_group
from pretrain.__main__ import run as train
from pretrain.config import Config
from pretrain.methods.config import reads_masks
from pretrain.monitoring.progress_of import standing
from pretrain.preflight.check import check
from pretrain.preflight.inputs import RunInputs
from pretrain.run_control.signals import Signals
from pretrain.run_control.start_up import StartUp

log = logging.getLogger(__name__)


def run(args: argparse.Namespace, signals: Signals, world_size: int) -> int:
    """Train, compare and report; returns the exit code. All ranks call it."""
    checkpoint, *others = find.find([args.name])
    if others:
        raise UserError(f"{args.name} stands for {1 + len(others)} checkpoints; name one of them")
    checkpoint.require_whole()
    tuned = recipe.build(args, checkpoint)
    recipe.require_same(tuned)
    if note := recipe.note(checkpoint, tuned):
        log.warning("note: %s", note)
    configs = [tuned] + ([recipe.from_scratch(tuned)] if "scratch" in args.baselines else [])
    inputs = [_check(config, world_size) for config in configs]
    with process_group(tuned.stopping.hang) as device:
        if reads_masks(tuned.objective):
            write_start(tuned, checkpoint, inputs[0])
        else:
            features = head.write(tuned, args.features, checkpoint, inputs[0])
            read = [recipe.reading(features, *pair, world_size) for pair in zip(configs, inputs, strict=True)]
            configs, inputs = [config for config, _ in read], [needed for _, needed in read]
        for config, needed in zip(configs, inputs, strict=True):
            code = train(config, needed, device, signals, StartUp())
            dist.barrier()
            if code or not standing(config.folder).finished:
                return code
            # The start has to predict for a blend to make sense, and a random layer does not.
            if config is configs[0] and args.blend and args.head == "probe":
                blend.publish(config, needed)
            else:
                on_first(partial(best.publish, config.folder))
        results = compare.compare(args, checkpoint, configs)
    if results is not None:
        report.write(results, tuned.folder)
        report.show(results, tuned.folder)
        report.publish(results, tuned.folder, mlflow_store.own(args.mlflow))
    return 0


def _check(config: Config, world_size: int) -> RunInputs:
    """Return the inputs of a run; raise UserError for what would stop it, such as an unusable mirror."""
    is_behind_mirror(config)  # tries the mirror out; the training downloads what is newer there
    try:
        return check(config, world_size)
    except OSError as error:
        raise from_os_error(error, f"preparing {config.folder}") from error
