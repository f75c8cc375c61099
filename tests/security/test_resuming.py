"""Continuing a run reads no pickle that could run code, and compares checksums before content."""

import json
import pickle
import shutil
import zlib
from io import BytesIO
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import damage
from pretrain.checkpoint.damage import Damaged, describe, latest_described
from pretrain.checkpoint.dcp_reading import Foreign, Planner, Reader
from pretrain.run_control.lock import hold

WRITTEN = Path(__file__).parents[1] / "formats/runs/lejepa/checkpoints/step_00000006"


class Bomb:
    """An object that makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of a checkpoint that an earlier version wrote, with one of step 3 before it."""
    shutil.copytree(WRITTEN, tmp_path / "checkpoints/step_00000003")
    return Path(shutil.copytree(WRITTEN, tmp_path / "checkpoints/step_00000006"))


def sign(checkpoint: Path, name: str) -> None:
    """Put a file's size and checksum into COMPLETE, as anybody can."""
    listed = json.loads((checkpoint / "COMPLETE").read_text())
    content = (checkpoint / name).read_bytes()
    (checkpoint / "COMPLETE").write_text(json.dumps(listed | {name: [len(content), zlib.crc32(content)]}))


def test_metadata_are_read_as_they_were_written(checkpoint: Path):
    found = Reader(checkpoint).read_metadata()
    with (checkpoint / ".metadata").open("rb") as file:
        written = pickle.load(file)
    assert found.state_dict_metadata == written.state_dict_metadata
    assert found.storage_data == written.storage_data


def test_metadata_run_nothing(checkpoint: Path, tmp_path: Path):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "fired")))
    sign(checkpoint, ".metadata")
    with pytest.raises(Foreign, match="could run code"):
        Reader(checkpoint).read_metadata()
    for content in (b"", b"garbage", pickle.dumps({"a": 1}), pickle.dumps(None)):
        (checkpoint / ".metadata").write_bytes(content)
        with pytest.raises(Foreign):
            Reader(checkpoint).read_metadata()
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize("place", ["../step_00000003/__0_0.distcp", "/etc/passwd", ".."])
def test_metadata_name_no_file_elsewhere(checkpoint: Path, place: str):
    metadata = Reader(checkpoint).read_metadata()
    for each in metadata.storage_data.values():
        each.relative_path = place
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(Foreign, match="names a file elsewhere"):
        Reader(checkpoint).read_metadata()


def test_values_run_nothing(tmp_path: Path):
    planner, stream = Planner(), BytesIO()
    torch.save(Bomb(tmp_path / "fired"), stream)
    stream.seek(0)
    with pytest.raises(pickle.UnpicklingError):
        planner.load_bytes(None, stream)  # type: ignore[arg-type]
    assert not (tmp_path / "fired").exists()


def test_a_flipped_bit_is_damage_whatever_it_makes_of_the_text(checkpoint: Path):
    file = checkpoint / "encoder.json"
    content = file.read_bytes()
    for place in range(0, len(content), 37):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(Damaged, match=r"encoder\.json has another checksum"):
            describe(checkpoint)
        assert latest_described(checkpoint.parent, "previous") == checkpoint.with_name("step_00000003")
    file.write_bytes(content)
    assert describe(checkpoint)["step"] == 6


@pytest.mark.parametrize("content", [b"[" * 10**5, b"[1]", b"\xff", b"", b"null"])
def test_odd_files_of_a_checkpoint_are_damage(checkpoint: Path, content: bytes):
    (checkpoint / "encoder.json").write_bytes(content)
    sign(checkpoint, "encoder.json")
    with pytest.raises(Damaged):
        describe(checkpoint)
    (checkpoint / "COMPLETE").write_bytes(content)
    assert damage.in_part(checkpoint, 0, 1)


def test_a_list_of_files_names_none_elsewhere(checkpoint: Path):
    (checkpoint / "COMPLETE").write_text(json.dumps({"../step_00000003/encoder.json": [1, 2]}))
    assert damage.in_part(checkpoint, 0, 1) == ["COMPLETE is no list of files"]
    (checkpoint / "COMPLETE").write_text(json.dumps({"encoder.json": 5}))
    assert damage.in_part(checkpoint, 0, 1) == ["encoder.json has no checksum in COMPLETE"]


def test_the_lock_of_a_run_is_no_way_to_other_files(tmp_path: Path):
    run, own = tmp_path / "run", tmp_path / "own.txt"
    run.mkdir()
    own.write_text("mine")
    (run / "lock").symlink_to(own)
    with pytest.raises(OSError), hold(run):
        pass
    assert own.read_text() == "mine"


@pytest.mark.parametrize("content", ["[1]", "5", '"x"', '{"machine": 1}', "[" * 4000, "null"])
def test_an_odd_lock_is_nobodys(content: str, tmp_path: Path):
    (tmp_path / "lock").write_text(content)
    with hold(tmp_path) as lock:
        assert lock.renew() == ""
