"""`python -m launch doctor`: are these nodes fit for this run, before it is paid for?"""

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from isotorus.errors import UserError
from launch.over_ssh.hosts import read_hosts

if TYPE_CHECKING:
    from launch.doctor.findings import Finding
    from launch.doctor.request import Request

PORT = 29400


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "doctor",
        help="check nodes, network, data and folders before a run",
        usage="python -m launch doctor [--hosts FILE] [--config recipe.yaml] [--json] [key=value …]",
        description="A table of what is well and what is not; exit code 0, or 1 if anything failed. On this "
        "node alone, on all hosts of a file over ssh, or, started on each node (by srun, say), on all.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", help="a recipe, for its data, run folder and MLflow")
    add("--json", action="store_true", help="the findings as JSON instead of a table")
    add("--nproc-per-node", type=int, help="ranks a node; default: its slots, its GPUs, or 1")
    add("--patience", type=float, default=60, help="seconds to wait for a node that is silent (default 60)")
    hosts = parser.add_argument_group("over ssh")
    hosts.add_argument("--hosts", metavar="FILE", help="hosts of this file, a line 'name slots=4' each")
    hosts.add_argument("--include", default="", metavar="A,B", help="of the file, only these")
    hosts.add_argument("--exclude", default="", metavar="A,B", help="of the file, all but these")
    hosts.add_argument("--port", type=int, default=PORT, help="where they meet, on the first (default 29400)")
    hosts.add_argument("--python", default=sys.executable, help="on the hosts; default: %(default)s")
    hosts.add_argument("--ssh", default="ssh", metavar="COMMAND", help="e.g. 'ssh -F my_config'")
    nodes = parser.add_argument_group("started on each node; under srun these are Slurm's")
    nodes.add_argument("--nnodes", type=int)
    nodes.add_argument("--node-rank", type=int)
    nodes.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="an address of the first node")
    add("overrides", nargs="*", metavar="key=value", help="as for python -m pretrain")
    parser.set_defaults(start=start, trains=False, passes_options_on=False)


def start(given: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """Raises UserError for bad options; whatever is wrong with a node is a row of the table."""
    if given.overrides and not given.config:
        raise UserError(f"{given.overrides[0]}: there is no recipe to change; give --config recipe.yaml")
    from launch.doctor import findings, fleet

    request, node = _request(given)
    if given.hosts:
        found, hosts = fleet.examine(request, given.python, shlex.split(given.ssh))
        request = replace(
            request,
            ranks=[count for host, count in zip(request.hosts, request.ranks, strict=True) if host in hosts],
            hosts=hosts,
        )
    else:
        found = _here(request, node)
    if not given.hosts and node > 0:  # the first node's table is of all of them
        return findings.exit_code(found)
    _print(found, request, given.json)
    return findings.exit_code(found)


def _request(given: argparse.Namespace) -> "tuple[Request, int]":
    """What all ranks are told, and which node this is."""
    from launch.doctor.request import Request

    common = (given.patience, given.config, given.overrides)
    if given.hosts:
        listed = read_hosts(given.hosts, given.include, given.exclude)
        ranks = [given.nproc_per_node or host.slots for host in listed]
        # Its address is filled in when it is known who is there.
        return Request([host.name for host in listed], ranks, "", given.port, *common), 0
    own = given.nproc_per_node or _gpus()
    nodes, node, endpoint = given.nnodes, given.node_rank, given.rdzv_endpoint
    if nodes is None and int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) > 1:
        nodes, node = int(os.environ["SLURM_STEP_NUM_NODES"]), int(os.environ["SLURM_NODEID"])
        names = _of_slurm()
        return Request(names, [own] * nodes, names[0], given.port, *common), node
    if nodes in (None, 1):
        return Request([socket.gethostname()], [own], "localhost", _free_port(), *common), 0
    if node is None or endpoint is None or not 0 <= node < nodes:
        raise UserError(
            f"--nnodes {nodes}: give each node its --node-rank from 0 to {nodes - 1}, and all of them "
            "--rdzv-endpoint HOST:PORT, an address of the first; or one command with --hosts FILE"
        )
    address, _, port = endpoint.rpartition(":")
    if not address or not port.isdigit():
        raise UserError(f"--rdzv-endpoint {endpoint}: expected HOST:PORT, e.g. node1:{PORT}")
    names = [f"node {number}" for number in range(nodes)]
    return Request(names, [own] * nodes, address, int(port), *common), node


def _here(request: "Request", node: int) -> "list[Finding]":
    """Run this node's ranks; the findings are the first one's."""
    from launch.doctor import findings, fleet

    command = [sys.executable, "-m", "launch.doctor.node", str(node)]
    text = json.dumps({"request": asdict(request), "environment": {}})
    done = subprocess.run(command, input=f"{text}\n", capture_output=True, text=True)
    found = fleet.read(done.stdout)
    if found is None and done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        host = request.hosts[node]
        print(f"error: {host}: {said}", file=sys.stderr)
        return [findings.Finding("start", findings.Status.FAILED, [host], said)]
    return found or []


def _print(found: "list[Finding]", request: "Request", as_json: bool) -> None:
    from launch.doctor import findings

    if as_json:
        rows = [finding._asdict() for finding in found]
        code = findings.exit_code(found)
        print(
            json.dumps(
                {"hosts": request.hosts, "ranks": request.ranks, "ok": code == 0, "checks": rows}, indent=2
            )
        )
    else:
        findings.show(found, request.hosts, sum(request.ranks))


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _of_slurm() -> list[str]:
    listed = os.environ.get("SLURM_STEP_NODELIST", "")
    done = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"scontrol show hostnames {listed}: {done.stderr.strip() or 'failed'}")
    return done.stdout.split()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
