"""Check the hosts of a file over ssh: start a check-up on each host, and collect the findings."""

import json
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from isotorus.processes import python_options
from isotorus.secrets import masked_command
from launch.doctor.findings import ANSWER, Finding, Request, Status
from launch.environment import passed_on
from launch.over_ssh import ssh


class Answer(NamedTuple):
    """What the check-up on one host returned."""

    host: str
    code: int
    findings: list[Finding] | None
    """The first host's findings about all hosts; None from every other host."""
    error: str
    """The last line on stderr."""


def examine(request: Request, python: str, client: list[str]) -> tuple[list[Finding], list[str]]:
    """Return all findings, and the hosts that ssh could reach. Each other host is a finding."""
    with ThreadPoolExecutor(len(request.hosts)) as threads:
        reached = list(threads.map(lambda host: _reach(host, client), request.hosts))
        findings = [finding for finding in reached if finding]
        kept = [i for i, finding in enumerate(reached) if finding is None]
        if not kept:
            return findings, []
        request = replace(
            request, hosts=[request.hosts[i] for i in kept], ranks=[request.ranks[i] for i in kept]
        )
        request = replace(request, address=request.address or request.hosts[0])
        answers = list(threads.map(lambda i: _run(request, i, python, client), range(len(kept))))
    judged = next((answer.findings for answer in answers if answer.findings is not None), [])
    for answer in answers:
        # The first host already reports its failure by a finding.
        if answer.code and not (judged and answer.host == request.hosts[0]):
            error = answer.error or f"exit code {answer.code}"
            remedy = f"try there: cd {Path.cwd()} && {python} -m launch doctor"
            findings.append(Finding("start", Status.FAILED, [answer.host], error, remedy))
    failed = {host for finding in findings for host in finding.hosts}
    judged = [f for f in judged if not (f.check == "start" and set(f.hosts) <= failed)]
    return findings + judged, request.hosts


def _reach(host: str, client: list[str]) -> Finding | None:
    """Return None if ssh reaches the host, otherwise a finding with the reason."""
    try:
        ended = subprocess.run(
            [*ssh.client(host, client), "true"], capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return Finding("ssh", Status.FAILED, [host], "no answer within 60 s", "check whether it is up")
    if ended.returncode == 0:
        return None
    observed, _, remedy = str(ssh.failure(host, ended.stderr)).removeprefix(f"host {host}: ").partition("; ")
    return Finding("ssh", Status.FAILED, [host], observed, remedy)


def _run(request: Request, node: int, python: str, client: list[str]) -> Answer:
    """Run the check-up on one host."""
    host = request.hosts[node]
    starts = shlex.join([python, *python_options(), "-m", "launch.doctor.node"])
    command = f"cd {shlex.quote(str(Path.cwd()))} && exec {starts} {node}"
    text = json.dumps({"request": asdict(request), "environment": passed_on()})
    try:
        ended = subprocess.run(
            [*ssh.client(host, client), command],
            input=f"{text}\n",
            capture_output=True,
            text=True,
            timeout=len(request.hosts) * request.patience + 600,
        )
    except subprocess.TimeoutExpired:
        return Answer(host, 1, None, "it does not end")
    return Answer(host, ended.returncode, read(ended.stdout), masked_command(ssh.last_line(ended.stderr)))


def read(stdout: str) -> list[Finding] | None:
    """Return the findings in the output of a node, or None if there are none."""
    for line in stdout.splitlines():
        if line.startswith(ANSWER):
            rows = json.loads(line.removeprefix(ANSWER))
            return [Finding(check, Status(status), *rest) for check, status, *rest in rows]
    return None
