"""`python -m pretrain --config recipe.yaml [dotted.key=value …]`, alone or under torchrun or srun.

`python -m pretrain plan …` says what a run costs, `sweep …` runs a grid of them, `export …` writes an encoder
for timm or transformers.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from data_pipeline.errors import ArgumentParser, UserError, exit_code, from_os_error
from pretrain import export, plan, sweep
from pretrain.config import Config, describe_fields, load_config
from pretrain.preflight import Plan, check
from pretrain.signals import Signals
from pretrain.stopping import Stopping

OTHERS = {"plan": plan.main, "sweep": sweep.main, "export": export.main}


def main() -> int:
    """Train one run; exit code 0 when it is complete, 2 for what the user can mend."""
    logging.basicConfig(
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR,
        format="%(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if sys.argv[1:] and sys.argv[1] in OTHERS:
        return OTHERS[sys.argv[1]](sys.argv[2:])
    config = parse(sys.argv[1:])
    plan = check(config, int(os.environ.get("WORLD_SIZE", "1")))
    with process_group(config.stopping.hang) as device:
        return run(config, plan, device)


def parse(arguments: list[str]) -> Config:
    parser = ArgumentParser(
        prog="python -m pretrain",
        description="Train one run; several processes: torchrun --nproc-per-node N -m pretrain …; "
        "a grid of runs: python -m pretrain sweep --help",
        epilog="fields, each set in the file or as dotted.key=value:\n" + describe_fields(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a packaged recipe")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    # DeepSpeed's launcher gives it to every rank; the environment says the same.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args(arguments)
    return load_config(given.config, given.overrides)


def run(config: Config, plan: Plan, device: torch.device) -> int:
    """Train; a UserError on any rank is printed once, however many ranks meet it or hang on it."""
    signals = Signals()
    signals.listen()
    from pretrain.train import train

    store = dist.distributed_c10d._get_default_store()
    try:
        with Stopping(config.stopping, config.folder, signals) as stopping:
            return train(config, plan, device, stopping)
    except (UserError, OSError) as error:
        if store.add("isotorus/user_errors", 1) == 1:
            shown = from_os_error(error, f"run {config.folder}") if isinstance(error, OSError) else error
            print(f"error: {shown}", file=sys.stderr, flush=True)
        abandon()
    except RuntimeError:
        # A rank that ended with a UserError breaks the others' collectives: theirs is no news.
        if store.add("isotorus/user_errors", 0) > 0:
            abandon()
        raise


def abandon() -> NoReturn:
    """Leave at once with exit code 2: a clean shutdown would wait for ranks that wait for this one."""
    sys.stderr.flush()
    os._exit(2)


@contextmanager
def process_group(hang: float) -> Iterator[torch.device]:
    """The process group that the launcher describes, or a group of one; gives this rank's device.

    Its own timeout, which would kill a rank without its stack, comes after `hang` seconds and the watchdog.
    """
    if torch.cuda.is_available():
        ranks, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if ranks > devices:
            raise UserError(
                f"{ranks} processes on a node with {devices} GPU; use --nproc-per-node {devices}, or set "
                "CUDA_VISIBLE_DEVICES= to train on CPUs"
            )
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(seconds=hang + 60))
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(exit_code(main))
