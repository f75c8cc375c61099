"""`launch slurm`: its options, their checks, and the batch script that they describe."""

import argparse
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from isotorus.errors import UserError, from_os_error
from isotorus.numbers import positive, whole_number
from isotorus.secrets import holds_registry_password, holds_secret, masked_command
from launch.recipe import read_recipe, split_arguments
from launch.slurm.slurm_script import KILLED_BY_USR1, REQUEUE_CODE, Job, script
from launch.slurm.slurm_submit import follow, submit
from launch.work import TRAIN, check_division, watches

if TYPE_CHECKING:
    from pretrain.config import Config

_CPUS = 4
"""CPUs for each rank of another command than `train`. How many workers it has is not known here."""
TIME = re.compile(r"\d{1,9}|\d{1,9}:\d\d(:\d\d)?|\d{1,5}-\d{1,5}(:\d\d){0,2}", re.ASCII)


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "slurm",
        help="submit a Slurm job that is queued again until the run is complete",
        usage="isotorus launch slurm --nodes N (--gpus-per-node K | --ranks-per-node K) [options] "
        "[train] -- --config x.yaml [key=value …], or eval|embed|finetune|pack -- their arguments",
        description="Writes an sbatch script and submits it. Options that are not listed go to sbatch.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--nodes", type=positive, default=1, help="number of nodes (default 1)")
    ranks = parser.add_mutually_exclusive_group(required=True)
    ranks.add_argument("--gpus-per-node", metavar="[TYPE:]K", help="GPUs on each node, one rank each")
    ranks.add_argument("--ranks-per-node", type=positive, metavar="K", help="ranks on each node, on CPUs")
    add("--task-per", choices=("node", "gpu"), default="node", help="srun starts torchrun, or each rank")
    add(
        "--cpus-per-rank",
        type=positive,
        help="CPUs for each rank; default: 1 + data.workers, or 4 without a recipe",
    )
    add("--memory", help="memory of each node, such as 200G; default: the partition's")
    add("--time", help="time limit, such as 4:00:00 or 1-00:00:00; default: the partition's")
    before = "how long before the time limit the run saves (default 300)"
    add("--signal-before", type=positive, default=300, metavar="SECONDS", help=before)
    for name in ("partition", "account", "qos", "constraint"):
        add(f"--{name}", help="as for sbatch")
    add("--name", help="name of the job; default: the run's name")
    add("--output", metavar="FOLDER", help="where the script and the logs go; default: <runs>/slurm")
    add("--max-requeues", type=_count, default=3, metavar="N", help="restarts after failures (default 3)")
    add("--sweep", action="store_true", help="the arguments are a grid, as for pretrain sweep")
    add("--at-once", type=positive, metavar="N", help="runs of a sweep at the same time; default: all")
    add("--modules", nargs="+", default=[], help="environment modules to load first")
    add("--setup", action="append", default=[], metavar="LINE", help="shell line before the run; repeatable")
    add("--python", help="interpreter; default: this one, or python3 in a container")
    add("--container-image", help="image for Pyxis, or for Apptainer (--container-runtime apptainer)")
    add("--container-runtime", choices=("pyxis", "apptainer"), default="pyxis")
    add("--container-mounts", metavar="SRC:DST,…", help="further mounts; this folder is always mounted")
    add("--wait", action="store_true", help="wait until the job has ended, and return its exit code")
    add("--dry-run", action="store_true", help="print the script and the command instead of submitting")
    parser.set_defaults(start=start, trains=True, passes_options_on=True)


def start(args: argparse.Namespace, options: list[str], arguments: list[str]) -> int:
    """Submit the command `args.work` with `arguments` as a job.

    Return 0, or with --wait the exit code of the job. Raise UserError if this machine has no Slurm, or if the
    recipe or Slurm refuses the job.
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
    _refuse_secrets([*arguments, " ".join(options), *given])
    _refuse_line_breaks([*options, *(text for text in given if text not in args.setup)])
    if args.work is not TRAIN:
        return _start_other(args, options, arguments)
    base, configs, runs = _runs(args.sweep, arguments)
    # Imported here because preflight imports torch, which takes seconds; errors above are then shown at once.
    from pretrain import sweep
    from pretrain.monitoring import mlflow_mirror
    from pretrain.preflight.model import check_model

    ranks = _ranks(args)
    for config in configs:
        check_model(config, args.nodes * ranks)
        _check_signal(config, args.signal_before)
    first, name = configs[0], args.name or base
    folder = Path(args.output or Path(first.runs) / "slurm").absolute()
    _refuse_line_breaks([str(folder), name])
    code = first.stopping.requeue_code or REQUEUE_CODE

    def job(runs: list[list[str]]) -> Job:
        runs = [[*run, f"stopping.requeue_code={code}"] for run in runs]
        return _job(args, runs, 1 + first.data.workers, code, name, folder)

    if args.dry_run:
        return _show(job(runs), options, name, folder)
    parent = sweep.parent_run(base, Path(first.runs), first.tracking) if args.sweep else None
    if parent:
        runs = [[*run, f"tracking.parent={parent}"] for run in runs]
    number = _submit(job(runs), options, name, folder)
    if parent:  # closed now, because no process of ours may be left when the last run has ended
        mlflow_mirror.end_family(first.tracking, parent, "FINISHED")
    _tell(
        number,
        f"{args.nodes} × {ranks} ranks",
        name,
        folder,
        "saves first, however long that takes; a plain scancel "
        f"{number} leaves only the cluster's KillWait to save",
    )
    return follow(number) if args.wait else 0


def _start_other(args: argparse.Namespace, options: list[str], arguments: list[str]) -> int:
    """Submit another command than `train` as a job. The command checks its own arguments in the job."""
    work, ranks = args.work, _ranks(args)
    if args.sweep:
        raise UserError(f"--sweep is a grid of training runs; leave it out for {work.name}")
    check_division(work, arguments, args.nodes)
    name, folder = args.name or work.name, Path(args.output or "slurm").absolute()
    _refuse_line_breaks([str(folder), name])
    code = KILLED_BY_USR1
    if work.name == "finetune":
        code = REQUEUE_CODE
        arguments = [*arguments, f"stopping.requeue_code={code}"]
    job = _job(args, [arguments], _CPUS, code, name, folder)
    if args.dry_run:
        return _show(job, options, name, folder)
    number = _submit(job, options, name, folder)
    kept = "what is finished is kept, and the same command continues"
    _tell(number, f"{work.name} on {args.nodes} × {ranks} ranks", name, folder, kept)
    return follow(number) if args.wait else 0


def _ranks(args: argparse.Namespace) -> int:
    """Return the number of ranks on each node."""
    return args.ranks_per_node or int(args.gpus_per_node.rpartition(":")[2])


def _show(job: Job, options: list[str], name: str, folder: Path) -> int:
    """Print the script and the command that would submit it."""
    print(f"{script(job)}\n# {shlex.join(_command(options, name, folder))}")
    return 0


def _submit(job: Job, options: list[str], name: str, folder: Path) -> str:
    """Write the script and submit it. Return the job's number."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.sbatch").write_text(script(job))
    except OSError as error:
        raise from_os_error(error, f"the script and logs in {folder} (--output)") from None
    return submit(_command(options, name, folder))


def _command(options: list[str], name: str, folder: Path) -> list[str]:
    return ["sbatch", "--parsable", *options, str(folder / f"{name}.sbatch")]


def _tell(number: str, what: str, name: str, folder: Path, stopped: str) -> None:
    """Say where the logs of a job are, and how to watch and stop it; `stopped` says what that does."""
    logs = f"{folder}/{name}-{number}*.log"
    print(
        f"job {number}: {what}, logs {logs}\n"
        f"watch: squeue -j {number}; tail -F {logs}\n"
        f"stop:  scancel --signal=TERM {number} ({stopped})",
        flush=True,
    )


def _runs(swept: bool, pretrain: list[str]) -> "tuple[str, list[Config], list[list[str]]]":
    """Return the recipe's name, and the configuration and the arguments of each run."""
    from pretrain import sweep

    if swept:
        return sweep.runs_of(*split_arguments(pretrain))
    recipe = read_recipe(pretrain)
    return recipe.config.name, [recipe.config], [["--config", recipe.path, *recipe.overrides]]


def _job(
    args: argparse.Namespace, runs: list[list[str]], cpus_per_rank: int, code: int, name: str, folder: Path
) -> Job:
    """Return the contents of the batch script of these runs.

    `cpus_per_rank` is used unless the user gave a number. The job is queued again after exit code `code`.
    """
    work, ranks = args.work, _ranks(args)
    a_task_each = work.name == "pack" or (args.task_per == "gpu" and not work.by_parts)
    tasks = ranks if a_task_each else 1
    cpus = (args.cpus_per_rank or cpus_per_rank) * ranks // tasks
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
    # Ranks that end together end within seconds, so if a task is lost, the others are ended after a minute.
    # Parts of a divided work end at different times, so no limit ends the others.
    srun = [f"--cpus-per-task={cpus}", "--kill-on-bad-exit=0", f"--wait={0 if work.by_parts else 60}"]
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
    divided = work.by_parts and args.nodes * tasks > 1 and not watches(work, runs[0])
    return Job(
        options=[*(f"--{key}={value}" for key, value in options.items() if value is not None), "--requeue"],
        setup=[*([f"module load {shlex.join(args.modules)}"] if args.modules else []), *args.setup],
        srun=srun,
        container=container,
        python=args.python or ("python3" if args.container_image else sys.executable),
        nodes=args.nodes,
        ranks=ranks,
        task_a_rank=args.task_per == "gpu",
        runs=runs,
        requeue_code=code,
        max_requeues=args.max_requeues,
        failures=f"{folder}/{name}",
        work=work,
        last=["--nodes=1", "--ntasks=1", *srun] if divided else [],
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


def _count(text: str) -> int:
    if (number := whole_number(text)) is None:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return number
