"""DeepSpeed's launcher on this node, or on all hosts of a file over ssh, or over pdsh as in DeepSpeed."""

import argparse
import shlex
import socket
import sys

from isotorus.errors import UserError
from launch.deepspeed import pdsh
from launch.environment import masked
from launch.one_node import deepspeed_ranks
from launch.over_ssh import cluster, hosts_agree
from launch.over_ssh.hosts import Host, read_hosts
from launch.over_ssh.job import Job, make, show


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "deepspeed",
        help="processes of this node, or of all hosts of a file, through DeepSpeed's launcher",
        usage="python -m launch deepspeed [--hostfile FILE] [options] -- --config x.yaml [key=value …]",
        description="Without --hostfile: on this node. Options are DeepSpeed's own, with - or _.",
        allow_abbrev=False,
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run instead of running it")
    parser.add_argument(
        "-H", "--hostfile", dest="hosts", metavar="FILE", help="a line 'name slots=4' for each host"
    )
    parser.add_argument(
        "-i", "--include", default="", metavar="A@B:0,2", help="only these hosts, or these slots of them"
    )
    parser.add_argument("-e", "--exclude", default="", metavar="A@B:0", help="all but these")
    parser.add_argument(
        "--num-nodes", "--num_nodes", type=int, metavar="N", help="only the first hosts of the file"
    )
    parser.add_argument(
        "--num-gpus",
        "--num_gpus",
        type=int,
        metavar="N",
        help="ranks a host; default: its slots, or its GPUs",
    )
    parser.add_argument(
        "--master-addr", "--master_addr", default="", help="where ranks meet; default: the first host"
    )
    parser.add_argument(
        "--master-port", "--master_port", "--port", dest="port", type=int, help="default: a free one"
    )
    parser.add_argument("--launcher", choices=["ssh", "pdsh"], default="ssh", help="default: ssh")
    parser.add_argument(
        "--bind-cores-to-rank", "--bind_cores_to_rank", action="store_true", help="by numactl"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME", help="pass this variable on too"
    )
    parser.add_argument("--python", default=sys.executable, help="on the hosts; default: %(default)s")
    parser.add_argument("--ssh", default="ssh", metavar="COMMAND", help="e.g. 'ssh -F my_config'")
    parser.add_argument(
        "--patience", type=float, default=30, help="seconds without a word until a host is gone (default 30)"
    )
    parser.set_defaults(start=start, trains=True, passes_options_on=False)


def start(given: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """0, or the exit code of the first failing rank, whose own message is all that is shown of a failure."""
    job = read_job(given, pretrain)
    if given.hosts and given.launcher == "pdsh":
        return pdsh.start(job, given.dry_run)
    if given.hosts:
        if given.dry_run:
            show(job)
            return 0
        return cluster.Launch(job).run()
    return _here(job, given.dry_run)


def read_job(given: argparse.Namespace, pretrain: list[str]) -> Job:
    """Raises UserError for what cannot be, before any host is asked."""
    if given.num_nodes is not None and given.num_nodes < 1:
        raise UserError(f"--num-nodes {given.num_nodes}: give 1 or more")
    if given.num_gpus is not None and given.num_gpus < 1:
        raise UserError(f"--num-gpus {given.num_gpus}: give 1 or more")
    if (given.include or given.exclude) and (given.num_nodes or given.num_gpus):
        raise UserError(
            "--num-nodes and --num-gpus do not go with --include and --exclude; leave out one kind"
        )
    if given.include and given.exclude:
        raise UserError("--include and --exclude do not go together; leave out one of them")
    if given.hosts:
        hosts = read_hosts(given.hosts)
        if given.num_nodes and given.num_nodes > len(hosts):
            raise UserError(f"--num-nodes {given.num_nodes}: {given.hosts} has {len(hosts)} hosts; add some")
        hosts = hosts[: given.num_nodes]
    else:
        if given.num_nodes and given.num_nodes > 1:
            raise UserError(f"--num-nodes {given.num_nodes} needs --hostfile FILE with as many hosts")
        hosts = [Host("localhost", given.num_gpus or _gpus())]
    for host in hosts:
        if given.num_gpus and given.num_gpus > host.slots:
            raise UserError(
                f"--num-gpus {given.num_gpus}: host {host.name} has slots={host.slots} in {given.hosts}; "
                "give fewer, or raise its slots"
            )
    devices = {host.name: [*range(given.num_gpus or host.slots)] for host in hosts}
    if given.include or given.exclude:
        devices = select(devices, given.include or given.exclude, keep=bool(given.include))
    chosen = [Host(name, len(numbers)) for name, numbers in devices.items()]
    job = make(
        given, chosen, pretrain, ["--bind_cores_to_rank"] * given.bind_cores_to_rank, fewest=len(chosen)
    )
    job.devices, job.address = devices, given.master_addr
    job.environment[deepspeed_ranks.LAUNCH] = job.id
    return job


def select(devices: dict[str, list[int]], spec: str, *, keep: bool) -> dict[str, list[int]]:
    """Those that DeepSpeed's `NAME[:SLOT,…][@NAME…]` names, or all others; UserError if there are none."""
    option = "--include" if keep else "--exclude"
    named: dict[str, set[int]] = {}
    for part in spec.split("@"):
        name, colon, numbers = part.partition(":")
        if name not in devices:
            raise UserError(f"{option} {spec}: host '{name}' is not there; there is {', '.join(devices)}")
        slots = set(devices[name])
        if colon:
            given = numbers.split(",")
            if not all(number.isascii() and number.isdigit() and int(number) in slots for number in given):
                raise UserError(
                    f"{option} {spec}: host {name} has the slots 0 to {max(slots)}, not '{numbers}'; "
                    "name some of them"
                )
            slots = {int(number) for number in given}
        named.setdefault(name, set()).update(slots)
    left = {
        name: [n for n in numbers if (n in named.get(name, ())) == keep] for name, numbers in devices.items()
    }
    left = {name: numbers for name, numbers in left.items() if numbers}
    if not left:
        raise UserError(f"{option} {spec} leaves no slot; name others")
    return left


def _gpus() -> int:
    import torch  # slow

    return max(1, torch.cuda.device_count())


def _here(job: Job, dry_run: bool) -> int:
    """All ranks on this node, with this process's environment."""
    here, meet = socket.gethostname(), job.address or "127.0.0.1"
    (host,) = job.hosts
    if dry_run:
        print(masked(shlex.join(job.ranks(job.arguments(host, meet, job.port or "<a free port>", True)))))
        return 0
    found = hosts_agree.look({"recipe": None, "meet": meet, "port": job.port})
    hosts_agree.compare({here: found}, None, meet)
    failure = deepspeed_ranks.run(job.arguments(host, meet, found["port"], True), job.pretrain)
    if failure is None:
        return 0
    if not failure.said.startswith("error: ") and failure.code not in (job.requeue_code, 130):
        ending = f"signal {failure.code - 128}" if failure.code > 128 else f"exit code {failure.code}"
        print(f"error: rank {failure.rank}, on host {here}, ended with {ending}", file=sys.stderr)
    return failure.code
