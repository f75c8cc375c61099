"""What a launcher starts: `isotorus train`, or another command that uses many processes or nodes."""

from collections.abc import Sequence
from typing import NamedTuple

from isotorus.errors import UserError


class Work(NamedTuple):
    name: str
    """The command, as after `isotorus`."""
    module: tuple[str, ...]
    """What follows `python -m` to run it."""
    by_parts: bool
    """Whether each node (for `pack` each task) does a part of the work by itself, given by --part, and a last
    process completes it. Otherwise all ranks of all nodes are one process group."""


TRAIN = Work("train", ("pretrain",), by_parts=False)
WORK = {
    work.name: work
    for work in (
        TRAIN,
        Work("finetune", ("finetune",), by_parts=False),
        Work("embed", ("eval_suite", "embed"), by_parts=False),
        Work("eval", ("eval_suite",), by_parts=True),
        Work("pack", ("data_pipeline", "pack"), by_parts=True),
    )
}
"""The commands that can stand before the `--` of a launch."""
SUBCOMMANDS = ("certificate", "codes", "compare", "duplicates", "layers", "winding")
"""Commands of `isotorus eval` that run in one process."""


def check(work: Work, arguments: Sequence[str]) -> None:
    """Raise UserError for arguments that cannot be launched, as far as that shows without running them."""
    if work.name == "eval" and arguments and arguments[0] in SUBCOMMANDS:
        name = f"eval {arguments[0]}"
        raise UserError(f"{name} runs in one process and is not launched; run: isotorus {name} …")


def refuse_part(work: Work, arguments: Sequence[str]) -> None:
    """Raise UserError for a part that a user gives, where the launcher divides the work itself."""
    if work.by_parts and "--part" in {argument.partition("=")[0] for argument in arguments}:
        raise UserError(f"{work.name} … --part: the launcher gives each node its part; leave it out")


def watches(work: Work, arguments: Sequence[str]) -> bool:
    """Return whether the work follows runs that are still training, which one node does."""
    return work.name == "eval" and "--watch" in arguments
