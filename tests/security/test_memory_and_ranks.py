"""Memory that runs out is no damage, and a RANK that a shell has left silences no command."""

import os
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.decoders.decode import decode
from isotorus.errors import UserError, exit_code
from isotorus.scheduled_ranks import check_ranks
from tests.data_pipeline.encoders import encoded
from tests.data_pipeline.pictures import picture, save_pictures

PACK = (
    "import resource, sys; from data_pipeline.__main__ import main; from isotorus.errors import exit_code\n"
    "import data_pipeline.packing.pack\n"
    "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
    "resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20, resource.RLIM_INFINITY))\n"
    "sys.exit(exit_code(lambda: main(sys.argv[1:])))"
)


def test_a_sound_image_without_memory_is_not_left_out(tmp_path):
    from PIL import Image

    save_pictures(tmp_path / "photos", ["small.png"])
    Image.fromarray(np.zeros((6000, 6000, 3), np.uint8)).save(tmp_path / "photos/large.png")
    command = [sys.executable, "-c", PACK, "pack", "photos", "packed", "--workers", "1"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "memory ran out" in done.stderr and not (tmp_path / "packed/skipped.txt").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError("out of memory error when reading image file"),
        ValueError("Insufficient memory (case 4)"),
    ],
)
def test_what_decoders_say_about_memory_is_no_damage(error: Exception, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(MemoryError):
        decode(encoded(picture(1), "png"))


@pytest.mark.parametrize("rank", ["1", "x", "-1", "99999999999999999999999"])
def test_a_rank_left_in_a_shell_silences_nothing(rank: str, monkeypatch: pytest.MonkeyPatch, capsys):
    def fail() -> int:
        raise UserError("this is wrong")

    for name in ("TORCHELASTIC_RUN_ID", "CROSS_RANK", "SLURM_PROCID", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", rank)
    assert exit_code(fail) == 2 and capsys.readouterr().err == "error: this is wrong\n"
    with pytest.raises(UserError, match="unset RANK"):
        check_ranks()


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "CROSS_RANK", "SLURM_PROCID"])
def test_ranks_of_a_launch_say_it_once(launcher: str, monkeypatch: pytest.MonkeyPatch, capsys):
    def fail() -> int:
        raise UserError("this is wrong")

    monkeypatch.setenv(launcher, "1")
    for rank, said in (("0", "error: this is wrong\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert exit_code(fail) == 2 and capsys.readouterr().err == said
