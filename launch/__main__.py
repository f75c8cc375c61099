"""`python -m launch KIND [options] -- <pretrain arguments>`: one command to processes on many nodes."""

import argparse
import sys

from isotorus.errors import ArgumentParser, UserError, exit_code
from launch import deepspeed, doctor, kubernetes, slurm, torchrun

KINDS = (torchrun, deepspeed, slurm, kubernetes, doctor)


def main() -> int:
    launcher, pretrain = split(sys.argv[1:])
    given, others = build_parser().parse_known_args(launcher)
    if not pretrain and given.trains:
        raise UserError("nothing after --; write -- --config recipe.yaml, as for python -m pretrain")
    if others and not given.passes_options_on:
        raise UserError(f"{others[0]} is no option of {given.kind}; see python -m launch {given.kind} --help")
    return given.start(given, others, pretrain)


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m launch",
        description="Start pretraining on many processes; what follows -- goes to python -m pretrain.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in KINDS:
        kind.add_parser(kinds)
    return parser


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The launcher's own arguments, and pretrain's after the first --."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


if __name__ == "__main__":
    sys.exit(exit_code(main))
