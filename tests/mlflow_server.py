"""A real MLflow server on a database in a folder."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`mlflow server` with a database in a folder; after a kill it can be started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options, *store],
            cwd=self.folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seconds of starting
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=10)
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, "no MLflow server"
                time.sleep(0.3)

    def kill(self) -> None:
        family = psutil.Process(self._process.pid).children(recursive=True)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(family)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Start a server, yield its address, and end it."""
    server = Server(folder)
    server.start()
    try:
        yield server.address
    finally:
        server.kill()
