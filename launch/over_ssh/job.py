"""The job that one command starts on all hosts of a file, checked before any host is contacted."""

import argparse
import os
import shlex
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from isotorus.errors import ArgumentParser, UserError
from isotorus.numbers import whole_number
from isotorus.secrets import masked_command, masked_variables
from launch.environment import passed_on
from launch.one_node import deepspeed_ranks
from launch.over_ssh import ssh
from launch.over_ssh.hosts import Host, add_ssh_options, read_hosts
from launch.over_ssh.remote import node_command
from launch.recipe import read_recipe

ELASTIC_RESTARTS = 100
"""Default restarts of an elastic run; each host that fails or leaves uses one of every launcher."""
_LONGEST_PATIENCE = 24 * 3600
DECIDED_HERE = (
    "node-rank",
    "rdzv-endpoint",
    "rdzv-backend",
    "rdzv-id",
    "master-addr",
    "master-port",
    "standalone",
)
"""Options of torchrun that `Job.arguments` sets, so the user may not."""


@dataclass
class Job:
    """What to run, and on which hosts."""

    hosts: list[Host]
    fewest: int
    """The smallest number of hosts that the job runs on. If it is less than all hosts, the job is elastic."""
    options: list[str]
    """Options for torchrun or DeepSpeed's launcher, the same on every host."""
    pretrain: list[str]
    """Arguments of `isotorus train`."""
    recipe: str | None
    """The file that --config names; None for a packaged recipe."""
    folder: Path
    """The run folder."""
    grace: float
    """Seconds from a signal until the ranks that are still running are killed."""
    requeue_code: int
    """Exit code of ranks that saved and ask their scheduler to start them again."""
    environment: dict[str, str]
    """Variables that the hosts receive."""
    ssh: list[str]
    """The ssh client with its options."""
    python: str
    port: int
    """Where ranks meet; 0 for any free port of the first host."""
    patience: float
    """Seconds of silence after which a host counts as lost."""
    devices: dict[str, list[int]] = field(default_factory=dict)
    """The device numbers on each host, for DeepSpeed's launcher; empty if torchrun starts the ranks."""
    address: str = ""
    """The address where ranks meet, if it is not the first host."""
    directory: str = field(default_factory=os.getcwd)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def elastic(self) -> bool:
        return self.fewest < len(self.hosts)

    def arguments(self, host: Host, meet: str, port: int | str, leads: bool) -> list[str]:
        """Return the launcher's arguments on a host.

        All hosts meet at the address `meet`; `leads` is true for the host that has it.
        """
        if self.devices:
            return [
                *deepspeed_ranks.arguments(self.devices, host.name, self.address or meet, port),
                *self.options,
            ]
        nodes = f"{self.fewest}:{len(self.hosts)}" if self.elastic else str(len(self.hosts))
        return [
            *("--nnodes", nodes),
            *("--nproc-per-node", str(host.slots)),
            *("--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"{meet}:{port}"),
            *("--rdzv-id", self.id),
            *("--rdzv-conf", f"is_host={int(leads)},last_call_timeout={10 if self.elastic else 1}"),
            *("--local-addr", ssh.address(host.name, self.ssh)),
            *("--log-dir", str(self.folder / "logs" / host.name)),
            *("--redirects", "3"),
            *("--tee", "0:3"),
            *self.options,
        ]

    def command(self, arguments: list[str]) -> list[str]:
        """Return the command that a host runs, with these arguments for its launcher."""
        if self.devices:
            return deepspeed_ranks.command(self.python, arguments, self.pretrain)
        return ["torchrun", *arguments, "-m", "pretrain", *self.pretrain]

    def client(self, host: str) -> list[str]:
        """Return the ssh command that starts `launch.over_ssh.node` on a host."""
        return [*ssh.client(host, self.ssh, self.patience), node_command(self.python, self.directory)]


def add_launch_options(group: "argparse._ActionsContainer") -> None:
    """Add the options of every launcher that reaches hosts over ssh."""
    add_ssh_options(group)
    add = group.add_argument
    add("--env", action="append", default=[], metavar="NAME", help="also send this variable to the hosts")
    patience = "seconds of silence after which a host counts as lost (default 30)"
    add("--patience", type=_patience, default=30, help=patience)


def port_number(text: str) -> int:
    """Read a port from the command line."""
    if not 1 <= (port := whole_number(text) or 0) <= 65535:
        raise argparse.ArgumentTypeError(f"{text[:40]} is no port; give 1 to 65535")
    return port


def _patience(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= _LONGEST_PATIENCE:
        raise argparse.ArgumentTypeError(f"{text} seconds; give 1 to {_LONGEST_PATIENCE}")
    return seconds


def read_job(args: argparse.Namespace, options: list[str], pretrain: list[str]) -> Job:
    """Read a torchrun job. Raise UserError for impossible options, before any host is contacted."""
    hosts = read_hosts(args.hosts, args.include, args.exclude)
    for name in DECIDED_HERE:
        if clashing := [
            option for option in options if option.replace("_", "-").split("=")[0] == f"--{name}"
        ]:
            raise UserError(f"{clashing[0]}: --hosts decides that; leave one of them out (see --port)")
    own = ArgumentParser(prog="isotorus launch torchrun", add_help=False, allow_abbrev=False)
    own.add_argument("--nnodes", default=str(len(hosts)))
    own.add_argument("--max-restarts", "--max_restarts", type=int)
    nodes, left = own.parse_known_args(options)
    fewest, _, most = nodes.nnodes.partition(":")
    least = whole_number(fewest) or 0
    if not 1 <= least <= len(hosts) or (most or fewest) != str(len(hosts)):
        raise UserError(
            f"--nnodes {nodes.nnodes} with the {len(hosts)} hosts of {args.hosts}; leave it out, or give "
            f"1:{len(hosts)} to go on with fewer hosts"
        )
    elastic = least < len(hosts)
    restarts = nodes.max_restarts if nodes.max_restarts is not None else ELASTIC_RESTARTS * elastic
    return make(args, hosts, pretrain, ["--max-restarts", str(restarts), *left], least)


def make(
    args: argparse.Namespace, hosts: list[Host], pretrain: list[str], options: list[str], fewest: int
) -> Job:
    """Return the job of a command on these hosts. Raise UserError for a recipe that cannot run on them."""
    environment = passed_on(args.env)
    recipe = read_recipe(pretrain)
    config = recipe.config
    slots = sum(host.slots for host in hosts)
    if slots > config.data.batch_size:
        where = args.hosts or f"host {hosts[0].name}"
        raise UserError(
            f"{where} has {slots} slots for data.batch_size={config.data.batch_size}; each rank needs "
            "at least one image: use fewer slots, or a larger batch"
        )
    return Job(
        hosts=hosts,
        fewest=fewest,
        options=options,
        pretrain=pretrain,
        recipe=recipe.path if Path(recipe.path).is_file() else None,
        folder=config.folder.absolute(),
        grace=config.stopping.grace + 15,
        requeue_code=config.stopping.requeue_code,
        environment=environment,
        ssh=shlex.split(args.ssh),
        python=args.python,
        port=args.port or 0,
        patience=args.patience,
    )


def show(job: Job) -> None:
    """Print the commands that would run on each host, without secrets."""
    meet = ssh.address(job.hosts[0].name, job.ssh)
    for host in job.hosts:
        arguments = job.arguments(host, meet, job.port or "<a free port>", host is job.hosts[0])
        assigned = [
            f"{name}={shlex.quote(value)}" for name, value in masked_variables(job.environment).items()
        ]
        print(f"# {host.name}: {shlex.join(job.client(host.name))}")
        print(" ".join([*assigned, masked_command(shlex.join(job.command(arguments)))]))
