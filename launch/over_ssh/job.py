"""What one command starts on all hosts of a file: read and checked before any of them is asked."""

import argparse
import os
import shlex
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from isotorus.errors import UserError
from launch.environment import masked, passed_on, shown
from launch.one_node import deepspeed_ranks
from launch.over_ssh import ssh
from launch.over_ssh.hosts import Host, read_hosts
from launch.over_ssh.remote import command
from launch.recipe import read_recipe

ELASTIC_RESTARTS = 100
"""For each host that goes or fails, every launcher uses one."""
DECIDED = (
    "node-rank",
    "rdzv-endpoint",
    "rdzv-backend",
    "rdzv-id",
    "master-addr",
    "master-port",
    "standalone",
)
"""Options of torchrun that the launch itself gives."""


@dataclass
class Job:
    """What is to run, and where."""

    hosts: list[Host]
    fewest: int
    """Hosts with which it runs; fewer than all of them makes it elastic."""
    options: list[str]
    """Of torchrun or DeepSpeed's launcher, the same on every host."""
    pretrain: list[str]
    recipe: str | None
    """The file that --config names; None if it is a packaged one."""
    folder: Path
    """Of the run."""
    grace: float
    """Seconds from a signal until ranks are killed that have not ended."""
    requeue_code: int
    environment: dict[str, str]
    ssh: list[str]
    python: str
    port: int
    patience: float
    devices: dict[str, list[int]] = field(default_factory=dict)
    """Their numbers by host, which only DeepSpeed's launcher takes; empty where torchrun starts the ranks."""
    address: str = ""
    """Where ranks meet, if not on the first host."""
    directory: str = field(default_factory=os.getcwd)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def elastic(self) -> bool:
        return self.fewest < len(self.hosts)

    def arguments(self, host: Host, meet: str, port: int | str, leads: bool) -> list[str]:
        """The launcher's for a host; all meet at the address `meet`, that of the one that `leads`."""
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

    def ranks(self, arguments: list[str]) -> list[str]:
        """What a host runs, for these arguments of its launcher."""
        if self.devices:
            return deepspeed_ranks.command(self.python, arguments, self.pretrain)
        return ["torchrun", *arguments, "-m", "pretrain", *self.pretrain]

    def client(self, host: str) -> list[str]:
        return [*ssh.client(host, self.ssh, self.patience), command(self.python, self.directory)]


def read_job(given: argparse.Namespace, options: list[str], pretrain: list[str]) -> Job:
    """Raises UserError for what cannot be, before any host is asked."""
    hosts = read_hosts(given.hosts, given.include, given.exclude)
    for name in DECIDED:
        if given_already := [o for o in options if o.replace("_", "-").split("=")[0] == f"--{name}"]:
            raise UserError(f"{given_already[0]}: --hosts decides that; leave one of them out (see --port)")
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--nnodes", default=str(len(hosts)))
    own.add_argument("--max-restarts", "--max_restarts", type=int)
    nodes, left = own.parse_known_args(options)
    fewest, _, most = nodes.nnodes.partition(":")
    if not fewest.isdigit() or not 1 <= int(fewest) <= len(hosts) or (most or fewest) != str(len(hosts)):
        raise UserError(
            f"--nnodes {nodes.nnodes} with the {len(hosts)} hosts of {given.hosts}; leave it out, or give "
            f"1:{len(hosts)} to go on with fewer"
        )
    elastic = int(fewest) < len(hosts)
    restarts = nodes.max_restarts if nodes.max_restarts is not None else ELASTIC_RESTARTS * elastic
    return make(given, hosts, pretrain, ["--max-restarts", str(restarts), *left], int(fewest))


def make(
    given: argparse.Namespace, hosts: list[Host], pretrain: list[str], options: list[str], fewest: int
) -> Job:
    """The job of a command whose hosts are known; raises UserError for a recipe that cannot run on them."""
    environment = passed_on(given.env)
    recipe = read_recipe(pretrain)
    config = recipe.config
    slots = sum(host.slots for host in hosts)
    if slots > config.data.batch_size:
        where = given.hosts or f"host {hosts[0].name}"
        raise UserError(
            f"{where} has {slots} slots for data.batch_size={config.data.batch_size}; a rank needs an "
            "image at least: use fewer slots, or a larger batch"
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
        ssh=shlex.split(given.ssh),
        python=given.python,
        port=given.port or 0,
        patience=given.patience,
    )


def show(job: Job) -> None:
    """What would run, by host, without secrets."""
    meet = ssh.address(job.hosts[0].name, job.ssh)
    for host in job.hosts:
        arguments = job.arguments(host, meet, job.port or "<a free port>", host is job.hosts[0])
        assigned = [f"{name}={shlex.quote(value)}" for name, value in shown(job.environment).items()]
        print(f"# {host.name}: {shlex.join(job.client(host.name))}")
        ranks = shlex.join(job.ranks(arguments))
        print(" ".join([*assigned, masked(ranks)]))
