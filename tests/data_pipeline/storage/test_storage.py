"""Bytes of shards on a disk, and at URLs of the stores that need no server or only a web server."""

import multiprocessing
import os
import resource
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import fetch, is_remote, join, open_reader
from isotorus.errors import UserError


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(folder=tmp_path / "cache", patience=0.5)


def test_names_in_a_set() -> None:
    assert is_remote("s3://bucket/set") and not is_remote(Path("/data/set")) and not is_remote("set")
    assert not is_remote("pipe:curl http://host/a.tar")  # no shell: a file of that name
    assert join("s3://bucket/set/", "a b/ü.tar") == "s3://bucket/set/a b/ü.tar"
    assert join("s3://bucket/set", "gs://other/a.tar") == "gs://other/a.tar"
    assert join("/data/set", "s3://bucket/a.tar") == "s3://bucket/a.tar"
    assert join(Path("/data/set"), "a.tar") == "/data/set/a.tar"
    assert join("/data/set", "/disk/a.tar") == join("s3://bucket", "/disk/a.tar") == "/disk/a.tar"


def test_a_disk_needs_no_cache(tmp_path: Path, config: CacheConfig) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    reader = open_reader(tmp_path, config)
    assert reader.read("a.tar", 3, 4) == b"3456"
    assert reader.size("a.tar") == 10
    reader.prefetch("a.tar", 0, 10)
    reader.prefetch("none.tar", 0, 10)
    reader.forget("a.tar", 0, 10)
    assert fetch(tmp_path / "a.tar", config) == tmp_path / "a.tar"
    assert not config.folder.exists()


def read_all(reader: object, shards: list[bytes]) -> None:
    random = np.random.default_rng(os.getpid())
    for number in random.permutation(len(shards)).tolist() * 3:
        start, stop = sorted(random.integers(0, 1001, 2).tolist())
        assert reader.read(f"{number}.tar", start, stop - start) == shards[number][start:stop]  # type: ignore[attr-defined]


def test_forked_processes_share_a_bounded_number_of_handles(tmp_path: Path, config: CacheConfig) -> None:
    random = np.random.default_rng(0)
    shards = [random.bytes(1000) for _ in range(300)]
    for number, data in enumerate(shards):
        (tmp_path / f"{number}.tar").write_bytes(data)
    reader = open_reader(tmp_path, config)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Handles that earlier tests in this process left open count as well.
    already = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (already + 80, limits[1]))
    try:
        read_all(reader, shards)
        processes = [
            multiprocessing.get_context("fork").Process(target=read_all, args=(reader, shards))
            for _ in range(3)
        ]
        for process in processes:
            process.start()
        read_all(reader, shards)
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_happens_to_shards_in_use_is_named(tmp_path: Path, config: CacheConfig) -> None:
    for number in range(100):
        (tmp_path / f"{number}.tar").write_bytes(b"0123456789")
    reader = open_reader(tmp_path, config)
    assert reader.read("0.tar", 0, 10) == reader.read("1.tar", 0, 10) == reader.read("2.tar", 0, 10)
    os.truncate(tmp_path / "2.tar", 5)
    with pytest.raises(UserError, match=r"shard .*/2.tar was cut or replaced.*verify"):
        reader.read("2.tar", 3, 5)
    for number in range(3, 100):  # so that the handles of the first ones are closed
        reader.read(f"{number}.tar", 0, 10)
    (tmp_path / "0.tar").unlink()
    (tmp_path / "1.tar").write_bytes(b"0123456789 and more")
    with pytest.raises(UserError, match=r"^shard .*/0.tar is missing; [^\n]*verify[^\n]*$"):
        reader.read("0.tar", 0, 10)
    with pytest.raises(UserError, match=r"shard .*/1.tar was cut or replaced.*verify"):
        reader.read("1.tar", 0, 10)
    with pytest.raises(
        UserError, match=r"shard .*/50.tar has 10 bytes, but the index points to byte 92233720"
    ):
        reader.read("50.tar", 2**63, 2**32 - 1)
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(UserError, match=r"folder.tar"):
        reader.read("folder.tar", 0, 1)


def test_a_store_in_memory_and_files_as_urls(tmp_path: Path, config: CacheConfig) -> None:
    data = np.random.default_rng(0).bytes(9_000_000)
    (tmp_path / "a ü.tar").write_bytes(data)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/set/a ü.tar", data)
    for folder in (tmp_path.as_uri(), "memory://set"):
        reader = open_reader(folder, config)
        assert reader.size("a ü.tar") == len(data)
        assert reader.read("a ü.tar", 8_000_000, 900_000) == data[8_000_000:8_900_000]
        assert fetch(f"{folder}/a ü.tar", config).read_bytes() == data
        with pytest.raises(UserError, match=r"b.tar is not there"):
            reader.read("b.tar", 0, 1)
    memory.pipe_file("/set/a ü.tar", b"changed")
    assert fetch("memory://set/a ü.tar", config).read_bytes() == b"changed"


class QuietHandler(SimpleHTTPRequestHandler):
    """Python's own web server, which does not know ranges."""

    def log_message(self, *message: object) -> None:
        pass


def test_a_web_server_without_ranges_is_recognised(tmp_path: Path, config: CacheConfig) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(9_000_000))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match=rf"^{url}/a.tar: the server ignores ranges[^\n]*$"):
            open_reader(f"http://user:hidden@127.0.0.1:{server.server_port}", config).read("a.tar", 0, 10)
        with pytest.raises(UserError, match=rf"{url}/b.tar is not there \(HTTP 404\)"):
            fetch(f"{url}/b.tar", config)
        server.shutdown()
    with pytest.raises(UserError, match=rf"^{url}/a.tar could not be read in 0.5 s .*Connection refused"):
        fetch(f"{url}/a.tar", config)


def test_urls_that_no_library_reads(config: CacheConfig) -> None:
    with pytest.raises(UserError, match=r"^nonsense://bucket/a: [^\n]*nonsense[^\n]*$"):
        fetch("nonsense://bucket/a", config)
    with pytest.raises(UserError, match=r"^hdfs://host/a: [^\n]*$"):
        fetch("hdfs://host/a", config)
