"""`python -m eval_suite RUN_OR_CHECKPOINT… --train SHARDS --val SHARDS`, alone or under torchrun.

The sub-commands: `layers` measures every block of an encoder over training, `compare` how alike two encoders
are, `winding` whether the angles of a torus head follow the image, `codes` discrete codes of the embedding,
`duplicates` finds near-duplicate images, and `certificate` says whether a torus is there whose angles turn
with known actions on images. `embed` and `search`, also `isotorus embed` and `isotorus search`, write the
vectors of a data set to a file and find what is near in it.
"""

import io
import logging
import sys
from importlib import import_module

from eval_suite import progress
from eval_suite.arguments import options, parse
from isotorus import logs
from isotorus.errors import UserError, exit_code, is_out_of_memory
from isotorus.processes import end_with_launcher, first_rank_reports
from isotorus.scheduled_ranks import set_ranks
from pretrain.run_control.surroundings import set_for_cpus

SUBCOMMANDS = {
    "layers": "eval_suite.layers.command",
    "compare": "eval_suite.layers.compare.command",
    "winding": "eval_suite.torus_head.winding_command",
    "codes": "eval_suite.torus_head.codes_command",
    "duplicates": "eval_suite.torus_head.duplicates_command",
    "certificate": "eval_suite.torus_head.certificate.command",
    "embed": "eval_suite.vectors.embed_command",
    "search": "eval_suite.vectors.search_command",
}
"""The module of each sub-command, imported when it is called; its `main` takes the arguments."""


def main() -> int:
    """Run the command; returns exit code 0, 2 for user errors, 1 if some of several failed."""
    end_with_launcher()
    set_for_cpus()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold bytes that are no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    with progress.shown(enabled=not first_rank_reports()):
        try:
            return _run()
        except (MemoryError, RuntimeError, OSError) as error:
            from eval_suite.attempts import reason

            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"memory ran out ({reason(error)}); use a smaller --batch-size, fewer images, or a machine "
                "with more"
            ) from None


def _run() -> int:
    """Run the evaluation or a sub-command; returns its exit code."""
    logs.start(logging.WARNING)
    if sys.argv[1:] and sys.argv[1] in SUBCOMMANDS:
        code: int = import_module(SUBCOMMANDS[sys.argv[1]]).main(sys.argv[2:])
        return code
    set_ranks()
    given = parse(sys.argv[1:])
    chosen = options(given)
    # Imported here because it takes seconds; a mistyped option is refused before that.
    from eval_suite import evaluate_named

    return evaluate_named.run(given, chosen)


if __name__ == "__main__":
    sys.exit(exit_code(main))
