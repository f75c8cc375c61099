"""A check-up of the hosts of a file, over ssh: each one's node is started, and what it says is kept."""

import json
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from launch.doctor.findings import Finding, Status
from launch.doctor.request import ANSWER, Request
from launch.environment import masked, passed_on
from launch.over_ssh import ssh


class Said(NamedTuple):
    host: str
    code: int
    findings: list[Finding] | None
    """Of the first host alone."""
    complaint: str


def examine(request: Request, python: str, client: list[str]) -> tuple[list[Finding], list[str]]:
    """All findings, and the hosts that could be reached; a host that could not is a finding."""
    with ThreadPoolExecutor(len(request.hosts)) as threads:
        reached = list(threads.map(lambda host: _reach(host, client), request.hosts))
        found = [finding for finding in reached if finding]
        kept = [i for i, finding in enumerate(reached) if finding is None]
        if not kept:
            return found, []
        request = replace(
            request, hosts=[request.hosts[i] for i in kept], ranks=[request.ranks[i] for i in kept]
        )
        request = replace(request, address=request.address or request.hosts[0])
        answers = list(threads.map(lambda i: _run(request, i, python, client), range(len(kept))))
    judged = next((answer.findings for answer in answers if answer.findings is not None), [])
    for answer in answers:
        # One that came, and said so by a finding, needs no second.
        if answer.code and not (judged and answer.host == request.hosts[0]):
            said = answer.complaint or f"exit code {answer.code}"
            remedy = f"try there: cd {Path.cwd()} && {python} -m launch doctor"
            found.append(Finding("start", Status.FAILED, [answer.host], said, remedy))
    died = {host for finding in found for host in finding.hosts}
    judged = [f for f in judged if not (f.check == "start" and set(f.hosts) <= died)]
    return found + judged, request.hosts


def _reach(host: str, client: list[str]) -> Finding | None:
    try:
        done = subprocess.run([*ssh.client(host, client), "true"], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return Finding("ssh", Status.FAILED, [host], "no answer within 60 s", "see whether it is up")
    if done.returncode == 0:
        return None
    found, _, remedy = str(ssh.failure(host, done.stderr)).removeprefix(f"host {host}: ").partition("; ")
    return Finding("ssh", Status.FAILED, [host], found, remedy)


def _run(request: Request, node: int, python: str, client: list[str]) -> Said:
    host = request.hosts[node]
    command = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.quote(python)} -m launch.doctor.node {node}"
    given = json.dumps({"request": asdict(request), "environment": passed_on()})
    try:
        done = subprocess.run(
            [*ssh.client(host, client), command],
            input=f"{given}\n",
            capture_output=True,
            text=True,
            timeout=len(request.hosts) * request.patience + 600,
        )
    except subprocess.TimeoutExpired:
        return Said(host, 1, None, "it does not end")
    return Said(host, done.returncode, read(done.stdout), masked(ssh.last_line(done.stderr)))


def read(stdout: str) -> list[Finding] | None:
    """The findings among what a node has said."""
    for line in stdout.splitlines():
        if line.startswith(ANSWER):
            rows = json.loads(line.removeprefix(ANSWER))
            return [Finding(check, Status(status), *rest) for check, status, *rest in rows]
    return None
