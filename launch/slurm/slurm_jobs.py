"""Jobs in Slurm's hands: submitted, and followed to their end."""

import re
import subprocess
import time

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


def submit(command: list[str]) -> str:
    """Run sbatch --parsable; the job's number. Raises UserError with Slurm's own reason."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.strip().partition(";")[0]  # the cluster's name may follow
    said = [
        line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines()
    ]
    reason = "; ".join(line for line in said if line and "--help" not in line)
    raise UserError(
        f"Slurm refuses the job: {reason or 'sbatch says nothing'}; sinfo and scontrol show partition say "
        "what there is, --dry-run what was asked for"
    )


def follow(number: str) -> int:
    """Wait until the job, or all tasks of its array, have ended for good; the largest exit code.

    sbatch --wait would take a job for ended that is on its way back into the queue.
    """
    seen = 0
    while seen < 2:  # as in between it may look ended for a moment
        time.sleep(POLL_SECONDS)
        done = subprocess.run(
            ["scontrol", "show", "--oneliner", "job", number], capture_output=True, text=True
        )
        if "Invalid job id" in done.stderr:
            raise UserError(f"Slurm knows job {number} no more; sacct -j {number} may say how it ended")
        states = re.findall(r" JobState=(\w+)", done.stdout)  # none while the controller does not answer
        seen = seen + 1 if states and ENDED.issuperset(states) else 0
    codes = [
        int(code) or (128 + int(number) if int(number) else int(state != "COMPLETED"))
        for state, code, number in re.findall(r" JobState=(\w+).* ExitCode=(\d+):(\d+)", done.stdout)
    ]
    return max(codes)
