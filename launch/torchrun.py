"""torchrun in this process, so that the first failing rank's exit code is this command's."""

import shlex

from torch.distributed import run as torch_run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def launch(options: list[str], pretrain: list[str], dry_run: bool = False) -> int:
    """Run `torchrun OPTIONS -m pretrain PRETRAIN`; returns 0, or the exit code of the first failing rank.

    The rank's own message is all that is shown of a failure.
    """
    command = [*options, "-m", "pretrain", *pretrain]
    if dry_run:
        print(shlex.join(["torchrun", *command]))
        return 0
    try:
        torch_run.run(torch_run.parse_args(command))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        # A rank that a signal ended has a negative code; shells know it as 128 + signal.
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0
