"""`launch slurm`: its options, their checks, and the batch script that they describe."""

import argparse
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from isotorus.errors import UserError, from_os_error
from isotorus.numbers import whole_number
from isotorus.secrets import holds_registry_password, holds_secret, masked_command
from launch.recipe import read_recipe, split_arguments
from launch.slurm.slurm_script import REQUEUE_CODE, Job, script
from launch.slurm.slurm_submit import follow, submit

if TYPE_CHECKING:
    from pretrain.config import Config

TIME = re.compile(r"\d{1,9}|\d{1,9}:\d\d(:\d\d)?|\d{1,5}-\d{1,5}(:\d\d){0,2}", re.ASCII)


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "slurm",
        help="submit a Slurm job that is queued again until the run is complete",
        usage="isotorus launch slurm --nodes N (--gpus-per-node K | --ranks-per-node K) [options] "
        "-- --config x.yaml [key=value …]",
        description="Writes an sbatch script and submits it. Options that are not listed go to sbatch.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--nodes", type=_positive, default=1, help="number of nodes (default 1)")
    ranks = parser.add_mutually_exclusive_group(required=True)
    ranks.add_argument("--gpus-per-node", metavar="[TYPE:]K", help="GPUs on each node, one rank each")
    ranks.add_argument("--ranks-per-node", type=_positive, metavar="K", help="ranks on each node, on CPUs")
    add("--task-per", choices=("node", "gpu"), default="node", help="srun starts torchrun, or each rank")
    add("--cpus-per-rank", type=_positive, help="CPUs for each rank; default: 1 + data.workers")
    add("--memory", help="memory of each node, such as 200G; default: the partition's")
    add("--time", help="time limit, such as 4:00:00 or 1-00:00:00; default: the partition's")
    before = "how long before the time limit the run saves (default 300)"
    add("--signal-before", type=_positive, default=300, metavar="SECONDS", help=before)
    for name in ("partition", "account", "qos", "constraint"):
        add(f"--{name}", help="as for sbatch")
    add("--name", help="name of the job; default: the run's name")
    add("--output", metavar="FOLDER", help="where the script and the logs go; default: <runs>/slurm")
    add("--max-requeues", type=_count, default=3, metavar="N", help="restarts after failures (default 3)")
    add("--sweep", action="store_true", help="the arguments are a grid, as for pretrain sweep")
    add("--at-once", type=_positive, metavar="N", help="runs of a sweep at the same time; default: all")
    add("--modules", nargs="+", default=[], help="environment modules to load first")
    add("--setup", action="append", default=[], metavar="LINE", help="shell line before the run; repeatable")
    add("--python", help="interpreter; default: this one, or python3 in a container")
    add("--container-image", help="image for Pyxis, or for Apptainer (--container-runtime apptainer)")
    add("--container-runtime", choices=("pyxis", "apptainer"), default="pyxis")
    add("--container-mounts", metavar="SRC:DST,…", help="further mounts; this folder is always mounted")
    add("--wait", action="store_true", help="wait until the job has ended, and return its exit code")
    add("--dry-run", action="store_true", help="print the script and the command instead of submitting")
    parser.set_defaults(start=start, trains=True, passes_options_on=True)


def start(args: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """Submit `isotorus train PRETRAIN` as a job. Return 0, or with --wait the exit code of the job.

    Raise UserError if this machine has no Slurm, or if the recipe or Slurm refuses the job.
    """
    if shutil.which("sbatch") is None and not args.dry_run:
        raise UserError(
            "no Slurm on this machine (sbatch not found); submit from a login node of the cluster; "
            "to see the script, use --dry-run"
        )
    _check_options(args)
    given = [text for value in vars(args).values() for text in _texts(value)]
    if holds_registry_password(args.container_image or ""):
        raise UserError(
            f"--container-image …@{args.container_image.rpartition('@')[2]} has a password, which would "
            "stand in the script for others to read; put it into the credentials of enroot or apptainer"
        )
    _refuse_secrets([*pretrain, " ".join(options), *given])
    _refuse_line_breaks([*options, *(text for text in given if text not in args.setup)])
    base, configs, runs = _runs(args.sweep, pretrain)
    # Imported here because preflight imports torch, which takes seconds; what is refused above need not wait.
    from pretrain import sweep
    from pretrain.monitoring import mlflow
    from pretrain.preflight import check_model

    ranks = args.ranks_per_node or int(args.gpus_per_node.rpartition(":")[2])
    for config in configs:
        check_model(config, args.nodes * ranks)
        _check_signal(config, args.signal_before)
    first, name = configs[0], args.name or base
    folder = Path(args.output or Path(first.runs) / "slurm").absolute()
    _refuse_line_breaks([str(folder), name])
    path = folder / f"{name}.sbatch"
    command = ["sbatch", "--parsable", *options, str(path)]
    if args.dry_run:
        print(f"{script(_job(args, runs, first, ranks, name, folder))}\n# {shlex.join(command)}")
        return 0
    parent = sweep.parent_run(base, Path(first.runs), first.tracking) if args.sweep else None
    if parent:
        runs = [[*run, f"tracking.parent={parent}"] for run in runs]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(script(_job(args, runs, first, ranks, name, folder)))
    except OSError as error:
        raise from_os_error(error, f"the script and logs in {folder} (--output)") from None
    number = submit(command)
    if parent:  # closed now, because no process of ours may be left when the last run has ended
        mlflow.end_family(first.tracking, parent, "FINISHED")
    logs = f"{folder}/{name}-{number}*.log"
    print(
        f"job {number}: {args.nodes} × {ranks} ranks, logs {logs}\n"
        f"watch: squeue -j {number}; tail -F {logs}\n"
        f"stop:  scancel --signal=TERM {number} (saves first, however long that takes; a plain scancel "
        "{number} leaves only the cluster's KillWait to save)",
        flush=True,
    )
    return follow(number) if args.wait else 0


def _runs(swept: bool, pretrain: list[str]) -> "tuple[str, list[Config], list[list[str]]]":
    """Return the recipe's name, and the configuration and the arguments of each run."""
    from pretrain import sweep

    if swept:
        return sweep.runs_of(*split_arguments(pretrain))
    recipe = read_recipe(pretrain)
    return recipe.config.name, [recipe.config], [["--config", recipe.path, *recipe.overrides]]


def _job(
    args: argparse.Namespace, runs: list[list[str]], config: "Config", ranks: int, name: str, folder: Path
) -> Job:
    """Return the contents of the batch script of these runs."""
    tasks = ranks if args.task_per == "gpu" else 1
    cpus = (args.cpus_per_rank or 1 + config.data.workers) * ranks // tasks
    log = "%x-%A_%a" if len(runs) > 1 else "%x-%j"
    options = {
        "job-name": name,
        "nodes": args.nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": cpus,
        "gres": args.gpus_per_node and f"gpu:{args.gpus_per_node}",
        "mem": args.memory,
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        "qos": args.qos,
        "constraint": args.constraint,
        "array": _array(len(runs), args.at_once),
        # sbatch replaces %j and the like in the path of the log.
        "output": f"{str(folder).replace('%', '%%')}/{log}.log",
        "open-mode": "append",
        "signal": f"USR1@{args.signal_before}",
        "export": "ALL",
    }
    # Ranks that end together end within seconds. If a task is lost, end the others after a minute.
    srun = [f"--cpus-per-task={cpus}", "--kill-on-bad-exit=0", "--wait=60"]
    container: list[str] = []
    if args.container_image:
        mounts = ",".join(filter(None, [f"{Path.cwd()}:{Path.cwd()}", args.container_mounts]))
        if args.container_runtime == "pyxis":
            srun += [f"--container-image={args.container_image}", f"--container-mounts={mounts}"]
            srun += [f"--container-workdir={Path.cwd()}"]
        else:
            gpus = ["--nv"] if args.gpus_per_node else []
            container = ["apptainer", "exec", *gpus, "--bind", mounts, "--pwd", str(Path.cwd())]
            container += [args.container_image]
    code = config.stopping.requeue_code or REQUEUE_CODE
    return Job(
        options=[*(f"--{key}={value}" for key, value in options.items() if value is not None), "--requeue"],
        setup=[*([f"module load {shlex.join(args.modules)}"] if args.modules else []), *args.setup],
        srun=srun,
        container=container,
        python=args.python or ("python3" if args.container_image else sys.executable),
        nodes=args.nodes,
        ranks=ranks,
        task_a_rank=args.task_per == "gpu",
        runs=[[*run, f"stopping.requeue_code={code}"] for run in runs],
        requeue_code=code,
        max_requeues=args.max_requeues,
        failures=f"{folder}/{name}",
    )


def _array(runs: int, at_once: int | None) -> str | None:
    """Return sbatch's --array for a number of runs, or None for one run."""
    if runs == 1:
        return None
    return f"0-{runs - 1}" + (f"%{at_once}" if at_once else "")


def _check_options(args: argparse.Namespace) -> None:
    if args.time:
        if not TIME.fullmatch(args.time):
            raise UserError(
                f"--time {args.time} is no time limit of Slurm; write hours:minutes:seconds, such as 4:00:00"
            )
        seconds = _seconds(args.time)
        if seconds <= args.signal_before:
            raise UserError(
                f"--signal-before {args.signal_before} is not before the end of --time {args.time}; use a "
                "longer limit or fewer seconds"
            )
    if args.name and not re.fullmatch(r"\.*[\w+=-][\w.+=-]*", args.name):
        raise UserError(f"--name {args.name}: expected letters, digits and _ . + = - only")
    if args.gpus_per_node and not re.fullmatch(r"([\w.-]+:)?[1-9][0-9]{0,4}", args.gpus_per_node):
        raise UserError(f"--gpus-per-node {args.gpus_per_node}: write a number, or type:number as a100:4")
    if args.at_once and not args.sweep:
        raise UserError("--at-once is for --sweep; leave it out")


def _seconds(time: str) -> int:
    """Return the seconds of a time limit of Slurm: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s."""
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
            "raise the first or lower the second"
        )


def _texts(value: object) -> list[str]:
    """Return the texts in the value of an option: the value itself, those of a list, or [] for a number."""
    return [value] if isinstance(value, str) else value if isinstance(value, list) else []


def _refuse_line_breaks(texts: list[str]) -> None:
    """Raise UserError for a text that would end its #SBATCH line: the shell would run what follows it."""
    for text in texts:
        if not text.isprintable():
            raise UserError(f"'{text}' holds a line break or control character; take it out")


def _refuse_secrets(lines: list[str]) -> None:
    for line in lines:
        if holds_secret(line):
            raise UserError(
                f"{masked_command(line)} would stand in the script for others to read; export it in this "
                "shell, because sbatch passes the environment on (MLFLOW_TRACKING_USERNAME, "
                "MLFLOW_TRACKING_PASSWORD, …)"
            )


def _positive(text: str) -> int:
    if not (number := whole_number(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return number


def _count(text: str) -> int:
    if (number := whole_number(text)) is None:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return number
