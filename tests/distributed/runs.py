"""Real training processes for the tests: start, wait for a step, kill."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(ranks: int, recipe: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> list[str]:
    pretrain = ["--config", str(recipe), *overrides]
    if ranks == 1:
        return [sys.executable, "-m", "pretrain", *pretrain]
    options = ["--standalone", "--nproc-per-node", str(ranks), *launcher]
    return [sys.executable, "-m", "launch", "torchrun", *options, "--", *pretrain]


def killing(folder: Path, rank: int | None, when: str, whom: str = "os.getpid()") -> dict[str, str]:
    """Return an environment in which a rank gets SIGKILL just before an action that makes `when` true.

    `rank` is None for a process without a launcher. With `whom="os.getppid()"` the launcher gets the signal.
    `when` is an expression of Python's audit events: `event`, such as "open" or "os.rename", and `paths`.
    """
    hook = folder / f"kill{len(list(folder.glob('kill*')))}/sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text(
        "import os, signal, sys\n"
        "def kill(event, arguments):\n"
        "    if event in ('open', 'os.rename'):\n"
        "        paths = [os.fspath(x) for x in arguments if isinstance(x, (str, os.PathLike))]\n"
        f"        if paths and ({when}):\n"
        f"            os.kill({whom}, signal.SIGKILL)\n"
        f"if os.environ.get('RANK', 'None') == '{rank}':\n"
        "    sys.addaudithook(kill)\n"
    )
    return {"PYTHONPATH": str(hook.parent)}


def train(
    ranks: int, recipe: Path, *overrides: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end, successful or not."""
    return subprocess.run(
        command(ranks, recipe, *overrides),
        cwd=ROOT,
        env=ENVIRONMENT | (environment or {}),
        capture_output=True,
        text=True,
        timeout=600,
    )


class Run:
    """A run in the background, whose output goes to files."""

    def __init__(
        self,
        ranks: int,
        recipe: Path,
        folder: Path,
        *overrides: str,
        environment: dict[str, str] | None = None,
        launcher: tuple[str, ...] = (),
    ) -> None:
        self.folder, self.ranks = folder, ranks
        self._stderr = recipe.with_suffix(".stderr")
        with self._stderr.open("w") as file:
            self.process = subprocess.Popen(
                command(ranks, recipe, *overrides, launcher=launcher),
                cwd=ROOT,
                env=ENVIRONMENT | (environment or {}),
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )

    def wait_for(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + 200
        while not happened():
            assert self.process.poll() is None, f"the run ended before that: {self.stderr}"
            assert time.monotonic() < deadline, f"the run does not get there: {self.stderr}"
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: any(row["step"] >= step for row in rows(self.folder)))

    def rank(self, number: int) -> psutil.Process:
        """Return the process of a rank under the launcher."""
        for child in psutil.Process(self.process.pid).children():
            if child.environ().get("RANK") == str(number):
                return child
        raise AssertionError(f"no rank {number}")

    def end(self) -> int:
        """Wait for the end; return the launcher's exit code."""
        return self.process.wait(200)

    def kill(self) -> None:
        """SIGKILL the launcher and all that it started."""
        # The launcher's workers are sessions of their own, so its process group is not all of them.
        family = [
            psutil.Process(self.process.pid),
            *psutil.Process(self.process.pid).children(recursive=True),
        ]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()
        psutil.wait_procs(family)

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()


def rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def losses(folder: Path) -> dict[int, float]:
    found = rows(folder)
    assert len({row["step"] for row in found}) == len(found), "a step is logged twice"
    return {row["step"]: row["loss"] for row in found}
