"""`launch torchrun`: start ranks by torchrun on this node, or over ssh on all hosts of a file."""

import argparse
import shlex
import sys

from isotorus.errors import UserError
from isotorus.secrets import masked_command
from launch.one_node import torchrun_ranks
from launch.over_ssh import cluster
from launch.over_ssh.hosts import add_file_options
from launch.over_ssh.job import add_launch_options, port_number
from launch.work import TRAIN


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "torchrun",
        help="start ranks by torchrun, on this node or on all hosts of a file",
        usage="isotorus launch torchrun [--hosts FILE] [torchrun options] [train] -- --config x.yaml "
        "[key=value …], or eval|embed|finetune -- their arguments",
        description="Options before -- that are not listed below go to torchrun: --nproc-per-node, "
        "--nnodes 2 or 1:4, --node-rank, --rdzv-endpoint, --max-restarts, …",
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run instead of running it")
    group = parser.add_argument_group("one command for many hosts")
    add_file_options(group)
    group.add_argument(
        "--port", type=port_number, help="port on the first host where all meet; default: a free one"
    )
    add_launch_options(group)
    parser.set_defaults(start=start, trains=True, passes_options_on=True)


def start(args: argparse.Namespace, options: list[str], arguments: list[str]) -> int:
    """Run the command `args.work` with `arguments`; return 0, or the exit code of the first rank that failed.

    Only the message of that rank is shown.
    """
    if args.hosts:
        if args.work is not TRAIN:
            raise UserError(
                f"--hosts starts isotorus train only; start {args.work.name} on several nodes by launch slurm"
            )
        return cluster.start(args, options, arguments)
    if args.work.name == "pack":
        raise UserError("pack uses all cores of a node without a launcher; run: isotorus pack …")
    if args.dry_run:
        print(masked_command(shlex.join(["torchrun", *options, "-m", *args.work.module, *arguments])))
        return 0
    failure = torchrun_ranks.run(options, arguments, args.work.module)
    if failure is None:
        return 0
    if failure.message:
        print(failure.message, file=sys.stderr)
    return failure.code
