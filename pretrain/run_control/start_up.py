"""How many seconds each part of a start takes, from the start of the process to the end of its first step."""

import os
import time
from pathlib import Path


class StartUp:
    """A stopwatch that runs from the start of this process, on a clock that is never reset."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds by part, in the order in which the parts ended."""
        self._marked = time.monotonic() - _age()

    def mark(self, part: str) -> None:
        """Note that `part`, which began at the previous mark, has ended."""
        now = time.monotonic()
        self.seconds[part] = now - self._marked
        self._marked = now

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.seconds.items())
        total, cpu = sum(self.seconds.values()), time.process_time()
        return f"{total:.1f} s from the start to the first step: {parts}; {cpu:.1f} s of CPU time"


def _age() -> float:
    """Return how many seconds ago this process started; 0 where the system does not record it."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # proc(5): starttime, the 22nd field
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0
