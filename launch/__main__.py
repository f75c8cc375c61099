"""`python -m launch torchrun [torchrun's options] -- <pretrain arguments>`."""

import argparse
import sys

from launch import torchrun


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Start pretraining on many processes; what follows -- goes to python -m pretrain.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    local = kinds.add_parser(
        "torchrun",
        help="processes of this node through torchrun",
        usage="python -m launch torchrun [--dry-run] [torchrun options] -- --config x.yaml [key=value …]",
        description="Options before -- are torchrun's own (--nproc-per-node, --nnodes, --rdzv-endpoint, …).",
    )
    local.add_argument("--dry-run", action="store_true", help="print the command instead of running it")

    launcher, pretrain = sys.argv[1:], []
    if "--" in launcher:
        cut = launcher.index("--")
        launcher, pretrain = launcher[:cut], launcher[cut + 1 :]
    given, options = parser.parse_known_args(launcher)
    if not pretrain:
        print(
            "error: nothing after --; write -- --config recipe.yaml, as for python -m pretrain",
            file=sys.stderr,
        )
        return 2
    return torchrun.launch(options, pretrain, dry_run=given.dry_run)


if __name__ == "__main__":
    sys.exit(main())
