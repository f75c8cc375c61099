"""What a launcher starts: `isotorus train`, or another command that uses many processes or nodes."""

from collections.abc import Sequence
from typing import NamedTuple

from isotorus.errors import UserError


class Work(NamedTuple):
    name: str
    """The command's name after `isotorus`."""
    module: tuple[str, ...]
    """The words after `python -m` that run the command."""
    by_parts: bool
    """Whether each node (with `pack` each task) does a part of the work by itself, as --part says, and a last
    process completes the work. Otherwise all ranks of all nodes form one process group."""


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
"""The commands that can be named before the `--` of a launch."""
SUBCOMMANDS = ("certificate", "codes", "compare", "duplicates", "layers", "search", "winding")
"""Sub-commands of `isotorus eval` that run in one process."""


def check(work: Work, arguments: Sequence[str]) -> None:
    """Raise UserError for a sub-command that is not launched."""
    if work.name == "eval" and arguments and arguments[0] in SUBCOMMANDS:
        name = f"eval {arguments[0]}"
        raise UserError(f"{name} runs in one process and is not launched; run: isotorus {name} …")


def check_division(work: Work, arguments: Sequence[str], nodes: int) -> None:
    """Raise UserError for --part, because the launcher divides the work, and for --watch on many nodes."""
    if work.by_parts and "--part" in {argument.partition("=")[0] for argument in arguments}:
        raise UserError(f"{work.name} … --part: the launcher gives each node its part; leave it out")
    if watches(work, arguments) and nodes > 1:
        raise UserError(
            f"{work.name} … --watch runs on one node, as checkpoints come one by one; leave out --nodes"
        )


def watches(work: Work, arguments: Sequence[str]) -> bool:
    """Return whether the work follows runs that are still training, for which one node is used."""
    return work.name == "eval" and "--watch" in arguments
