"""`launch deepspeed`: start ranks by DeepSpeed's launcher on this node, or on hosts over ssh or pdsh."""

import argparse
import shlex
import socket
import sys

from isotorus.errors import INTERRUPTED, UserError
from isotorus.numbers import whole_number
from isotorus.secrets import masked_command
from launch.deepspeed import pdsh
from launch.one_node import deepspeed_ranks
from launch.one_node.torchrun_ranks import default_ranks
from launch.over_ssh import cluster, hosts_agree
from launch.over_ssh.hosts import Host, is_host, read_hosts
from launch.over_ssh.job import Job, add_launch_options, make, port_number, show


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "deepspeed",
        help="start ranks by DeepSpeed's launcher, on this node or on all hosts of a file",
        usage="isotorus launch deepspeed [--hostfile FILE] [options] -- --config x.yaml [key=value …]",
        description="Starts ranks on this node, or with --hostfile on many. The options are those of "
        "DeepSpeed's own launcher, with - or _ between words.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dry-run", action="store_true", help="print what would run instead of running it")
    hosts = "start the hosts in this file; each line is 'name slots=4'"
    add("-H", "--hostfile", dest="hosts", metavar="FILE", help=hosts)
    add("-i", "--include", default="", metavar="A@B:0,2", help="use only these hosts, or slots of a host")
    add("-e", "--exclude", default="", metavar="A@B:0", help="leave out these hosts, or slots of a host")
    add("--num-nodes", "--num_nodes", type=int, metavar="N", help="use the first N hosts of the file")
    ranks = "ranks on each host; default: its slots, on this node its GPUs"
    add("--num-gpus", "--num_gpus", type=int, metavar="N", help=ranks)
    meet = "address where ranks meet; default: the first host"
    add("--master-addr", "--master_addr", default="", help=meet)
    port = "port where ranks meet; default: a free one"
    add("--master-port", "--master_port", "--port", dest="port", type=port_number, help=port)
    add("--launcher", choices=["ssh", "pdsh"], default="ssh", help="how hosts are reached; default: ssh")
    cores = "bind each rank to its own cores by numactl"
    add("--bind-cores-to-rank", "--bind_cores_to_rank", action="store_true", help=cores)
    add_launch_options(parser)
    parser.set_defaults(start=start, trains=True, passes_options_on=False)


def start(args: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """Return 0, or the exit code of the first rank that failed, whose message is the only one shown."""
    job = read_job(args, pretrain)
    if args.hosts and args.launcher == "pdsh":
        return pdsh.start(job, args.dry_run)
    if args.hosts:
        if args.dry_run:
            show(job)
            return 0
        return cluster.Launch(job).run()
    return _run_here(job, args.dry_run)


def read_job(args: argparse.Namespace, pretrain: list[str]) -> Job:
    """Read the job from the options. Raise UserError for impossible options, before any host is contacted."""
    if args.num_nodes is not None and args.num_nodes < 1:
        raise UserError(f"--num-nodes {args.num_nodes}: give 1 or more")
    if args.num_gpus is not None and args.num_gpus < 1:
        raise UserError(f"--num-gpus {args.num_gpus}: give 1 or more")
    if (args.include or args.exclude) and (args.num_nodes or args.num_gpus):
        raise UserError(
            "--num-nodes and --num-gpus do not go with --include and --exclude; leave out one kind"
        )
    if args.include and args.exclude:
        raise UserError("--include and --exclude do not go together; leave out one of them")
    if args.master_addr and not is_host(args.master_addr):
        raise UserError(f"--master-addr '{args.master_addr}' is no host; give a name or an address")
    if args.hosts:
        hosts = read_hosts(args.hosts)
        if args.num_nodes and args.num_nodes > len(hosts):
            raise UserError(f"--num-nodes {args.num_nodes}: {args.hosts} has {len(hosts)} hosts; add some")
        hosts = hosts[: args.num_nodes]
    else:
        if args.num_nodes and args.num_nodes > 1:
            raise UserError(f"--num-nodes {args.num_nodes} needs --hostfile FILE with as many hosts")
        hosts = [Host("localhost", args.num_gpus or default_ranks())]
    for host in hosts:
        if args.num_gpus and args.num_gpus > host.slots:
            raise UserError(
                f"--num-gpus {args.num_gpus}: host {host.name} has slots={host.slots} in {args.hosts}; "
                "give fewer, or raise its slots"
            )
    devices = {host.name: [*range(args.num_gpus or host.slots)] for host in hosts}
    if args.include or args.exclude:
        devices = select(devices, args.include or args.exclude, keep=bool(args.include))
    chosen = [Host(name, len(numbers)) for name, numbers in devices.items()]
    job = make(args, chosen, pretrain, ["--bind_cores_to_rank"] * args.bind_cores_to_rank, fewest=len(chosen))
    job.devices, job.address = devices, args.master_addr
    job.environment[deepspeed_ranks.LAUNCH] = job.id
    return job


def select(devices: dict[str, list[int]], spec: str, *, keep: bool) -> dict[str, list[int]]:
    """Return the devices that a `NAME[:SLOT,…][@NAME…]` of DeepSpeed names, or with `keep=False` all others.

    Raise UserError for an unknown host or slot, and if no slot is left.
    """
    option = "--include" if keep else "--exclude"
    named: dict[str, set[int]] = {}
    for part in spec.split("@"):
        name, colon, numbers = part.partition(":")
        if name not in devices:
            raise UserError(f"{option} {spec}: there is no host '{name}', only {', '.join(devices)}")
        slots = set(devices[name])
        if colon:
            chosen = numbers.split(",")
            if not slots.issuperset(map(whole_number, chosen)):
                raise UserError(
                    f"{option} {spec}: host {name} has the slots 0 to {max(slots)}, not '{numbers}'; "
                    "name some of them"
                )
            slots = {int(number) for number in chosen}
        named.setdefault(name, set()).update(slots)
    left = {
        name: [n for n in numbers if (n in named.get(name, ())) == keep] for name, numbers in devices.items()
    }
    left = {name: numbers for name, numbers in left.items() if numbers}
    if not left:
        raise UserError(f"{option} {spec} leaves no slot; name others")
    return left


def _run_here(job: Job, dry_run: bool) -> int:
    """Run all ranks on this node, with this process's environment."""
    here, meet = socket.gethostname(), job.address or "127.0.0.1"
    (host,) = job.hosts
    if dry_run:
        arguments = job.arguments(host, meet, job.port or "<a free port>", True)
        print(masked_command(shlex.join(job.command(arguments))))
        return 0
    properties = hosts_agree.measure({"recipe": None, "meet": meet, "port": job.port})
    hosts_agree.compare({here: properties}, None, meet)
    failure = deepspeed_ranks.run(job.arguments(host, meet, properties["port"], True), job.pretrain)
    if failure is None:
        return 0
    if not failure.message.startswith("error: ") and failure.code not in (job.requeue_code, INTERRUPTED):
        ending = f"signal {failure.code - 128}" if failure.code > 128 else f"exit code {failure.code}"
        print(f"error: rank {failure.rank}, on host {here}, ended with {ending}", file=sys.stderr)
    return failure.code
