"""`python -m pretrain --config recipe.yaml [dotted.key=value …]`, alone or under torchrun or srun.

`python -m pretrain sweep …` runs a grid of them; `export …` writes an encoder for timm or transformers.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from data_pipeline.errors import ArgumentParser, UserError, exit_code, from_os_error
from pretrain import export, sweep
from pretrain.config import Config, describe_fields, load_config
from pretrain.preflight import Plan, check


def main() -> int:
    """Train one run; exit code 0 when it is complete, 2 for what the user can mend."""
    logging.basicConfig(
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR,
        format="%(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if sys.argv[1:2] == ["sweep"]:
        return sweep.main(sys.argv[2:])
    if sys.argv[1:2] == ["export"]:
        return export.main(sys.argv[2:])
    config = parse(sys.argv[1:])
    plan = check(config, int(os.environ.get("WORLD_SIZE", "1")))
    with process_group() as device:
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
    given = parser.parse_intermixed_args(arguments)
    return load_config(given.config, given.overrides)


def run(config: Config, plan: Plan, device: torch.device) -> int:
    """Train; a UserError on any rank is printed once, however many ranks meet it or hang on it."""
    from pretrain.train import train

    store = dist.distributed_c10d._get_default_store()
    try:
        train(config, plan, device)
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
    return 0


def abandon() -> None:
    """Leave at once with exit code 2: a clean shutdown would wait for ranks that wait for this one."""
    sys.stderr.flush()
    os._exit(2)


@contextmanager
def process_group() -> Iterator[torch.device]:
    """The process group that the launcher describes, or a group of one; gives this rank's device."""
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
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(exit_code(main))
