"""The command `isotorus finetune`: train, keep the best step, compare, report."""

import logging
import os
import sys

from finetune.arguments import parse
from isotorus import logs
from isotorus.processes import end_with_launcher, first_rank_reports
from isotorus.scheduled_ranks import check_ranks, set_ranks
from pretrain.run_control.signals import Signals
from pretrain.run_control.surroundings import set_surroundings


def main() -> int:
    """Run the command on every rank; returns the exit code (see docs/runs.md)."""
    ranks = set_ranks()
    level = logging.ERROR if first_rank_reports() else logging.INFO
    logs.start(level, quiet=("accelerate", "alembic", "faiss", "matplotlib"))
    check_ranks()
    end_with_launcher()
    if ranks:
        logging.info(ranks)
    signals = Signals()
    signals.listen()
    set_surroundings()
    given = parse(sys.argv[1:])
    # Imported here because it takes seconds; a mistyped option is refused before that.
    from finetune import train_and_compare

    return train_and_compare.run(given, signals, int(os.environ.get("WORLD_SIZE", "1")))
