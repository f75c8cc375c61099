from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.packing.pack import Options, pack
from data_pipeline.storage.cache import CacheConfig
from isotorus.errors import exit_code
from tests.data_pipeline.pictures import save_pictures
from tests.data_pipeline.s3_server import S3Server, become_a_user
from tests.data_pipeline.tar_index import Run


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    names = [f"{'cat' if i % 3 else 'dog'}/deep/{i:02d}.{'png' if i % 2 else 'jpg'}" for i in range(23)]
    save_pictures(folder, names)
    return folder


@pytest.fixture(scope="session")
def packed(labelled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dest = tmp_path_factory.mktemp("packed") / "set"
    pack(labelled_folder, dest, Options(labels="folder", shard_size=20_000))
    return Dataset(dest)


@pytest.fixture(scope="session")
def objects() -> dict[str, bytes]:
    """Shards of three chunks each, which lie in s3://bucket/set."""
    random = np.random.default_rng(0)
    return {f"shard-{i}.tar": random.bytes(20_000_000) for i in range(5)}


@pytest.fixture(scope="session")
def s3_process(objects: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("objects") / "s3"
    (folder / "bucket/set").mkdir(parents=True)
    for name, data in objects.items():
        (folder / "bucket/set" / name).write_bytes(data)
    server = S3Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Make this process a user of the S3 server."""
    become_a_user(s3_process.endpoint, monkeypatch)
    return s3_process


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    """Return the settings of a cache that is smaller than all shards of the S3 server together."""
    return CacheConfig(folder=tmp_path / "cache", size="64MB", patience=30)


@pytest.fixture
def done(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `index`, which must succeed, and returns its line."""

    def run(*arguments: object) -> str:
        assert main(["index", *map(str, arguments), "--workers", "1"]) == 0
        return capsys.readouterr().out.strip()

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `index`, which must be refused, and returns the one line of the refusal."""

    def run(*arguments: object) -> str:
        assert exit_code(lambda: main(["index", *map(str, arguments), "--workers", "1"])) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return run
