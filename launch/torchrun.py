"""torchrun in this process, so that the first failing rank's exit code is this command's."""

import argparse
import contextlib
import shlex
import signal
import sys
from types import FrameType

import psutil
from torch.distributed import run as torch_run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "torchrun",
        help="processes of this node through torchrun",
        usage="python -m launch torchrun [--dry-run] [torchrun options] -- --config x.yaml [key=value …]",
        description="Options before -- are torchrun's own (--nproc-per-node, --nnodes, --rdzv-endpoint, …).",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command instead of running it")
    parser.set_defaults(start=start, trains=True, passes_options_on=True)


def start(given: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """Run `torchrun OPTIONS -m pretrain PRETRAIN`; returns 0, or the exit code of the first failing rank.

    The rank's own message is all that is shown of a failure. SIGTERM and SIGUSR1 are passed on to the
    ranks, which save and end by themselves; torchrun by itself gives them 30 seconds, and then fails
    whatever they did.
    """
    command = [*options, "-m", "pretrain", *pretrain]
    if given.dry_run:
        print(shlex.join(["torchrun", *command]))
        return 0
    arguments = torch_run.parse_args(command)
    arguments.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"
    signal.signal(signal.SIGTERM, _pass_on)
    signal.signal(signal.SIGUSR1, _pass_on)
    try:
        torch_run.run(arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        # A rank that a signal ended has a negative code; shells know it as 128 + signal.
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


def _pass_on(number: int, frame: FrameType | None) -> None:
    ranks = psutil.Process().children()
    if not ranks:  # it has not begun
        sys.exit(128 + number)
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(number)
