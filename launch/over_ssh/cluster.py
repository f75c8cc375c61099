"""Start all hosts of a file over ssh, follow them until they end, and replace hosts that are lost."""

import argparse
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any

from isotorus.errors import INTERRUPTED, TRY_AGAIN, USER_ERROR, UserError
from launch.over_ssh import hosts_agree, ssh
from launch.over_ssh.hosts import Host
from launch.over_ssh.job import Job, read_job, show
from launch.over_ssh.remote import Remote, new_mark, node_command, read_report


def start(args: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """Run torchrun on all hosts. Return 0, or the exit code of the first rank that failed."""
    job = read_job(args, options, pretrain)
    if args.dry_run:
        show(job)
        return 0
    return Launch(job).run()


class Launch:
    """One launch, from the first check of the hosts until the last host ends."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.remotes: dict[str, Remote] = {}
        self.signals: list[str] = []
        """Names of signals that still have to be sent to all ranks."""
        self.interrupted = self.killed = False
        self._addresses: dict[str, str] = {}
        self._leader, self._meet = "", ("", 0)
        """The host where all hosts meet: its name, and its address and port."""
        self._expected: dict[str, Any] = {}
        """The properties of the first host, by its name. A host that returns must have the same."""
        self._retry_at: dict[str, float] = {}
        """For each lost host, the time at which to check it again."""
        self._checks: dict[str, Future[dict[str, Any]]] = {}
        """The checks of lost hosts that are running."""
        self._failures: list[dict[str, Any]] = []
        self._done = False
        self._shown: deque[str] = deque(maxlen=500)
        """The last lines of output that were shown."""
        self._stop_by: float | None = None
        """The time at which the ranks are killed, once a signal asked them to stop."""

    def run(self) -> int:
        """Start and restart the hosts until the run ends. Return the exit code of the command."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        first = True
        try:
            while True:
                present = self.reachable(first)
                if self._stop_by:
                    return TRY_AGAIN
                code = self._run_once(present) if present else None
                if code is not None:
                    return INTERRUPTED if self.interrupted else code
                first = False
                time.sleep(self.job.patience / 3)
        finally:
            for remote in self.remotes.values():
                remote.drop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.killed |= self.interrupted and number == signal.SIGINT
        self.interrupted |= number == signal.SIGINT
        self.signals.append("USR1" if number == signal.SIGUSR1 else "TERM")
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self.job.grace

    def reachable(self, first: bool) -> dict[str, Any]:
        """Return the properties (`hosts_agree.measure`) of each host that answers, after comparing them.

        If the job is not elastic, all hosts must answer. If too few hosts answer, raise UserError at the
        `first` start and return an empty dict at a later one.
        """
        if not self.job.elastic:
            properties = self._measure(self.job.hosts)
        else:
            properties = {}
            with ThreadPoolExecutor(len(self.job.hosts)) as threads:
                checks = [threads.submit(self._measure, [host]) for host in self.job.hosts]
            for check in checks:
                error = check.exception()
                if error is None:
                    properties |= check.result()
                elif not isinstance(error, UserError):
                    raise error
                elif first:
                    _print_error(f"{error} (it may join later)")
            if len(properties) < self.job.fewest:
                if first:
                    raise UserError(
                        f"{len(properties)} of {len(self.job.hosts)} hosts answer, fewer than --nnodes asks"
                    )
                return {}
        meet = ssh.address(next(iter(properties)), self.job.ssh)
        hosts_agree.compare(properties, self.job.recipe, meet)
        self._expected = dict([next(iter(properties.items()))])
        return properties

    def _measure(self, hosts: Sequence[Host], meet: str | None = None) -> dict[str, Any]:
        """Return the properties of each host. Raise UserError for the first host that does not answer."""
        meet = meet or ssh.address(hosts[0].name, self.job.ssh)
        request = {"do": "measure", "recipe": self.job.recipe, "meet": meet, "port": self.job.port}
        request["mark"] = mark = new_mark()
        answers = ssh.run(
            [host.name for host in hosts],
            node_command(self.job.python, self.job.directory),
            json.dumps(request) + "\n",
            self.job.ssh,
        )
        ssh.require(answers, f"{self.job.python} -m launch.over_ssh.node in {self.job.directory}")
        reports = {}
        for answer in answers:
            lines = [report for line in answer.stdout.splitlines() if (report := read_report(line, mark))]
            if not lines:
                raise UserError(
                    f"host {answer.host}: {self.job.python} there gives no report; check what it is"
                )
            reports[answer.host] = lines[0]
        return reports

    def _run_once(self, present: dict[str, Any]) -> int | None:
        """Start these hosts and follow them until they end. Return None if they have to be started again."""
        job, hosts = self.job, [host for host in self.job.hosts if host.name in present]
        first = hosts[0].name
        self._leader, self._meet = first, (ssh.address(first, job.ssh), present[first]["port"])
        self.remotes, self._failures, self._done = {}, [], False
        for host in hosts:
            self._start(host)
        self._retry_at = {h.name: time.monotonic() + job.patience for h in job.hosts if h not in hosts}
        beat, give_up = 0.0, None
        with ThreadPoolExecutor(len(job.hosts)) as threads:
            while self.remotes:
                time.sleep(0.1)
                now = time.monotonic()
                words, self.signals = self.signals, []
                if now - beat > job.patience / 6:
                    beat, words = now, [*words, ""]
                for remote in self.remotes.values():
                    for word in words:
                        remote.send(word)
                for remote in [remote for remote in self.remotes.values() if remote.ended]:
                    self._on_end(remote, now)
                if (self._failures or self._done) and give_up is None:
                    give_up = now + job.patience  # the others notice it by themselves
                if self.killed or any(limit and now > limit for limit in (give_up, self._stop_by)):
                    self._kill()
                if job.elastic and self._continues:
                    self._readmit(threads, now)
        if self._failures:
            return self._fail()
        if self._done:
            return 0
        return TRY_AGAIN if self._stop_by else None

    @property
    def _continues(self) -> bool:
        """Return whether no host has finished or failed, and none was asked to stop."""
        return not (self._done or self._failures or self._stop_by)

    def _on_end(self, remote: Remote, now: float) -> None:
        """Record that a host has finished, failed or been lost."""
        del self.remotes[remote.host]
        report = remote.report or {"code": TRY_AGAIN, "rank": -1, "message": f"error: {remote.error}"}
        if report["code"] == 0:
            self._done = True
        elif report["rank"] >= 0 or report["code"] == USER_ERROR:
            self._failures.append({"host": remote.host} | report)
        elif not self._continues:
            return
        elif not self.job.elastic:
            self._failures.append({"host": remote.host, "time": time.time()} | report)
        elif remote.host == self._leader:  # all others meet there
            _print_error(f"{report['message'].removeprefix('error: ')}; all others start again")
            self._kill()
        else:
            self._retry_at[remote.host] = now + self.job.patience / 3
            if self._leader in self.remotes:
                message = report["message"].removeprefix("error: ")
                _print_error(f"{message}; going on without {remote.host}")

    def _start(self, host: Host) -> None:
        """Start the ranks of a host."""
        request = {
            "do": "run",
            "mark": new_mark(),
            "launcher": "deepspeed" if self.job.devices else "torchrun",
            "logs": str(self.job.folder / "logs" / host.name),
            "id": self.job.id,
            "environment": self.job.environment,
            "options": self.job.arguments(host, *self._meet, host.name == self._leader),
            "pretrain": self.job.pretrain,
            "grace": self.job.grace,
            "patience": self.job.patience,
        }
        self._addresses[host.name] = ssh.address(host.name, self.job.ssh)
        arguments = self.job.client(host.name)
        self.remotes[host.name] = Remote(host.name, arguments, request, self._leads, self._shown)

    def _leads(self, name: str) -> bool:
        """Return whether rank 0 runs on that host.

        torchrun numbers hosts by the order of their addresses as text, DeepSpeed by the host file.
        """
        if self.job.devices:
            return name == self.job.hosts[0].name
        return name == min(self.remotes, key=self._addresses.__getitem__, default=name)

    def _readmit(self, threads: ThreadPoolExecutor, now: float) -> None:
        """Check lost hosts from time to time, and start those that answer."""
        for host in self.job.hosts:
            check = self._checks.get(host.name)
            if check is None and now > self._retry_at.get(host.name, now):
                self._checks[host.name] = threads.submit(self._measure, [host], self._meet[0])
            elif check and check.done():
                del self._checks[host.name]
                self._retry_at[host.name] = now + self.job.patience / 3
                if check.exception() is None:
                    hosts_agree.compare(self._expected | check.result(), self.job.recipe, self._meet[0])
                    del self._retry_at[host.name]
                    _print_error(f"host {host.name} is back")
                    self._start(host)

    def _kill(self) -> None:
        for remote in self.remotes.values():
            remote.send("KILL")

    def _fail(self) -> int:
        """Print the message of the first rank that failed, unless it was shown already. Return its exit code.

        A rank that has lost its peers ends with code 1, so any other code counts as the earlier failure,
        whatever the clocks say.
        """
        order = {
            f["host"]: (not f["message"].startswith("error: "), f["code"] == 1, f["time"])
            for f in self._failures
        }
        first = min(self._failures, key=lambda failure: order[failure["host"]])
        code = int(first["code"])
        if code == self.job.requeue_code:
            return code
        message = first["message"].strip()
        if message and message.splitlines()[-1].strip() not in self._shown:
            _print_error(message)
        if first["rank"] >= 0 and not message.startswith("error: "):
            ending = f"signal {code - 128}" if code > 128 else f"exit code {code}"
            where = f"rank {first['rank']}, on host {first['host']}"
            logs = self.job.folder / "logs" / first["host"]
            _print_error(f"error: {where}, ended with {ending}; its log is in {logs}")
        return code


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
