"""The section `stopping` of a recipe."""

from pydantic import Field, PositiveFloat

from isotorus.section import Section


class StoppingConfig(Section):
    grace: PositiveFloat = 120
    """Seconds that a run has for saving and ending after Ctrl-C, SIGTERM or SIGUSR1; then it ends without
    saving, with exit code 75. Choose less than the time that the scheduler waits before it kills."""
    hang: PositiveFloat = 600
    """Seconds without a finished step (or save, or part of the start) after which every rank writes its
    stack to <runs>/<name>/stacks and ends with exit code 75."""
    lost: PositiveFloat = 60
    """Seconds without a heartbeat from a rank after which the other ranks count it as lost and end with exit
    code 75, so that the launcher starts them again."""
    unreachable: int = Field(10, ge=2, le=3600)
    """Seconds without any answer from a host after which the ranks on other hosts count it as gone and end
    with exit code 75. A host still answers if its processes are stopped or busy."""
    requeue_code: int = Field(0, ge=0, le=125)
    """Exit code after SIGUSR1 and a save, by which a batch script knows to queue the job again. After SIGTERM
    it is always 0."""
