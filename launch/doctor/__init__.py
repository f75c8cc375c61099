"""`launch doctor`: check before a run whether nodes, network, data and folders are fit for it."""

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
from isotorus.scheduled_ranks import step_hosts
from launch.one_node.torchrun_ranks import default_ranks
from launch.over_ssh.hosts import add_file_options, add_ssh_options, read_hosts

if TYPE_CHECKING:
    from launch.doctor.findings import Finding, Request

PORT = 29400


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = kinds.add_parser(
        "doctor",
        help="check nodes, network, data and folders before a run",
        usage="isotorus launch doctor [--hosts FILE] [--config recipe.yaml] [--json] [key=value …]",
        description="Prints a table of all checks. Exit code 0, or 1 if any check failed. Checks this node, "
        "or all hosts of a file over ssh, or, started on each node (for instance by srun), all of them.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", help="a recipe, to check its data, run folder and MLflow")
    add("--json", action="store_true", help="print the findings as JSON instead of a table")
    add("--nproc-per-node", type=int, help="ranks on each node; default: its slots, its GPUs, or 1")
    add("--patience", type=float, default=60, help="seconds to wait for a node that is silent (default 60)")
    hosts = parser.add_argument_group("over ssh")
    add_file_options(hosts)
    add_ssh_options(hosts)
    port = "port on the first host where all meet (default 29400)"
    hosts.add_argument("--port", type=int, default=PORT, help=port)
    nodes = parser.add_argument_group("started on each node; under srun these are Slurm's")
    nodes.add_argument("--nnodes", type=int, help="number of nodes")
    nodes.add_argument("--node-rank", type=int, help="number of this node, from 0")
    nodes.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="an address of the first node")
    add("overrides", nargs="*", metavar="key=value", help="changes to the recipe, as for isotorus train")
    parser.set_defaults(start=start, trains=False, passes_options_on=False)


def start(args: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """Print the table and return the exit code. Raise UserError only for bad options."""
    if args.overrides and not args.config:
        raise UserError(f"{args.overrides[0]}: there is no recipe to change; give --config recipe.yaml")
    from launch.doctor import findings, fleet

    request, node = _request(args)
    if args.hosts:
        results, hosts = fleet.examine(request, args.python, shlex.split(args.ssh))
        request = replace(
            request,
            ranks=[count for host, count in zip(request.hosts, request.ranks, strict=True) if host in hosts],
            hosts=hosts,
        )
    else:
        results = _check_here(request, node)
    if not args.hosts and node > 0:  # the first node prints the table of all nodes
        return findings.exit_code(results)
    _print(results, request, args.json)
    return findings.exit_code(results)


def _request(args: argparse.Namespace) -> "tuple[Request, int]":
    """Return the request for all ranks, and the number of this node."""
    from launch.doctor.findings import Request

    common = (args.patience, args.config, args.overrides)
    if args.hosts:
        listed = read_hosts(args.hosts, args.include, args.exclude)
        ranks = [args.nproc_per_node or host.slots for host in listed]
        # The address stays empty until it is known which hosts can be reached.
        return Request([host.name for host in listed], ranks, "", args.port, *common), 0
    own = args.nproc_per_node or default_ranks()
    nodes, node, endpoint = args.nnodes, args.node_rank, args.rdzv_endpoint
    if nodes is None and int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) > 1:
        nodes, node = int(os.environ["SLURM_STEP_NUM_NODES"]), int(os.environ["SLURM_NODEID"])
        names = step_hosts()
        return Request(names, [own] * nodes, names[0], args.port, *common), node
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


def _check_here(request: "Request", node: int) -> "list[Finding]":
    """Run this node's ranks, and return the findings of the first rank if it runs here."""
    from launch.doctor import findings, fleet

    command = [sys.executable, "-m", "launch.doctor.node", str(node)]
    text = json.dumps({"request": asdict(request), "environment": {}})
    ranks = subprocess.run(command, input=f"{text}\n", capture_output=True, text=True)
    results = fleet.read(ranks.stdout)
    if results is None and ranks.returncode:
        error = (ranks.stderr.strip().splitlines() or [f"exit code {ranks.returncode}"])[-1]
        host = request.hosts[node]
        print(f"error: {host}: {error}", file=sys.stderr)
        return [findings.Finding("start", findings.Status.FAILED, [host], error)]
    return results or []


def _print(results: "list[Finding]", request: "Request", as_json: bool) -> None:
    from launch.doctor import findings

    if as_json:
        rows = [finding._asdict() for finding in results]
        code = findings.exit_code(results)
        print(
            json.dumps(
                {"hosts": request.hosts, "ranks": request.ranks, "ok": code == 0, "checks": rows}, indent=2
            )
        )
    else:
        findings.show(results, request.hosts, sum(request.ranks))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
