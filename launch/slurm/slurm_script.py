"""Write the text of a batch script: resources, what each node runs, and when the job is queued again."""

import dataclasses
import shlex
from collections.abc import Sequence

from isotorus.processes import python_options
from launch.work import TRAIN, Work

REQUEUE_CODE = 85
"""The default `stopping.requeue_code`: the exit code of a run that saved after SIGUSR1, to continue later."""

KILLED_BY_USR1 = 138
"""The exit code (128 + 10) of a command that SIGUSR1 killed. Commands other than `train` and `finetune` do
not handle the signal, and keep what they have finished."""
_STOPS = {"eval": (1,)}
"""Exit codes, beside 0 and 2, after which a command is not started again. 1: `eval` says that an evaluation
failed."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The contents of a batch script."""

    options: Sequence[str]
    """Options for sbatch, such as --nodes=2; each becomes an #SBATCH line."""
    setup: Sequence[str]
    """Shell lines that the first node runs before the run. The variables that they export reach all tasks."""
    srun: Sequence[str]
    """Options for srun."""
    container: Sequence[str]
    """A command that starts each task inside a container, such as apptainer exec IMAGE; or empty."""
    python: str
    nodes: int
    ranks: int
    """The number of ranks on each node."""
    task_a_rank: bool
    """Whether srun starts every rank itself; otherwise it starts one torchrun on each node."""
    runs: Sequence[Sequence[str]]
    """The command's arguments of each run. More than one run makes a job array."""
    requeue_code: int
    """The exit code after which the job is queued again."""
    max_requeues: int
    """How many failures are followed by another start."""
    failures: str
    """The path of the file that lists the job's failures, without the job's number and the suffix."""
    work: Work = TRAIN
    """The command that the job runs."""
    last: Sequence[str] = ()
    """Options for the last srun, which completes a divided work; empty if the work is not divided."""


def script(job: Job) -> str:
    """Return the whole script. It holds no values of environment variables: sbatch passes those on itself."""
    port = "$((10000 + SLURM_JOB_ID % 20000))"
    parts = [
        "#!/bin/bash",
        *(f"#SBATCH {shlex.quote(option)}" for option in job.options),
        "",
        *(["set -e", *job.setup, "set +e"] if job.setup else []),
        "# After Slurm itself ends the job (scancel, time limit), do not start it again.",
        "trap 'ended=1' TERM",
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"export MASTER_PORT={port}",
        _arguments(job.runs),
        "",
        f"srun {shlex.join(job.srun)} \\",
        f"  {_task(job)}",
        "code=$?",
        *([_last(job)] if job.last else []),
        _ending(job),
    ]
    return "\n".join(parts)


def _arguments(runs: Sequence[Sequence[str]]) -> str:
    """Return shell code that puts the run's arguments into "$@"."""
    if len(runs) == 1:
        return f"set -- {shlex.join(runs[0])}"
    cases = (f"  {number}) set -- {shlex.join(run)} ;;" for number, run in enumerate(runs))
    return "\n".join(["case $SLURM_ARRAY_TASK_ID in", *cases, "esac"])


def _task(job: Job) -> str:
    """Return the command of each srun task: a shell that knows the task's number, then becomes Python.

    A shell that stayed would be ended by a signal to all processes of the job.
    """
    if job.work.by_parts:
        return _in_shell(job, _part(job, whole=not job.last))
    python = shlex.join([job.python, *python_options()])
    if job.task_a_rank:
        line = (
            "RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID "
            f'LOCAL_WORLD_SIZE={job.ranks} exec {python} -m {shlex.join(job.work.module)} "$@"'
        )
    else:
        # The static rendezvous, because c10d's fails on a node whose neighbour ended a moment before.
        named = "" if job.work is TRAIN else f"{job.work.name} "
        line = (
            f"exec {python} -m launch torchrun --nnodes {job.nodes} --node-rank $SLURM_NODEID "
            f"--nproc-per-node {job.ranks} --master-addr $MASTER_ADDR --master-port $MASTER_PORT "
            f'{named}-- "$@"'
        )
    return _in_shell(job, line)


def _part(job: Job, *, whole: bool) -> str:
    """Return the shell line that does this task's part of a work, or with `whole` all that is missing."""
    python = shlex.join([job.python, *python_options()])
    if job.work.name == "pack":
        part = "" if whole else " --part $SLURM_PROCID/$SLURM_NTASKS"
        return f'exec {python} -m {shlex.join(job.work.module)} "$@"{part}'
    part = "" if whole else f" --part $SLURM_NODEID/{job.nodes}"
    ranks = f"--standalone --nproc-per-node {job.ranks}"
    return f'exec {python} -m launch torchrun {ranks} {job.work.name} -- "$@"{part}'


def _in_shell(job: Job, line: str) -> str:
    """Return the command of a task: a shell that runs `line`."""
    prefix = f"{shlex.join(job.container)} " if job.container else ""
    return f'{prefix}sh -c {shlex.quote(line)} task "$@"'


def _last(job: Job) -> str:
    """Return shell code that completes a work once all parts have ended."""
    good = " || ".join(f"[ $code = {code} ]" for code in (0, *_STOPS.get(job.work.name, ())))
    return f"""
if [ -z "$ended" ] && {{ {good}; }}; then
  srun {shlex.join(job.last)} \\
    {_in_shell(job, _part(job, whole=True))}
  code=$?
fi"""


def _ending(job: Job) -> str:
    """Return shell code for the end of a run: exit, or queue the job again if it can continue."""
    failed = " && ".join(f"[ $code != {code} ]" for code in (0, 2, *_STOPS.get(job.work.name, ())))
    kept = "saved" if job.work is TRAIN else "stopped"
    return f"""
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
  queue_again '{kept} before the end of its time'
elif [ $code = 0 ] && [ -n "$preempted" ]; then
  queue_again '{kept} to make room for another job'
elif {failed}; then
  echo "$(date) exit code $code on $SLURM_JOB_NODELIST" >> "$failures"
  if [ "$(wc -l < "$failures")" -le {job.max_requeues} ]; then
    queue_again "exit code $code"
  fi
fi
exit $code
"""
