"""A real S3 server in a process of its own: `python s3_server.py FOLDER PORT`.

It serves FOLDER/<bucket>/<key> as they were at the start, and logs a line a request.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest

from data_pipeline.storage import remote

_STARTS_WITHIN = 60  # seconds


class S3Server:
    """Started on a free port of the loopback; once killed it can be started again, with the same objects."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        self.client = _client(self.endpoint)
        self._command = [sys.executable, __file__, str(folder), str(port)]
        self._log = folder.with_suffix(".log")

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + _STARTS_WITHIN
        while True:
            assert self._process.poll() is None, self._log.read_text()
            try:
                self.client.list_buckets()
                return
            except Exception:
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.1)

    def put(self, path: str, data: bytes) -> None:
        bucket, _, key = path.partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def requests(self, method: str, key: str) -> int:
        """Return how many requests for an object the server has answered."""
        return len(re.findall(rf"{method} /\S*{re.escape(key)} ", self._log.read_text()))


def access(endpoint: str) -> dict[str, str]:
    """Return the environment variables of a user of an S3 server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def become_a_user(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process a user of an S3 server, without the AWS variables of this machine.

    Connections are kept by bucket, and other servers of this process had buckets of the same name.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in access(endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "_filesystems", {})


def _client(endpoint: str) -> Any:
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=endpoint, **keys)


def _serve(folder: Path, port: int) -> None:
    # Here, because the tests import this file for the class above.
    from moto.server import ThreadedMotoServer

    loading = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    loading.start()
    client = _client("http://{}:{}".format(*loading.get_host_and_port()))
    for bucket in folder.iterdir():
        client.create_bucket(Bucket=bucket.name)
        for file in bucket.rglob("*"):
            if file.is_file():
                client.put_object(
                    Bucket=bucket.name, Key=str(file.relative_to(bucket)), Body=file.read_bytes()
                )
    ThreadedMotoServer(ip_address="127.0.0.1", port=port).start()  # it has the objects of the one above
    signal.pause()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
