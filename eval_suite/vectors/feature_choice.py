"""Which feature set of a checkpoint is embedded: the one that is named, or that an evaluation chose."""

from collections.abc import Mapping

from eval_suite import results
from eval_suite.inputs import seals
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.metrics import FEATURE_SETS
from isotorus.errors import UserError

USUAL = "embedding"


def choose(checkpoint: Checkpoint, named: str | None, widths: Mapping[str, int]) -> tuple[str, str]:
    """Return the name of a feature set of the checkpoint, and why it is that one.

    `widths` are those of the sets that the checkpoint has. Without a name it is the set that the linear probe
    chose in this user's evaluation of the checkpoint, if it is in the folder of `isotorus eval`, else the
    embedding. Raises UserError if the checkpoint has no such set.
    """
    if named is not None and named not in widths:
        raise UserError(
            f"--features {named}: {checkpoint.name} has no such feature set; it has {', '.join(widths)}"
        )
    if named is not None:
        return named, "as --features says"
    found = _of_evaluation(checkpoint)
    if found in widths:
        return found, "which the linear probe of its evaluation chose; --features names another"
    return USUAL, "the encoder's output; --features names another"


def _of_evaluation(checkpoint: Checkpoint) -> str:
    """Return the feature set that an evaluation of this user chose; "" if there is none."""
    folder = (checkpoint.run or checkpoint.folder) / "eval" / checkpoint.results_name
    if not seals.holds(folder / results.SEAL, [folder / name for name in results.FILES]):
        return ""
    found = results.read(folder)
    chosen = results.dig(found, "representations/pretrained/probe/feature_set")
    same = results.dig(found, "checkpoint/weights_sha256") == checkpoint.weights_sha256
    return chosen if same and chosen in FEATURE_SETS else ""
