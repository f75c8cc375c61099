"""A small packed data set of drawn cells, and the recipe of a run on it that takes seconds."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.recipe import write_recipe

# Evaluations keep the key of their seals there, not among the user's own files.
os.environ.setdefault("XDG_STATE_HOME", tempfile.mkdtemp(prefix="isotorus-tests-"))
# Two cores are shared by the ranks of the distributed tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A suite in the background of a shell ignores Ctrl-C, and so would the processes whose Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 grey PNGs of 40×40 in folders `cracked` and `whole`."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(60):
        name = "cracked" if i % 2 else "whole"
        image = Image.fromarray(random.integers(90, 160, (40, 40), dtype=np.uint8))
        if name == "cracked":
            ImageDraw.Draw(image).line([tuple(p) for p in random.integers(0, 40, (3, 2)).tolist()], 0, 2)
        (folder / name).mkdir(exist_ok=True)
        image.save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images packed into several small shards."""
    packed = tmp_path_factory.mktemp("packed") / "cells"
    options = ["--labels", "folder", "--shard-size", "30KB", "--workers", "1"]
    subprocess.run([sys.executable, "-m", "data_pipeline", "pack", images, packed, *options], check=True)
    return packed


@pytest.fixture
def recipe(shards: Path, tmp_path: Path) -> Path:
    """A YAML of 12 steps that logs each one and saves every 4."""
    return write_recipe(shards, tmp_path)
