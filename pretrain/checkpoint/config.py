"""The section `checkpoint` of a recipe."""

from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeFloat, PositiveInt

from data_pipeline.storage.reader import is_remote
from isotorus.section import Section

OnDamage = Literal["previous", "refuse"]


def _url(text: str) -> str:
    if not is_remote(text) or text.startswith(("http://", "https://")):
        raise ValueError(
            f"{text} is no URL of a store that can be written to and listed; give one such as "
            "s3://bucket/runs, or file:///folder for a disk"
        )
    return text


class CheckpointConfig(Section):
    every: PositiveInt = 1000
    """Steps between checkpoints; the last step always has one."""
    keep_last: PositiveInt | None = None
    """How many of the newest checkpoints are kept; by default all. With objective.kind=supervised, the one
    that is best on val is kept too."""
    keep_every: PositiveInt | None = None
    """With keep_last: older checkpoints are kept too if their step is a multiple of this."""
    asynchronous: bool = True
    """Train on while a checkpoint is written; needs memory on the CPU for a copy of the state."""
    on_damage: OnDamage = "previous"
    """What to do at the start if the newest checkpoint is damaged. previous: rename it
    damaged_step_XXXXXXXX and continue from the newest whole one; refuse: end with a line that names the
    file."""
    mirror: Annotated[str, AfterValidator(_url)] | None = None
    """URL of a folder, such as s3://bucket/runs. While the run trains, each checkpoint, config.yaml,
    metrics.jsonl and similar files are copied to <mirror>/<name>. If the run's own folder is gone, or has
    only older checkpoints, the run continues from the mirror."""
    mirror_keep_last: PositiveInt | None = None
    """How many of the newest checkpoints are kept in the mirror; by default as many as `keep_last` says.
    `keep_every` also holds in the mirror."""
    mirror_wait: NonNegativeFloat = 600
    """Seconds that a run waits at its end until its mirror has the last checkpoint. After a signal it waits
    for at most half of stopping.grace."""
