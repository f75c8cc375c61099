"""An sbatch script for one run, or an array of them for a sweep: written, submitted, followed if asked."""

import argparse
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from isotorus.errors import UserError, from_os_error
from launch.environment import masked
from launch.recipe import named, read_recipe
from launch.slurm.slurm_jobs import follow, submit
from launch.slurm.slurm_script import REQUEUE_CODE, Job, script

if TYPE_CHECKING:
    from pretrain.config import Config

TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "slurm",
        help="a job of Slurm, queued again until the run is complete",
        usage="python -m launch slurm --nodes N (--gpus-per-node K | --ranks-per-node K) [options] "
        "-- --config x.yaml [key=value …]",
        description="Writes an sbatch script and submits it. Options that are not listed go to sbatch.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--nodes", type=_positive, default=1)
    ranks = parser.add_mutually_exclusive_group(required=True)
    ranks.add_argument("--gpus-per-node", metavar="[TYPE:]K", help="GPUs of a node, each with a rank")
    ranks.add_argument("--ranks-per-node", type=_positive, metavar="K", help="ranks of a node, on CPUs")
    add("--task-per", choices=("node", "gpu"), default="node", help="srun starts torchrun, or each rank")
    add("--cpus-per-rank", type=_positive, help="default: 1, and 1 for each of data.workers")
    add("--memory", help="of a node, such as 200G; default: the partition's")
    add("--time", help="limit, such as 4:00:00 or 1-00:00:00; default: the partition's")
    add("--signal-before", type=_positive, default=300, metavar="SECONDS", help="to save, before the limit")
    for name in ("partition", "account", "qos", "constraint"):
        add(f"--{name}", help="as sbatch's")
    add("--name", help="of the job; default: the run's")
    add("--output", metavar="FOLDER", help="for the script and logs; default: <runs>/slurm")
    add("--max-requeues", type=_count, default=3, metavar="N", help="times after failures; default 3")
    add("--sweep", action="store_true", help="a grid as of pretrain sweep: one task of an array a run")
    add("--at-once", type=_positive, metavar="N", help="runs of a sweep at a time; default: all")
    add("--modules", nargs="+", default=[], help="to be loaded first")
    add("--setup", action="append", default=[], metavar="LINE", help="of shell, before the run; repeatable")
    add("--python", help="interpreter; default: this one, in a container python3")
    add("--container-image", help="of Pyxis, or with --container-runtime apptainer of Apptainer")
    add("--container-runtime", choices=("pyxis", "apptainer"), default="pyxis")
    add("--container-mounts", metavar="SRC:DST,…", help="beside this folder, which is mounted in any case")
    add("--wait", action="store_true", help="until the job has ended, and end with its exit code")
    add("--dry-run", action="store_true", help="print the script and the command instead")
    parser.set_defaults(start=start, trains=True, passes_options_on=True)


def start(given: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """Submit `python -m pretrain PRETRAIN` on all nodes; returns 0, or if waited for the job's exit code.

    Raises UserError for what this machine, the recipe or Slurm itself refuses.
    """
    if shutil.which("sbatch") is None and not given.dry_run:
        raise UserError(
            "no Slurm on this machine (sbatch not found); submit from a login node of the cluster; "
            "to see the script, use --dry-run"
        )
    _check_options(given)
    _refuse_secrets([*pretrain, *options, *given.setup])
    # torch comes with them: seconds, which the refusals before need not wait for.
    from pretrain import sweep
    from pretrain.monitoring import mlflow
    from pretrain.preflight import check_model

    base, configs, runs = _runs(given.sweep, pretrain)
    ranks = given.ranks_per_node or int(given.gpus_per_node.rpartition(":")[2])
    for config in configs:
        check_model(config, given.nodes * ranks)
        _check_signal(config, given.signal_before)
    first, name = configs[0], given.name or base
    folder = Path(given.output or Path(first.runs) / "slurm").absolute()
    path = folder / f"{name}.sbatch"
    command = ["sbatch", "--parsable", *options, str(path)]
    if given.dry_run:
        print(f"{script(_job(given, runs, first, ranks, name, folder))}\n# {shlex.join(command)}")
        return 0
    parent = sweep.parent_run(base, Path(first.runs), first.tracking) if given.sweep else None
    if parent:
        runs = [[*run, f"tracking.parent={parent}"] for run in runs]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(script(_job(given, runs, first, ranks, name, folder)))
    except OSError as error:
        raise from_os_error(error, f"the script and logs in {folder} (--output)") from None
    number = submit(command)
    if parent:  # no process of ours may be left to close it when the last run has ended
        mlflow.end_family(first.tracking, parent, "FINISHED")
    logs = f"{folder}/{name}-{number}*.log"
    print(
        f"job {number}: {given.nodes} × {ranks} ranks, logs {logs}\n"
        f"watch: squeue -j {number}; tail -F {logs}\n"
        f"stop:  scancel --signal=TERM {number} (saves and ends, however long that takes; scancel {number} "
        "has to be done within the cluster's KillWait)",
        flush=True,
    )
    return follow(number) if given.wait else 0


def _runs(swept: bool, pretrain: list[str]) -> "tuple[str, list[Config], list[list[str]]]":
    """The recipe's name, and the configuration and arguments of each run."""
    from pretrain import sweep

    if swept:
        return sweep.runs_of(*named(pretrain))
    recipe = read_recipe(pretrain)
    return recipe.config.name, [recipe.config], [["--config", recipe.path, *recipe.overrides]]


def _job(
    given: argparse.Namespace, runs: list[list[str]], config: "Config", ranks: int, name: str, folder: Path
) -> Job:
    tasks = ranks if given.task_per == "gpu" else 1
    cpus = (given.cpus_per_rank or 1 + config.data.workers) * ranks // tasks
    log = "%x-%A_%a" if len(runs) > 1 else "%x-%j"
    asked = {
        "job-name": name,
        "nodes": given.nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": cpus,
        "gres": given.gpus_per_node and f"gpu:{given.gpus_per_node}",
        "mem": given.memory,
        "time": given.time,
        "partition": given.partition,
        "account": given.account,
        "qos": given.qos,
        "constraint": given.constraint,
        "array": _array(len(runs), given.at_once),
        "output": folder / f"{log}.log",
        "open-mode": "append",
        "signal": f"USR1@{given.signal_before}",
        "export": "ALL",
    }
    # A rank that is gone should not keep the others waiting; those that leave together take seconds.
    srun = [f"--cpus-per-task={cpus}", "--kill-on-bad-exit=0", "--wait=60"]
    container: list[str] = []
    if given.container_image:
        mounts = ",".join(filter(None, [f"{Path.cwd()}:{Path.cwd()}", given.container_mounts]))
        if given.container_runtime == "pyxis":
            srun += [f"--container-image={given.container_image}", f"--container-mounts={mounts}"]
            srun += [f"--container-workdir={Path.cwd()}"]
        else:
            gpus = ["--nv"] if given.gpus_per_node else []
            container = ["apptainer", "exec", *gpus, "--bind", mounts, "--pwd", str(Path.cwd())]
            container += [given.container_image]
    code = config.stopping.requeue_code or REQUEUE_CODE
    return Job(
        options=[*(f"--{key}={value}" for key, value in asked.items() if value is not None), "--requeue"],
        setup=[*([f"module load {shlex.join(given.modules)}"] if given.modules else []), *given.setup],
        srun=srun,
        container=container,
        python=given.python or ("python3" if given.container_image else sys.executable),
        nodes=given.nodes,
        ranks=ranks,
        task_a_rank=given.task_per == "gpu",
        runs=[[*run, f"stopping.requeue_code={code}"] for run in runs],
        requeue_code=code,
        max_requeues=given.max_requeues,
        failures=f"{folder}/{name}",
    )


def _array(runs: int, at_once: int | None) -> str | None:
    if runs == 1:
        return None
    return f"0-{runs - 1}" + (f"%{at_once}" if at_once else "")


def _check_options(given: argparse.Namespace) -> None:
    if given.time:
        if not TIME.fullmatch(given.time):
            raise UserError(
                f"--time {given.time} is no limit of Slurm's; write hours:minutes:seconds, e.g. 4:00:00"
            )
        seconds = _seconds(given.time)
        if seconds <= given.signal_before:
            raise UserError(
                f"--signal-before {given.signal_before} is not before the end of --time {given.time}; use a "
                "longer limit or fewer seconds"
            )
    if given.gpus_per_node and not re.fullmatch(r"([\w.-]+:)?[1-9]\d*", given.gpus_per_node):
        raise UserError(f"--gpus-per-node {given.gpus_per_node}: write a number, or type:number as a100:4")
    if given.at_once and not given.sweep:
        raise UserError("--at-once is for --sweep; leave it out")


def _seconds(time: str) -> int:
    """Of a limit as Slurm reads it: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    else:
        hours, minutes, seconds = ([0, *parts, 0] if len(parts) == 1 else [0, *parts])[-3:]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _check_signal(config: "Config", before: int) -> None:
    if before <= config.stopping.grace:
        raise UserError(
            f"--signal-before {before} leaves less than stopping.grace={config.stopping.grace:g} s to save; "
            "raise the one or lower the other"
        )


def _refuse_secrets(lines: list[str]) -> None:
    for line in lines:
        if masked(line) != line:
            raise UserError(
                f"{masked(line)} would stand in the script for others to read; export it in this shell, as "
                "sbatch passes the environment on (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, …)"
            )


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return int(text)
