"""A folder to pack, and a packing of it that is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from isotorus.errors import exit_code

Run = Callable[..., str]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return an empty folder for images."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that packs or indexes `images`, which must be refused, and returns the one line of
    the refusal.
    """

    def run(*options: object, command: str = "pack") -> str:
        line = [command, images, tmp_path / "set", "--workers", "1", *options]
        assert exit_code(lambda: main([str(argument) for argument in line])) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return run
