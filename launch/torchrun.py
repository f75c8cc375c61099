"""torchrun on this node, on one of several that are each given the command, or over ssh on all of a file."""

import argparse
import shlex
import sys

from launch.one_node import torchrun_ranks
from launch.over_ssh import cluster


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "torchrun",
        help="processes of this node, or of all hosts of a file, through torchrun",
        usage="python -m launch torchrun [--hosts FILE] [torchrun options] -- --config x.yaml [key=value …]",
        description="What is not below, before --, is torchrun's own: --nproc-per-node, --nnodes 2 or 1:4, "
        "--node-rank, --rdzv-endpoint, --max-restarts, …",
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run instead of running it")
    group = parser.add_argument_group("one command for many hosts")
    group.add_argument(
        "--hosts", metavar="FILE", help="start all hosts of a file, a line 'name slots=4' each"
    )
    group.add_argument("--include", default="", metavar="A,B", help="of the file, only these")
    group.add_argument("--exclude", default="", metavar="A,B", help="of the file, all but these")
    group.add_argument("--port", type=int, help="where the hosts meet, on the first; default: a free one")
    group.add_argument("--env", action="append", default=[], metavar="NAME", help="pass this variable on too")
    group.add_argument("--python", default=sys.executable, help="on the hosts; default: %(default)s")
    group.add_argument("--ssh", default="ssh", metavar="COMMAND", help="e.g. 'ssh -F my_config'")
    group.add_argument(
        "--patience", type=float, default=30, help="seconds without a word until a host is gone (default 30)"
    )
    parser.set_defaults(start=start, trains=True, passes_options_on=True)


def start(given: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """0, or the exit code of the first failing rank, whose own message is all that is shown of a failure."""
    if given.hosts:
        return cluster.start(given, options, pretrain)
    if given.dry_run:
        print(shlex.join(["torchrun", *options, "-m", "pretrain", *pretrain]))
        return 0
    failure = torchrun_ranks.run(options, pretrain)
    if failure is None:
        return 0
    if failure.said:
        print(failure.said, file=sys.stderr)
    return failure.code
