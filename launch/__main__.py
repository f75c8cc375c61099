"""`python -m launch KIND [options] [COMMAND] -- <its arguments>`: start a command on one node or many.

COMMAND is one of `launch.work.WORK`; without it, `train` is started.
"""

import argparse
import sys

from isotorus.errors import ArgumentParser, UserError, exit_code
from launch import deepspeed, doctor, kubernetes, slurm, torchrun
from launch.work import TRAIN, WORK, Work, check

KINDS = (torchrun, deepspeed, slurm, kubernetes, doctor)
"""Each offers `add_parser`, and `start(args, others, arguments)`, which returns the exit code."""
LAUNCHES_ALL = ("torchrun", "slurm", "kubernetes")
"""The kinds that also start other commands than `train`."""


def main() -> int:
    launcher, work, arguments = split(sys.argv[1:])
    args, others = build_parser().parse_known_args(launcher)
    args.work = work
    if not arguments and args.trains:
        example = "-- --config recipe.yaml" if work is TRAIN else f"{work.name} -- …"
        raise UserError(f"nothing after --; write {example}, as for isotorus {work.name}")
    if work is not TRAIN and args.kind not in LAUNCHES_ALL:
        kinds = " or ".join(LAUNCHES_ALL)
        raise UserError(f"launch {args.kind} starts isotorus train only; {work.name} starts with {kinds}")
    check(work, arguments)
    if others and not args.passes_options_on:
        raise UserError(f"{others[0]} is no option of {args.kind}; see isotorus launch {args.kind} --help")
    return args.start(args, others, arguments)


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="isotorus launch",
        description="Start pretraining on many processes. Arguments after -- are those of isotorus train. "
        f"Write one of {', '.join(WORK)} before the -- to start that command instead.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in KINDS:
        kind.add_parser(kinds)
    return parser


def split(arguments: list[str]) -> tuple[list[str], Work, list[str]]:
    """Return the launcher's own arguments, the command that it starts, and that command's arguments.

    The launcher's arguments end at the first `--`. The word before it names the command, unless it is the
    value of an option.
    """
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    launcher, given = arguments[:cut], arguments[cut + 1 :]
    if cut < len(arguments) and len(launcher) > 1 and launcher[-1] in WORK and not _is_value(launcher):
        return launcher[:-1], WORK[launcher[-1]], given
    return launcher, TRAIN, given


def _is_value(launcher: list[str]) -> bool:
    """Return whether the last word is the value of an option before it, such as --partition eval."""
    try:
        build_parser().parse_known_args(launcher[:-1])
    except UserError as error:
        return "expected" in str(error) and "argument" in str(error)
    return False


if __name__ == "__main__":
    sys.exit(exit_code(main))
