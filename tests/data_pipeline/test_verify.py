import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.__main__ import main
from data_pipeline.errors import UserError
from data_pipeline.index import Dataset
from data_pipeline.verify import verify


@pytest.fixture
def copy(packed: Dataset, tmp_path: Path) -> Path:
    shutil.copytree(packed.path, tmp_path / "set")
    return tmp_path / "set"


def shard_of(folder: Path, sample: int) -> tuple[Path, int]:
    row = Dataset(folder).rows[sample]
    return folder / f"shard-{row['shard']:06d}.tar", int(row["offset"])


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def test_a_whole_data_set(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(str(copy), workers=2) == []
    assert main(["verify", str(copy)]) == 0
    assert "whole" in capsys.readouterr().out


def test_one_flipped_bit_in_an_image(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard, offset = shard_of(copy, 7)
    overwrite(shard, offset + 100, bytes([shard.read_bytes()[offset + 100] ^ 1]))
    damage = verify(str(copy), workers=1)
    assert len(damage) == 2 and all(shard.name in line for line in damage)
    assert any("SHA-256" in line for line in damage)
    assert any(f"image at byte {offset}" in line for line in damage)
    assert main(["verify", str(copy)]) == 1
    assert capsys.readouterr().out.count("damage: ") == 2
    with pytest.raises(UserError, match="changed since the index was made"):
        Dataset(copy).read(7)


def test_a_flipped_label_a_renamed_sample_and_padding(copy: Path) -> None:
    shard, offset = shard_of(copy, 0)
    data = shard.read_bytes()
    label = data.index(b".cls", offset) // 512 * 512 + 512
    overwrite(shard, label, b"1" if data[label : label + 1] == b"0" else b"0")
    assert any("labelled as" in line for line in verify(str(copy), workers=1))
    overwrite(shard, label, data[label : label + 1])
    assert verify(str(copy), workers=1) == []
    overwrite(shard, len(data) - 1, b"x")
    assert [line.split(": ")[-1] for line in verify(str(copy), workers=1)] == ["its SHA-256 is another"]


def test_a_truncated_shard(copy: Path) -> None:
    shard, offset = shard_of(copy, 3)
    with shard.open("r+b") as stream:
        stream.truncate(offset + 10)
    damage = verify(str(copy), workers=1)
    assert any("bytes instead of" in line for line in damage)
    assert all(shard.name in line for line in damage)
    with pytest.raises(UserError, match="verify"):
        Dataset(copy)


def test_a_missing_shard(copy: Path) -> None:
    shard, _ = shard_of(copy, 3)
    shard.unlink()
    assert verify(str(copy), workers=2) == [f"{shard}: No such file or directory"]
    with pytest.raises(UserError, match="No such file"):
        Dataset(copy)


def test_an_index_that_does_not_fit(copy: Path) -> None:
    rows = np.load(copy / "index.npy")
    rows["offset"][2] += 512
    np.save(copy / "index.npy", rows)
    damage = verify(str(copy), workers=1)
    assert any("not where" in line for line in damage) and any("not in the index" in line for line in damage)
    np.save(copy / "index.npy", rows[:-1])
    assert any("does not fit" in line for line in verify(str(copy), workers=1))
    (copy / "index.npy").write_bytes(b"rubbish")
    assert any("damaged" in line for line in verify(str(copy), workers=1))
    with pytest.raises(UserError, match="damaged"):
        Dataset(copy)


def test_info_for_people_and_for_scripts(packed: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(packed.path)]) == 0
    text = capsys.readouterr().out
    assert "cat 15, dog 8" in text and packed.fingerprint in text
    assert main(["info", str(packed.path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["count"] == 23 and facts["classes"] == ["cat", "dog"] and facts["channels"] == 3
    assert facts["bytes"] == sum(file.stat().st_size for file in Path(packed.path).glob("*.tar"))
