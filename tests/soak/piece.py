"""A piece of the soak: it goes on with the run, has faults happen, and takes a sample a minute."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.data_pipeline.s3_server import access
from tests.distributed.runs import ENVIRONMENT, ROOT
from tests.launch.launched import Launched
from tests.launch.network import Network, network
from tests.soak.recipe import ENDLESS, PORT, options, prepare
from tests.soak.samples import role, sample
from tests.soak.store import FAULTS

STORE = 3
"""Number of the host with the launcher and the store."""
BETWEEN = (30, 180)
"""Seconds of training before the next fault."""
LASTS = (15, 60)
"""Seconds that a host or the store is away."""
QUIET = 240
"""Seconds after which processes that should have ended count as left behind."""


class Piece:
    """Inside a `with` block there are three hosts and the store."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.run = folder, folder / "run"
        self._seed, self._fault_file = seed, folder / "fault"
        self._launched: Launched | None = None
        self._sampled = 0.0

    def __enter__(self) -> Self:
        buckets = prepare(self.folder)
        self._fault_file.write_text("")
        with contextlib.ExitStack() as stack:
            keys = self.folder / f"keys{time.time_ns()}"
            keys.mkdir()
            stack.callback(shutil.rmtree, keys)
            self.nodes: Network = stack.enter_context(network(keys, 3))
            store = [sys.executable, "-m", "tests.soak.store", str(buckets), str(self._fault_file), str(PORT)]
            self._store = subprocess.Popen(self.nodes.on(STORE, *store), cwd=ROOT, env=ENVIRONMENT)
            while not Path("/run/store").exists():
                assert self._store.poll() is None, "the store has ended"
                time.sleep(0.5)
            self._event("a piece begins", seed=self._seed)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._launched and self._launched.process.poll() is None:
            self._launched.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._launched.end()
        self._wait_until_quiet()
        self._event("a piece ends", step=self.step())
        self._stack.close()

    def go_on(self, minutes: float) -> None:
        """Train for some minutes, with a fault now and then."""
        end = time.monotonic() + 60 * minutes
        faults = _faults(self.nodes, self._seed, read(self.folder / "events.jsonl"))
        while time.monotonic() < end:
            self._start()
            number, random_numbers = next(faults)
            reached, until = self.step(), random_numbers.uniform(*BETWEEN)
            if not self._wait(lambda: self.step() > reached, end):  # noqa: B023
                continue
            self._wait(lambda: False, min(end, time.monotonic() + until))
            if time.monotonic() < end and self._running():
                self._have_a_fault(number, random_numbers)

    def _have_a_fault(self, number: int, numbers: random.Random) -> None:
        """Let one fault happen, and repair what does not repair itself."""
        kinds: dict[str, Callable[[], None]] = {
            "SIGKILL of a rank": lambda: self._kill_a_rank(numbers),
            "SIGKILL of the launcher": lambda: self._launcher().send_signal(signal.SIGKILL),
            "SIGTERM of the launcher": lambda: self._launcher().send_signal(signal.SIGTERM),
            "a host without power": lambda: self.nodes.crash(lost),
            "a host cut off": lambda: self.nodes.cut(lost),
            "the store fails": lambda: self._fail(numbers.choice(FAULTS)),
        }
        lost, kind, lasts = numbers.choice((1, 2)), numbers.choice(list(kinds)), numbers.uniform(*LASTS)
        self._event(kind, number=number, step=self.step(), host=lost if "host" in kind else None)
        kinds[kind]()
        if "host" in kind or "store" in kind:
            self._wait(lambda: False, time.monotonic() + lasts, ended=False)
        if "host" in kind:
            self.nodes.join(lost)
            if "power" in kind:
                self.nodes.start_sshd(lost)
        self._fail("")
        if "store" not in kind:
            self._wait(lambda: False, time.monotonic() + QUIET)  # until the command ends
            self._event("the command has ended", number=number, code=self._code(), step=self.step())

    def _fail(self, fault: str) -> None:
        """Set the store's fault, and take the images from the cache, so that they are read again."""
        self._fault_file.write_text(fault)
        if fault:
            self._event(f"the store {fault}")
            shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def _start(self) -> None:
        """Give the command again if it has ended."""
        if self._running():
            return
        self._wait_until_quiet()
        said = sorted(self.folder.glob("said*"))
        for old in said[:-3]:
            old.unlink()
        more = ["checkpoint.mirror=s3://bucket/runs", "checkpoint.mirror_wait=30", "stopping.grace=60"]
        more.append(f"data.cache.folder={self.folder / 'cache'}")
        train = [*options(self.folder, "s3://bucket/images", ENDLESS), *more]
        hosts = self.nodes.hostfile(nodes=[1, 2])
        store = access(f"http://{self.nodes.nodes[STORE - 1].address}:{PORT}")
        self._launched = Launched(
            self.nodes, self.folder, "--hosts", str(hosts), "--", *train, node=STORE, **store
        )
        self._event("the command is given", step=self.step())

    def _running(self) -> bool:
        return self._launched is not None and self._launched.process.poll() is None

    def _code(self) -> int | None:
        return self._launched.process.poll() if self._launched else None

    def _launcher(self) -> subprocess.Popen[bytes]:
        assert self._launched
        return self._launched.process

    def _kill_a_rank(self, numbers: random.Random) -> None:
        assert self._launched
        processes = [*self._launched.ranks(1), *self._launched.ranks(2)]
        if ranks := [process for process in processes if role(process) == "rank"]:
            numbers.choice(ranks).kill()

    def step(self) -> int:
        """Return the last step that was logged."""
        path = self.run / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            lines = [line for line in file.read().splitlines() if line.endswith(b"}")]
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def _wait(self, happened: Callable[[], bool], until: float, ended: bool = True) -> bool:
        """Wait for something, or until a time, or with `ended` until the command ends; return whether it
        happened. Samples are taken meanwhile."""
        while time.monotonic() < until and not happened():
            if ended and not self._running():
                return False
            self._sample()
            time.sleep(1)
        return happened()

    def _sample(self) -> None:
        if time.time() < self._sampled + 60:
            return
        self._sampled = time.time()
        processes = [p for i in (1, 2, 3) for p in self.nodes.processes(i) if not self._of_the_store(p)]
        line = {"time": round(time.time()), "step": self.step(), **sample(processes, self.run)}
        _append(self.folder / "samples.jsonl", line)

    def _of_the_store(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return self._store.pid in (process.pid, process.ppid())
        return True

    def _wait_until_quiet(self) -> None:
        """Wait until no process of the run is left on any host."""
        end = time.monotonic() + QUIET
        while left := self._left():
            if time.monotonic() > end:
                self._event("processes are left behind", left=[" ".join(p)[:200] for p in left])
                return
            self._sample()
            time.sleep(1)

    def _left(self) -> list[list[str]]:
        found = []
        for process in (p for i in (1, 2, 3) for p in self.nodes.processes(i)):
            with contextlib.suppress(psutil.Error):
                if not self._of_the_store(process) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.cmdline())
        return [words for words in found if words]

    def _event(self, what: str, **more: Any) -> None:
        line = {"time": round(time.time(), 1), "event": what, **more}
        _append(self.folder / "events.jsonl", {key: x for key, x in line.items() if x is not None})


def _faults(nodes: Network, seed: int, events: list[dict[str, Any]]) -> Iterator[tuple[int, random.Random]]:
    """Yield the number of each fault and the random numbers for it, from the first that did not happen."""
    number = 1 + max((event.get("number", 0) for event in events), default=0)
    while True:
        yield number, random.Random(f"{seed} {number}")
        number += 1


def read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
