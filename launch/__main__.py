"""`python -m launch KIND [options] -- <pretrain arguments>`: start pretraining on one node or many."""

import argparse
import sys

from isotorus.errors import ArgumentParser, UserError, exit_code
from launch import deepspeed, doctor, kubernetes, slurm, torchrun

KINDS = (torchrun, deepspeed, slurm, kubernetes, doctor)
"""Each offers `add_parser`, and `start(args, others, pretrain)`, which returns the exit code."""


def main() -> int:
    launcher, pretrain = split(sys.argv[1:])
    args, others = build_parser().parse_known_args(launcher)
    if not pretrain and args.trains:
        raise UserError("nothing after --; write -- --config recipe.yaml, as for isotorus train")
    if others and not args.passes_options_on:
        raise UserError(f"{others[0]} is no option of {args.kind}; see isotorus launch {args.kind} --help")
    return args.start(args, others, pretrain)


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="isotorus launch",
        description="Start pretraining on many processes. Arguments after -- are those of isotorus train.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in KINDS:
        kind.add_parser(kinds)
    return parser


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the launcher's own arguments, and those after the first `--`, which are for pretrain."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


if __name__ == "__main__":
    sys.exit(exit_code(main))
