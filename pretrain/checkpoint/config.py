"""The section `checkpoint` of a recipe."""

from typing import Literal

from pydantic import PositiveInt

from isotorus.section import Section

OnDamage = Literal["previous", "refuse"]


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
