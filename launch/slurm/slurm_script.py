"""The text of a batch script: what Slurm is asked for, what runs on a node, when it is queued again."""

import dataclasses
import shlex
from collections.abc import Sequence

REQUEUE_CODE = 85
"""`stopping.requeue_code` of runs that do not choose their own: saved after SIGUSR1, queue me again."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a batch script is made from."""

    options: Sequence[str]
    """Of sbatch, such as --nodes=2; one #SBATCH line each."""
    setup: Sequence[str]
    """Lines of shell before the run, on the first node; what they export reaches all tasks."""
    srun: Sequence[str]
    """Options of srun."""
    container: Sequence[str]
    """The command that a task is put behind, such as apptainer exec IMAGE."""
    python: str
    nodes: int
    ranks: int
    """Of a node."""
    task_a_rank: bool
    """Whether srun starts every rank, or one torchrun on each node."""
    runs: Sequence[Sequence[str]]
    """Arguments of pretrain; more than one makes an array."""
    requeue_code: int
    max_requeues: int
    failures: str
    """The path of the file that notes this job's failures, but for its number and suffix."""


def script(job: Job) -> str:
    """The whole script. It holds no value of the environment: sbatch passes that on by itself."""
    port = "$((10000 + SLURM_JOB_ID % 20000))"
    parts = [
        "#!/bin/bash",
        *(f"#SBATCH {shlex.quote(option)}" for option in job.options),
        "",
        *(["set -e", *job.setup, "set +e"] if job.setup else []),
        "# Slurm's own end of the job (scancel, its time) is not to be followed by another start.",
        "trap 'ended=1' TERM",
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"export MASTER_PORT={port}",
        _arguments(job.runs),
        "",
        f"srun {shlex.join(job.srun)} \\",
        f"  {_task(job)}",
        _again(job),
    ]
    return "\n".join(parts)


def _arguments(runs: Sequence[Sequence[str]]) -> str:
    """Shell that makes the run's arguments "$@"."""
    if len(runs) == 1:
        return f"set -- {shlex.join(runs[0])}"
    cases = (f"  {number}) set -- {shlex.join(run)} ;;" for number, run in enumerate(runs))
    return "\n".join(["case $SLURM_ARRAY_TASK_ID in", *cases, "esac"])


def _task(job: Job) -> str:
    """What each task of srun does. The shell, which knows its number, leaves nothing of itself: a signal to
    all processes of the job would end it."""
    python = shlex.quote(job.python)
    if job.task_a_rank:
        line = (
            "RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID "
            f'LOCAL_WORLD_SIZE={job.ranks} exec {python} -m pretrain "$@"'
        )
    else:
        # The static rendezvous: c10d's fails on a node whose neighbour has ended a moment before.
        line = (
            f"exec {python} -m launch torchrun --nnodes {job.nodes} --node-rank $SLURM_NODEID "
            f"--nproc-per-node {job.ranks} --master-addr $MASTER_ADDR --master-port $MASTER_PORT "
            '-- "$@"'
        )
    behind = f"{shlex.join(job.container)} " if job.container else ""
    return f'{behind}sh -c {shlex.quote(line)} task "$@"'


def _again(job: Job) -> str:
    """What follows a run's end: it is complete, someone has to mend something, or it is queued again."""
    return f"""\
code=$?

failures={shlex.quote(job.failures)}-$SLURM_JOB_ID.failures
queue_again() {{
  echo "slurm: $1; job $SLURM_JOB_ID is queued again"
  trap - TERM
  scontrol requeue "$SLURM_JOB_ID" && sleep 60  # Slurm ends this script
}}
preempted=$(scontrol show job "$SLURM_JOB_ID" | grep -o 'PreemptTime=[0-9].*')
if [ -n "$ended" ]; then
  exit $code
elif [ $code = {job.requeue_code} ]; then
  queue_again 'saved before the end of its time'
elif [ $code = 0 ] && [ -n "$preempted" ]; then
  queue_again 'saved for a job that goes before'
elif [ $code != 0 ] && [ $code != 2 ]; then
  echo "$(date) exit code $code on $SLURM_JOB_NODELIST" >> "$failures"
  if [ "$(wc -l < "$failures")" -le {job.max_requeues} ]; then
    queue_again "exit code $code"
  fi
fi
exit $code
"""
