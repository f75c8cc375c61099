from pathlib import Path

import pytest
from pictures import save_pictures

from data_pipeline.index import Dataset
from data_pipeline.pack import Options, pack


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
