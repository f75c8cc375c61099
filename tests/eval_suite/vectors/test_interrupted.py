"""`isotorus embed` after a kill, on a full disk, and in several processes: the same bytes."""

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_pipeline.dataset.sidecars import Sidecar
from eval_suite.vectors.parts import Parts, joined
from isotorus.errors import UserError
from tests.eval_suite.eval_samples import CLASSES, pack
from tests.eval_suite.vectors.vector_samples import embed

ROOT = Path(__file__).parents[3]
SMALL = ("--part-rows", 2, "--batch-size", 2, "--workers", 0)


def process(*arguments: object, **options: object) -> "subprocess.Popen[str]":
    """Start `isotorus embed …` in a process of its own."""
    command = [sys.executable, "-m", "eval_suite", "embed", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )


def wait_for_parts(running: "subprocess.Popen[str]", folder: Path, count: int) -> None:
    """Wait until a process that writes killed.… has finished this number of parts."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("killed.*.parts/*.seal"))) < count and time.monotonic() < deadline:
        assert running.poll() is None, running.stderr and running.stderr.read()
        time.sleep(0.001)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images, so 100 parts."""
    return pack(tmp_path_factory.mktemp("many") / "data", [*CLASSES] * 100, seed=5)


def test_a_killed_command_goes_on_where_it_was(many: Path, encoder: Path, tmp_path: Path):
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    options = (encoder, many, *SMALL, "--neighbours", 2)
    embed(*options, "--out", whole)
    running = process(*options, "--out", killed)
    wait_for_parts(running, tmp_path, 5)
    running.kill()
    running.communicate()
    (folder,) = tmp_path.glob("killed.*.parts")
    finished = len(list(folder.glob("part-*.parquet.seal")))
    assert 5 <= finished < 100 and not killed.exists()
    (folder / ".part-000099.parquet.1").write_bytes(b"a half")  # as a killed writer leaves it
    torn = folder / "part-000001.parquet"
    torn.write_bytes(torn.read_bytes()[:-1])  # as a crash of the machine may leave it
    done = embed(*options, "--out", killed)
    assert f"Continued: {finished - 1} of 100 parts are there already." in done.err
    assert killed.read_bytes() == whole.read_bytes() and not list(tmp_path.glob("*.parts"))


def test_a_full_disk_keeps_the_finished_parts(many: Path, encoder: Path, tmp_path: Path):
    """A limit of the file size lets the parts pass, and not the whole file."""
    out = tmp_path / "out.parquet"
    limit = 30_000

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = process(encoder, many, *SMALL, "--out", out, preexec_fn=limited)
    said = full.communicate(timeout=200)[1]
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert full.returncode == 2 and "Traceback" not in said, said
    assert f"writing {out} (finished parts are kept): File too large" in error
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    assert "Continued: 100 of 100 parts are there already." in embed(encoder, many, *SMALL, "--out", out).err
    assert len(pd.read_parquet(out)) == 200 and out.stat().st_size > limit


@pytest.mark.nightly
def test_several_processes_write_the_same_bytes(many: Path, encoder: Path, tmp_path: Path):
    alone, together = tmp_path / "alone.parquet", tmp_path / "together.parquet"
    embed(encoder, many, *SMALL, "--out", alone)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "eval_suite", "embed", encoder, many, *SMALL, "--out", together]
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is written") == 1
    assert together.read_bytes() == alone.read_bytes()


def test_parts_of_somebody_else_do_not_count(tmp_path: Path):
    """Without the seal of this user, or with another content, a part is embedded again."""
    parts = Parts(tmp_path / "x.parts", samples=5, rows=2)
    parts.make_folder()
    for number in range(3):
        span = list(parts.span(number))
        sidecars = [Sidecar(f"k{i}", f"k{i}.png", {}) for i in span]
        parts.write(number, joined(span, sidecars, np.ones((len(span), 3), np.float32), {}))
    assert parts.missing() == [] and parts.read(2).samples.tolist() == [4]
    (parts.folder / "part-000000.parquet.seal").unlink()
    shutil.copy(parts.folder / "part-000002.parquet", parts.folder / "part-000001.parquet")
    assert parts.missing() == [0, 1]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/y.parts").symlink_to(tmp_path / "x.parts")
    with pytest.raises(UserError, match="a link that leads out of"):
        Parts(tmp_path / "in/y.parts", samples=5, rows=2).make_folder()
