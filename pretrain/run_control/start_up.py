"""Where the seconds from the start of the process to the end of its first step go."""

import os
import time
from pathlib import Path


class StartUp:
    """A stopwatch from the start of this process on, by the clock that no one sets."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """By part, in their order."""
        self._marked = time.monotonic() - _age()

    def mark(self, part: str) -> None:
        """The part has ended that began at the mark before."""
        now = time.monotonic()
        self.seconds[part] = now - self._marked
        self._marked = now

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s from the start to the first step: {parts}"


def _age() -> float:
    """Seconds that this process has lived; 0 where only the wall clock would tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # proc(5): starttime, the 22nd field
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0
