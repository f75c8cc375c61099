"""A packed data set, and its vectors."""

from pathlib import Path

import pytest

from tests.eval_suite.eval_samples import save_checkpoint
from tests.eval_suite.vectors.vector_samples import embed, pack_table


@pytest.fixture(scope="session")
def table_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_table(tmp_path_factory.mktemp("table") / "set")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that belongs to no run."""
    return save_checkpoint(tmp_path_factory.mktemp("encoder") / "export")


@pytest.fixture(scope="session")
def embedded(table_set: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vectors of the data set, in parts of 7 images, with 4 neighbours."""
    out = tmp_path_factory.mktemp("vectors") / "set.parquet"
    embed(encoder, table_set, "--out", out, "--part-rows", 7, "--batch-size", 3, "--neighbours", 4)
    return out
