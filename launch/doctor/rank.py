"""One rank of a check-up: `python -m launch.doctor.rank`, with a `Request` in its environment.

The ranks meet in a TCPStore of the first rank, so the results of one rank are known even if the others never
arrive. The first rank judges all results and prints the findings as one line of JSON.
"""

import json
import os
import socket
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from isotorus.errors import UserError
from launch.doctor import data, findings, folders, gpus, links, machine, tracking
from launch.doctor.findings import ANSWER, VARIABLE, ByHost, Facts, Finding, Request, Status

WORK = timedelta(minutes=5)
"""Time that a rank which has arrived may take for its own measurements."""


def main() -> int:
    request = Request(**json.loads(os.environ[VARIABLE]))
    patience = timedelta(seconds=request.patience)
    try:
        store = dist.TCPStore(
            request.address,
            request.port,
            is_master=request.rank == 0,
            timeout=patience,
            wait_for_workers=False,
        )
    except (RuntimeError, OSError) as error:
        return _no_store(request, error)
    store.set(f"here/{request.rank}", "")
    store.set_timeout(2 * WORK)
    config = _load(request)
    facts: Facts = {}
    host = request.firsts.index(request.rank) if request.rank in request.firsts else None
    with ExitStack() as stack:
        folder = config.folder.parent if config and not isinstance(config, str) else None
        if request.rank == 0:
            store.set("nonce", stack.enter_context(folders.nonce(folder)) if folder else "")
        if host is not None:
            facts = _measure(request, config, store, folder)
        store.set(f"facts/{request.rank}", json.dumps(facts))
        if request.rank == 0:
            arrived, missing = _gather(request, store)
            store.set("together", "no" if missing else "yes")
        problem = _links(request, store, facts) if store.get("together") == b"yes" else ""
        if host is not None:
            store.set(f"links/{request.rank}", json.dumps(facts.get("links")))
        if request.rank == 0:
            judged = _judge(request, arrived, missing, config, folder, store, problem)
            print(ANSWER + json.dumps(judged), flush=True)
    # Rank 0 holds the store, so it ends last.
    store.add("done", 1)
    if request.rank == 0 and not missing:
        _wait_until(store, sum(request.ranks))
    return 0


def _load(request: Request) -> Any:
    """Return the configuration, None if the request names none, or the error message as a string."""
    if request.config is None:
        return None
    from pretrain.config import load_config

    try:
        return load_config(request.config, request.overrides)
    except UserError as error:
        return str(error)


def _measure(request: Request, config: Any, store: dist.TCPStore, folder: Any) -> Facts:
    """Return what the first rank of a host measures there, by subject."""
    on_gpus = gpus.measure()
    driver = on_gpus["gpus"][0]["driver_version"] if on_gpus["gpus"] else None
    versions = machine.measure_versions(driver)
    facts: Facts = {"gpus": on_gpus, "versions": versions, "machine": machine.measure()}
    if isinstance(config, str):
        return facts | {"config": config}
    name = store.get("nonce").decode()
    if config is not None and folder is not None:
        if name:
            facts["folder"] = folders.measure(folder, name)
        facts["data"] = data.measure(config.data)
        if request.rank == 0:
            facts["tracking"] = tracking.measure(config.tracking)
    return facts


def _gather(request: Request, store: dist.TCPStore) -> tuple[ByHost, list[str]]:
    """Return the facts of the hosts whose first rank arrived, and the hosts of which any rank is missing."""
    arrived: ByHost = {}
    missing = []
    for host, first, count in zip(request.hosts, request.firsts, request.ranks, strict=True):
        numbers = range(first, first + count)
        try:
            store.wait([f"here/{rank}" for rank in numbers], timedelta(seconds=request.patience))
            store.wait([f"facts/{rank}" for rank in numbers], WORK)
        except (RuntimeError, dist.DistStoreError):
            missing.append(host)
        if store.check([f"facts/{first}"]):
            arrived[host] = json.loads(store.get(f"facts/{first}"))
    return arrived, missing


def _links(request: Request, store: dist.TCPStore, facts: Facts) -> str:
    """Measure the network into `facts`. Return an error message, or an empty string."""
    local = request.rank - max(first for first in request.firsts if first <= request.rank)
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available() and torch.cuda.device_count() > local:
        device, backend = torch.device("cuda", local), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("links", store),
            rank=request.rank,
            world_size=sum(request.ranks),
            timeout=timedelta(seconds=request.patience),
        )
        facts["links"] = links.measure(request.firsts, request.hosts, device)
        dist.destroy_process_group()
    except RuntimeError as error:
        return str(error).splitlines()[0][:300]
    return ""


def _judge(
    request: Request,
    facts: ByHost,
    missing: list[str],
    config: Any,
    folder: Any,
    store: dist.TCPStore,
    problem: str,
) -> list[Finding]:
    """Return all findings. `problem` is the error message of the network check."""
    ranks = dict(zip(request.hosts, request.ranks, strict=True))
    readable = config is not None and not isinstance(config, str)
    workers, compiles = (config.data.workers, config.engine.compile) if readable else (0, False)

    def part(name: str) -> ByHost:
        return {host: own[name] for host, own in facts.items() if name in own}

    result: list[Finding] = []
    if missing:
        text = f"did not reach {request.address}:{request.port} within {request.patience:.0f} s"
        remedy = "see its error message, and check that no firewall is between them"
        result.append(Finding("start", Status.FAILED, missing, text, remedy))
    result += machine.judge_versions(part("versions"))
    result += gpus.judge(part("gpus"), ranks)
    with_gpus = any(own["gpus"] for own in part("gpus").values())
    result += machine.judge_compiler(part("machine"), compiles, with_gpus)
    result += machine.judge(part("machine"), ranks, workers)
    if missing:
        result += findings.skipped("links", "not all hosts arrived")
    elif problem:
        remedy = (
            "check that all ports are open between the hosts, and NCCL_SOCKET_IFNAME / GLOO_SOCKET_IFNAME"
        )
        result.append(Finding("links", Status.FAILED, [], problem, remedy))
    else:
        by_host = {}
        for host, first in zip(request.hosts, request.firsts, strict=True):
            by_host[host] = json.loads(store.get(f"links/{first}"))
        result += links.judge(by_host)
    return [*result, *_judge_run(request, facts, config, folder)]


def _judge_run(request: Request, facts: ByHost, config: Any, folder: Any) -> list[Finding]:
    """Return the findings about the recipe: its data, its run folder and MLflow."""
    if config is None:
        return findings.skipped("run", "without --config there is no data, run folder or MLflow to check")
    wrong = {host: (own["config"], "") for host, own in facts.items() if "config" in own}
    if wrong:
        return findings.grouped("recipe", Status.FAILED, wrong)
    result: list[Finding] = []
    size, count = 0.0, 0
    try:
        size, count = folders.room_for_checkpoints(config, sum(request.ranks))
    except UserError as error:
        result.append(Finding("recipe", Status.FAILED, [], str(error)))
    result += folders.judge({host: own["folder"] for host, own in facts.items()}, folder, size, count)
    result += data.judge({host: own["data"] for host, own in facts.items()})
    first = request.hosts[0]
    return result + tracking.judge(facts[first]["tracking"], first, config.tracking.enabled)


def _no_store(request: Request, error: Exception) -> int:
    """Report that the ranks cannot meet, and return the exit code."""
    where = f"{request.address}:{request.port}"
    if request.rank == 0:
        text = f"port {request.port} is taken or {request.address} is not this host ({_first_line(error)})"
        judged = [Finding("start", Status.FAILED, [request.hosts[0]], text, "give another --port")]
        print(ANSWER + json.dumps(judged), flush=True)
    else:
        print(f"{socket.gethostname()} does not reach {where}: {_first_line(error)}", file=sys.stderr)
    return 1


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _wait_until(store: dist.TCPStore, count: int) -> None:
    deadline = time.monotonic() + 10
    while store.add("done", 0) < count and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
