"""All hosts of a file, started by one command over ssh, and seen to their end from here."""

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

from isotorus.errors import UserError
from launch.one_node.torchrun_ranks import TRY_AGAIN, USER_ERROR
from launch.over_ssh import hosts_agree, ssh
from launch.over_ssh.hosts import Host
from launch.over_ssh.job import Job, read_job, show
from launch.over_ssh.node import REPORT
from launch.over_ssh.remote import Remote, command


def start(given: argparse.Namespace, options: list[str], pretrain: list[str]) -> int:
    """Run on all hosts; 0, or the exit code of the first failing rank."""
    job = read_job(given, options, pretrain)
    if given.dry_run:
        show(job)
        return 0
    return Launch(job).run()


class Launch:
    """From the first look at the hosts to the last one's end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.remotes: dict[str, Remote] = {}
        self.asked: list[str] = []
        """Signals that are to reach all ranks."""
        self.interrupted = self.killed = False
        self._addresses: dict[str, str] = {}
        self._leader, self._meet = "", ("", 0)
        """The host where all meet: its name, and the address and port."""
        self._expected: dict[str, Any] = {}
        """What the first host has, which one that comes back has to have too."""
        self._away: dict[str, float] = {}
        """When to look for a host again."""
        self._looks: dict[str, Future[dict[str, Any]]] = {}
        self._failures: list[dict[str, Any]] = []
        self._done = False
        self._shown: deque[str] = deque(maxlen=500)
        self._stop_by: float | None = None

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        first = True
        try:
            while True:
                present = self.present(first)
                if self._stop_by:
                    return TRY_AGAIN
                code = self._round(present) if present else None
                if code is not None:
                    return 130 if self.interrupted else code
                first = False
                time.sleep(self.job.patience / 3)
        finally:
            for remote in self.remotes.values():
                remote.drop()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.killed |= self.interrupted and number == signal.SIGINT
        self.interrupted |= number == signal.SIGINT
        self.asked.append("USR1" if number == signal.SIGUSR1 else "TERM")
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self.job.grace

    def present(self, first: bool) -> dict[str, Any]:
        """What each host that answers has of versions and a port; unless elastic, all have to answer."""
        if not self.job.elastic:
            found = self._look(self.job.hosts)
        else:
            found = {}
            with ThreadPoolExecutor(len(self.job.hosts)) as threads:
                looks = {host.name: threads.submit(self._look, [host]) for host in self.job.hosts}
            for look in looks.values():
                error = look.exception()
                if error is None:
                    found |= look.result()
                elif not isinstance(error, UserError):
                    raise error
                elif first:
                    _say(f"{error} (it may join later)")
            if len(found) < self.job.fewest:
                if first:
                    raise UserError(
                        f"{len(found)} of {len(self.job.hosts)} hosts answer, fewer than --nnodes asks"
                    )
                return {}
        meet = ssh.address(next(iter(found)), self.job.ssh)
        hosts_agree.compare(found, self.job.recipe, meet)
        self._expected = dict([next(iter(found.items()))])
        return found

    def _look(self, hosts: Sequence[Host], meet: str | None = None) -> dict[str, Any]:
        meet = meet or ssh.address(hosts[0].name, self.job.ssh)
        request = {"do": "probe", "recipe": self.job.recipe, "meet": meet, "port": self.job.port}
        answers = ssh.run(
            [host.name for host in hosts],
            command(self.job.python, self.job.directory),
            json.dumps(request) + "\n",
            self.job.ssh,
        )
        ssh.require(answers, f"{self.job.python} -m launch.over_ssh.node in {self.job.directory}")
        return {answer.host: json.loads(answer.stdout.rpartition(REPORT)[2]) for answer in answers}

    def _round(self, present: dict[str, Any]) -> int | None:
        """From a start on these hosts to their end; None if it has to be started anew."""
        job, hosts = self.job, [host for host in self.job.hosts if host.name in present]
        first = hosts[0].name
        self._leader, self._meet = first, (ssh.address(first, job.ssh), present[first]["port"])
        self.remotes, self._failures, self._done = {}, [], False
        for host in hosts:
            self._start(host)
        self._away = {h.name: time.monotonic() + job.patience for h in job.hosts if h not in hosts}
        beat, give_up = 0.0, None
        with ThreadPoolExecutor(len(job.hosts)) as threads:
            while self.remotes:
                time.sleep(0.1)
                now = time.monotonic()
                words, self.asked = self.asked, []
                if now - beat > job.patience / 6:
                    beat, words = now, [*words, ""]
                for remote in self.remotes.values():
                    for word in words:
                        remote.tell(word)
                for remote in [remote for remote in self.remotes.values() if remote.ended]:
                    self._part(remote, now)
                if (self._failures or self._done) and give_up is None:
                    give_up = now + job.patience  # the others learn of it by themselves
                if self.killed or any(limit and now > limit for limit in (give_up, self._stop_by)):
                    self._kill()
                if job.elastic and self._goes_on:
                    self._take_back(threads, now)
        if self._failures:
            return self._fail()
        if self._done:
            return 0
        return TRY_AGAIN if self._stop_by else None

    @property
    def _goes_on(self) -> bool:
        """No host has come to an end of its own, and none was asked to."""
        return not (self._done or self._failures or self._stop_by)

    def _part(self, remote: Remote, now: float) -> None:
        """A host has ended: as it should, with a failure, or lost."""
        del self.remotes[remote.host]
        report = remote.report or {"code": TRY_AGAIN, "rank": -1, "said": f"error: {remote.complaint}"}
        if report["code"] == 0:
            self._done = True
        elif report["rank"] >= 0 or report["code"] == USER_ERROR:
            self._failures.append({"host": remote.host} | report)
        elif not self._goes_on:
            return
        elif not self.job.elastic:
            self._failures.append({"host": remote.host, "time": time.time()} | report)
        elif remote.host == self._leader:  # where all others meet
            _say(f"{report['said'].removeprefix('error: ')}; all others begin anew")
            self._kill()
        else:
            self._away[remote.host] = now + self.job.patience / 3
            if self._leader in self.remotes:
                _say(f"{report['said'].removeprefix('error: ')}; going on without {remote.host}")

    def _start(self, host: Host) -> None:
        request = {
            "do": "run",
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
        """Whether rank 0 is on that host: torchrun numbers by the addresses as text, DeepSpeed as given."""
        if self.job.devices:
            return name == self.job.hosts[0].name
        return name == min(self.remotes, key=self._addresses.__getitem__, default=name)

    def _take_back(self, threads: ThreadPoolExecutor, now: float) -> None:
        """Look for hosts that are away, now and then, and start those that answer."""
        for host in self.job.hosts:
            look = self._looks.get(host.name)
            if look is None and now > self._away.get(host.name, now):
                self._looks[host.name] = threads.submit(self._look, [host], self._meet[0])
            elif look and look.done():
                del self._looks[host.name]
                self._away[host.name] = now + self.job.patience / 3
                if look.exception() is None:
                    hosts_agree.compare(self._expected | look.result(), self.job.recipe, self._meet[0])
                    del self._away[host.name]
                    _say(f"host {host.name} is back")
                    self._start(host)

    def _kill(self) -> None:
        for remote in self.remotes.values():
            remote.tell("KILL")

    def _fail(self) -> int:
        """Say what the first failing rank said, unless that has been seen; its exit code.

        Code 1 is what a rank ends with whose peers are gone, so another one comes first, whatever the clocks.
        """
        order = {
            f["host"]: (not f["said"].startswith("error: "), f["code"] == 1, f["time"])
            for f in self._failures
        }
        first = min(self._failures, key=lambda failure: order[failure["host"]])
        code = int(first["code"])
        if code == self.job.requeue_code:
            return code
        said = first["said"].strip()
        if said and said.splitlines()[-1].strip() not in self._shown:
            _say(said)
        if first["rank"] >= 0 and not said.startswith("error: "):
            ending = f"signal {code - 128}" if code > 128 else f"exit code {code}"
            where = f"rank {first['rank']}, on host {first['host']}"
            logs = self.job.folder / "logs" / first["host"]
            _say(f"error: {where}, ended with {ending}; its log is in {logs}")
        return code


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
