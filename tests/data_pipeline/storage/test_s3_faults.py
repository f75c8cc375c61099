"""An S3 store with the faults of real ones: passing ones are waited for, the others end in one line."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.chunks import CHUNK
from data_pipeline.storage.reader import fetch, open_reader
from isotorus.errors import UserError
from tests.data_pipeline.s3_server import S3Server

Answers = list[tuple[int, str] | None]


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """Make a new bucket for each test, because a process keeps its connections to known buckets."""
    name = f"bucket-{time.monotonic_ns()}"
    s3.client.create_bucket(Bucket=name)
    s3.put(f"{name}/a.tar", b"some bytes")
    return name


@pytest.fixture
def answers(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """Put a proxy before the server, and return its list of next answers (status, error code).

    For None, and when the list is empty, the server itself answers.
    """
    answers: Answers = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.pop(0) if answers else None
            if answer is None:
                found = requests.request(self.command, s3.endpoint + self.path, headers=dict(self.headers))
                status, body, headers = found.status_code, found.content, dict(found.headers)
            else:
                status, code = answer
                secret = os.environ["AWS_SECRET_ACCESS_KEY"]
                body = f"<Error><Code>{code}</Code><Message>{secret}</Message></Error>".encode()
                headers = {"Content-Type": "application/xml", "Content-Length": str(len(body))}
            self.send_response(status)
            for name in headers.keys() & {"Content-Type", "Content-Length", "ETag", "Last-Modified"}:
                self.send_header(name, headers[name])
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *message: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,)).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        yield answers
        proxy.shutdown()


def size(url: str, cache: CacheConfig) -> int:
    folder, _, name = url.rpartition("/")
    return open_reader(folder, cache).size(name)


def test_what_passes_is_tried_again(answers: Answers, bucket: str, cache: CacheConfig) -> None:
    answers += [
        (503, "SlowDown"),
        (500, "InternalError"),
        None,
        (503, ""),
        (400, "RequestTimeout"),
        (502, ""),
    ]
    assert open_reader(f"s3://{bucket}", cache).read("a.tar", 0, 10) == b"some bytes"
    assert not answers


def test_patience_ends(answers: Answers, bucket: str, tmp_path: Path) -> None:
    answers += [None] + [(503, "SlowDown")] * 100
    reader = open_reader(f"s3://{bucket}", CacheConfig(folder=tmp_path / "cache", patience=1))
    expected = rf"^s3://{bucket}/a.tar could not be read in 1 s .*\(HTTP 503 SlowDown\)[^\n]*$"
    with pytest.raises(UserError, match=expected):
        reader.read("a.tar", 0, 10)
    assert 3 <= 100 - len(answers) < 20


@pytest.mark.parametrize("read", [fetch, size])
@pytest.mark.parametrize(
    "status, code", [(403, "ExpiredToken"), (400, "ExpiredToken"), (403, "InvalidAccessKeyId")]
)
def test_refused_credentials_are_one_line_without_secrets(
    answers: Answers, bucket: str, cache: CacheConfig, status: int, code: str, read: Callable[..., object]
) -> None:
    answers += [(status, code)] * 10
    expected = rf"^s3://{bucket}/a.tar: access is denied .*{code}.*expired[^\n]*$"
    with pytest.raises(UserError, match=expected) as refused:
        read(f"s3://{bucket}/a.tar", cache)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)
    assert len(answers) > 5  # one more request at most, for the reason, which no answer to HEAD has


def test_credentials_that_expire_while_reading(answers: Answers, bucket: str, cache: CacheConfig) -> None:
    reader = open_reader(f"s3://{bucket}", cache)
    assert reader.size("a.tar") == 10
    answers += [(403, "ExpiredToken")]
    with pytest.raises(UserError, match=r"access is denied .*ExpiredToken"):
        reader.read("a.tar", 0, 10)
    assert reader.read("a.tar", 0, 10) == b"some bytes"


def test_no_credentials(bucket: str, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    expected = r"access is denied .*NoCredentials.*check that the credentials are there"
    with pytest.raises(UserError, match=expected):
        fetch(f"s3://{bucket}/a.tar", cache)


def test_what_is_not_there(bucket: str, cache: CacheConfig) -> None:
    with pytest.raises(UserError, match=rf"s3://{bucket}/b.tar is not there"):
        open_reader(f"s3://{bucket}", cache).read("b.tar", 0, 1)
    with pytest.raises(UserError, match=rf"s3://no-{bucket}/a.tar is not there .*NoSuchBucket"):
        fetch(f"s3://no-{bucket}/a.tar", cache)
    with pytest.raises(UserError, match=r"s3://bucket/set is a folder"):
        fetch("s3://bucket/set", cache)


def test_an_endpoint_that_nobody_listens_at(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"could not be read in 0.5 s .*Connection refused.*check the network"
    ):
        fetch(f"s3://{bucket}/a.tar", CacheConfig(folder=tmp_path, patience=0.5))


def test_a_server_that_is_killed_and_started_again(
    s3: S3Server, objects: dict[str, bytes], cache: CacheConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, data = open_reader("s3://bucket/set", cache), objects["shard-0.tar"]
    first = reader.read("shard-0.tar", 0, CHUNK)
    s3.kill()
    restart = threading.Timer(2, s3.start)
    restart.start()
    rest = reader.read("shard-0.tar", CHUNK, len(data) - CHUNK)
    restart.join()
    assert first + rest == data
    assert "s3://bucket/set/shard-0.tar: Connection refused; trying again" in capfd.readouterr().err


def test_prefetching_does_not_delay_the_end_of_a_process(s3: S3Server, cache: CacheConfig) -> None:
    program = """
import sys, time
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import open_reader
reader = open_reader("s3://bucket/set", CacheConfig(folder=sys.argv[1], patience=600))
for i in range(20):
    reader.prefetch(f"shard-{i}.tar", 0, 10**8)
time.sleep(1)
"""
    environment = os.environ | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", program, cache.folder]
    done = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
