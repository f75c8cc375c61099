"""Submit a job to Slurm, and follow it until it ends."""

import re
import subprocess
import sys
import time
from collections import Counter

from isotorus.errors import UserError

ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}
POLL_SECONDS = 5
LONGEST_SILENCE = 55.0
"""Seconds after which the state is printed again."""


def submit(command: list[str]) -> str:
    """Run an `sbatch --parsable` command. Return the job's number, or raise UserError with Slurm's reason."""
    sbatch = subprocess.run(command, capture_output=True, text=True)
    if sbatch.returncode == 0:
        return sbatch.stdout.strip().partition(";")[0]  # the cluster's name may follow
    lines = [
        line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in sbatch.stderr.splitlines()
    ]
    reason = "; ".join(line for line in lines if line and "--help" not in line)
    raise UserError(
        f"Slurm refuses the job: {reason or 'sbatch gives no reason'}; sinfo and scontrol show partition "
        "show what the cluster has, --dry-run shows what was requested"
    )


def follow(number: str) -> int:
    """Wait until the job, or all tasks of its array, have ended for good. Return the largest exit code.

    A line on stderr says what state they are in when that changes, and every minute.

    `sbatch --wait` is not used because it returns when a job is only being queued again.
    """
    seen, line, shown_at = 0, "", 0.0
    while seen < 2:  # twice, because a job that is queued again looks ended for a moment
        time.sleep(POLL_SECONDS)
        shown = subprocess.run(
            ["scontrol", "show", "--oneliner", "job", number], capture_output=True, text=True
        )
        if "Invalid job id" in shown.stderr:
            raise UserError(f"Slurm no longer knows job {number}; sacct -j {number} may show how it ended")
        states = re.findall(r" JobState=(\w+)", shown.stdout)  # empty while the controller does not answer
        seen = seen + 1 if states and ENDED.issuperset(states) else 0
        counts = ", ".join(f"{count} {state}" for state, count in Counter(states).items())
        if states and (counts != line or time.monotonic() - shown_at > LONGEST_SILENCE):
            line, shown_at = counts, time.monotonic()
            print(f"job {number}: {counts}", file=sys.stderr, flush=True)
    codes = [
        int(code) or (128 + int(number) if int(number) else int(state != "COMPLETED"))
        for state, code, number in re.findall(r" JobState=(\w+).* ExitCode=(\d+):(\d+)", shown.stdout)
    ]
    return max(codes)
