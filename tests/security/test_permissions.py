"""Cached pixels are for their user alone; weights have the permissions of any other new file."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipeline.storage.cache import Cache, CacheConfig
from pretrain.checkpoint.export.new_folder import new_folder
from pretrain.checkpoint.export.to_timm import write_json, write_weights


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fill(folder: Path) -> None:
    cache = Cache(CacheConfig(folder=folder))
    with cache.lock("key"), cache.write("key", 7) as file:
        file.write(b"private")
    assert cache.load("key") == b"private"


def test_what_the_cache_makes_is_private(umask: int, tmp_path: Path):
    fill(tmp_path / "scratch/mine/cache")
    made = [tmp_path / "scratch", *(tmp_path / "scratch").rglob("*")]
    assert {mode(path) & 0o077 for path in made} == {0} and any(path.is_file() for path in made)


def test_a_cache_of_an_earlier_version_becomes_private(tmp_path: Path):
    fill(tmp_path / "cache")
    (tmp_path / "cache").chmod(0o755)
    (tmp_path / "cache/entries").chmod(0o755)
    fill(tmp_path / "cache")
    assert mode(tmp_path / "cache/entries") == 0o700 and mode(tmp_path / "cache") == 0o755  # may hold more


def test_exported_weights_can_be_read_by_whom_the_umask_allows(umask: int, tmp_path: Path):
    with new_folder(tmp_path / "made") as folder:
        write_weights({"weight": torch.zeros(2)}, folder)
        write_json({}, folder / "config.json")
    modes = {path.name: mode(path) for path in (tmp_path / "made").iterdir()}
    assert modes == {"config.json": 0o666 & ~umask, "model.safetensors": 0o666 & ~umask}
