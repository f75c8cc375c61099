"""Files of a field are packed as their pictures: continued, appended, left out and checked like others."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pydicom import uid

from data_pipeline.__main__ import main
from data_pipeline.dataset import spacing
from data_pipeline.dataset.index import Dataset
from isotorus.errors import exit_code
from tests.data_pipeline.pictures import save_pictures
from tests.data_pipeline.scientific_formats.dicoms import write_ct, write_dicom

RANDOM = np.random.default_rng(0)
FRAMES = RANDOM.integers(0, 256, (6, 32, 40)).astype(np.uint8)


def run(*arguments: object) -> int:
    return exit_code(lambda: main([*map(str, arguments), "--workers", "1"]))


def pixels(dataset: Dataset) -> dict[str, np.ndarray]:
    return {dataset.key(i): dataset.pixels(i, None, None)[..., 0] for i in range(len(dataset))}


def members(dataset: Dataset) -> dict[str, bytes]:
    found = {}
    for shard in sorted(Path(dataset.path).glob("*.tar")):
        with tarfile.open(shard) as tar:
            found |= {m.name: tar.extractfile(m).read() for m in tar}
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for patient in range(4):
        for z in range(3):
            write_dicom(folder / f"p{patient}/1.2.{z}.dcm", FRAMES[z] + np.uint8(patient))
    write_dicom(folder / "heart.dcm", FRAMES, NumberOfFrames=6)
    write_dicom(folder / "export/IM.1.2.3", FRAMES[0])
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    return folder


def test_frames_become_samples_of_one_group(source: Path, tmp_path: Path, capsys) -> None:
    assert run("pack", source, tmp_path / "set", "--strict") == 0
    dataset = Dataset(tmp_path / "set")
    found = pixels(dataset)
    assert len(found) == 4 * 3 + 6 + 1
    np.testing.assert_array_equal(found["p2/1_2_1"], FRAMES[1] + np.uint8(2))
    np.testing.assert_array_equal(found["export/IM_1_2_3"], FRAMES[0])
    for number in range(6):
        np.testing.assert_array_equal(found[f"heart/f{number:03d}"], FRAMES[number])
    groups = {dataset.key(i): int(dataset.groups[i]) for i in range(len(dataset))}
    frames = {group for key, group in groups.items() if key.startswith("heart/")}
    assert len(frames) == 1 and 0 not in frames
    assert not any(group for key, group in groups.items() if not key.startswith("heart/"))


def test_columns_of_the_table_and_of_the_header_are_beside_the_picture(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,label,patient,device\nheart.dcm,well,7,ours\np1/1.2.0.dcm,ill,8,\n")
    options = ("--labels", table, "--group-column", "patient", "--keep", "PatientID")
    assert run("pack", source, tmp_path / "set", *options) == 0
    dataset = Dataset(tmp_path / "set")
    described = json.loads(members(dataset)["heart/f003.json"])
    expected = {"modality": "CT", "spacing": [0.7, 0.8], "spacing_unit": "mm", "thickness": 2.5}
    assert described == expected | {"PatientID": "MRN-4711", "patient": "7", "device": "ours"}
    assert dataset.classes == ["ill", "well"] and sorted(dataset.labels) == [0] + [1] * 6
    np.testing.assert_allclose(spacing.in_unit(spacing.read(dataset), "um"), [[700, 800]] * 7, rtol=1e-6)
    assert dataset.description.groups == 2


def test_hounsfield_units_become_brightness_by_the_stated_window(tmp_path: Path) -> None:
    expected = {f"im{z}": write_ct(tmp_path / f"ct/im{z}.dcm", seed=z) for z in range(3)}
    call = [sys.executable, "-m", "data_pipeline", "pack", str(tmp_path / "ct"), str(tmp_path / "set")]
    refused = subprocess.run(call, capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "int16" in refused.stderr and "--intensity" in refused.stderr
    assert run("pack", tmp_path / "ct", tmp_path / "other", "--intensity", "window:-160,240") == 0
    found = pixels(Dataset(tmp_path / "other"))
    for key, units in expected.items():
        assert found[key].dtype == np.uint16
        np.testing.assert_array_equal(found[key], np.rint(((units + 160) / 400).clip(0, 1) * 65_535))


def test_padding_of_the_scanner_is_no_measurement(tmp_path: Path) -> None:
    stored = RANDOM.integers(100, 4000, (20, 30)).astype(np.int16)
    stored[:, :5] = -2000
    rescale = {"RescaleSlope": "0.5", "RescaleIntercept": "10", "PixelPaddingValue": -2000}
    write_dicom(tmp_path / "mr/a.dcm", stored, **rescale)
    rule = ("--intensity", "percentile:0,100", "--fill", "1")
    assert run("pack", tmp_path / "mr", tmp_path / "set", *rule) == 0
    found = pixels(Dataset(tmp_path / "set"))["a"]
    measured = stored[:, 5:].astype(float)
    low, high = measured.min(), measured.max()
    assert (found[:, :5] == 65_535).all()
    np.testing.assert_allclose(found[:, 5:], (measured - low) / (high - low) * 65_535, atol=1)


def test_dark_measurements_are_noted(tmp_path: Path, capsys) -> None:
    write_dicom(tmp_path / "mr/a.dcm", RANDOM.integers(0, 4096, (20, 30)).astype(np.uint16))
    assert run("pack", tmp_path / "mr", tmp_path / "set") == 0
    assert "(mean 3." in capsys.readouterr().out
    assert run("pack", tmp_path / "mr", tmp_path / "other", "--intensity", "percentile:1,99") == 0
    write_dicom(tmp_path / "mr/a.dcm", RANDOM.integers(0, 60_000, (20, 30)).astype(np.uint16))
    assert run("pack", tmp_path / "mr", tmp_path / "bright") == 0
    assert "of white" not in capsys.readouterr().out


def test_nothing_of_the_patient_is_in_the_shards(source: Path, tmp_path: Path) -> None:
    assert run("pack", source, tmp_path / "set") == 0
    everything = b"".join(file.read_bytes() for file in (tmp_path / "set").iterdir())
    for secret in (b"Roe", b"Jane", b"4711", b"1950", b"A-99", b"20200101", b"Dr. Who", b"1.2.826"):
        assert secret not in everything


def test_packing_again_finds_nothing_new_and_a_changed_file_is_named(
    source: Path, tmp_path: Path, capsys
) -> None:
    assert run("pack", source, tmp_path / "set") == 0
    before = (tmp_path / "set/shard-000000.tar").read_bytes()
    capsys.readouterr()
    assert run("pack", source, tmp_path / "set") == 0
    assert capsys.readouterr().out.startswith("already packed: 19 images")
    os.utime(source / "heart.dcm", ns=(10**18, 10**18))
    assert run("pack", source, tmp_path / "set", "--append") == 0
    assert capsys.readouterr().out.startswith("nothing new: 14 were there already")
    write_dicom(source / "new.dcm", FRAMES[:2], NumberOfFrames=2)
    assert run("pack", source, tmp_path / "set", "--append") == 0
    assert capsys.readouterr().out.startswith("added 2 images, 14 were there already; now 21 images")
    assert run("pack", source, tmp_path / "set", "--append") == 0
    assert capsys.readouterr().out.startswith("nothing new: 15 were there already")
    assert (tmp_path / "set/shard-000000.tar").read_bytes() == before
    assert run("verify", tmp_path / "set") == 0
    data = bytearray((source / "heart.dcm").read_bytes())
    data[-1] ^= 1
    (source / "heart.dcm").write_bytes(data)
    assert run("pack", source, tmp_path / "set", "--append") == 2
    assert "1 file changed (heart.dcm)" in capsys.readouterr().err
    assert run("pack", source, tmp_path / "set", "--append", "--every", "2") == 2
    assert "was packed with every=1, not 2" in capsys.readouterr().err


def test_damaged_files_are_left_out_whole_and_named(source: Path, tmp_path: Path, capfd) -> None:
    data = (source / "heart.dcm").read_bytes()
    (source / "cut.dcm").write_bytes(data[:-3000])
    (source / "foreign.dcm").write_bytes(b"%PDF-1.4" * 99)
    (source / "empty.dcm").touch()
    rle = write_dicom(source / "rle.dcm", FRAMES, NumberOfFrames=6)
    rle.compress(uid.RLELossless)
    rle.save_as(source / "rle.dcm")
    (source / "rle.dcm").write_bytes((source / "rle.dcm").read_bytes()[:-6000])
    assert run("pack", source, tmp_path / "set") == 0
    said = capfd.readouterr()
    assert "packed: 19 images" in said.out and said.err == ""
    skipped = dict(line.split("\t") for line in (tmp_path / "set/skipped.txt").read_text().splitlines())
    assert sorted(skipped) == ["cut.dcm", "empty.dcm", "foreign.dcm", "rle.dcm"]
    assert skipped["foreign.dcm"] == "no DICOM file"
    assert skipped["cut.dcm"].startswith("the file is damaged, or unusual (")
    assert run("verify", tmp_path / "set") == 0
    assert not any(name.startswith(("cut", "rle")) for name in members(Dataset(tmp_path / "set")))
    assert run("pack", source, tmp_path / "set", "--append") == 0
    assert "nothing new: 14 were there already" in capfd.readouterr().out


def test_the_bytes_are_the_same_with_any_workers_and_after_a_kill(source: Path, tmp_path: Path) -> None:
    save_pictures(source, ["photos/a.png", "photos/b.png"], mode="L")
    call = [sys.executable, "-m", "data_pipeline", "pack", str(source), "--shard-size", "9000"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*call, str(whole), "--workers", "2"], check=True, capture_output=True)
    process = subprocess.Popen([*call, str(killed), "--workers", "1"], start_new_session=True)
    while process.poll() is None and not list(killed.glob(".packing/shard-*.json")):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*call, str(killed), "--workers", "1"], check=True, capture_output=True)
    names = sorted(file.name for file in whole.iterdir())
    assert "files.npy" in names and len([name for name in names if name.endswith(".tar")]) > 3
    for name in names:
        if name != "modified.npy":
            ours, theirs = ((folder / name).read_bytes() for folder in (whole, killed))
            assert hashlib.sha256(ours).digest() == hashlib.sha256(theirs).digest(), name


def test_verify_misses_the_list_of_files_and_info_says_how_they_were_read(
    source: Path, tmp_path: Path, capsys
) -> None:
    assert run("pack", source, tmp_path / "set", "--every", "2", "--keep", "PatientAge") == 0
    assert run("verify", tmp_path / "set") == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "set")]) == 0
    assert "read with    --every 2 --keep PatientAge\n" in capsys.readouterr().out + "\n"
    table = np.load(tmp_path / "set/files.npy")
    np.save(tmp_path / "set/files.npy", table[:-1])
    assert run("verify", tmp_path / "set") == 1
    assert "files.npy does not fit the dataset.json" in capsys.readouterr().out
    (tmp_path / "set/files.npy").unlink()
    assert run("verify", tmp_path / "set") == 1
    assert run("pack", source, tmp_path / "set", "--append") == 2
    assert "files.npy: No such file" in capsys.readouterr().err


def test_a_picture_with_the_key_of_a_frame_is_refused(source: Path, tmp_path: Path, capsys) -> None:
    save_pictures(source, ["heart/f001.png"])
    assert run("pack", source, tmp_path / "set") == 2
    assert (
        "heart/f001.png would have a key like those of the pictures in heart.dcm" in capsys.readouterr().err
    )


@pytest.mark.parametrize("option", ["--keep", "--group-field"])
def test_a_field_that_dicom_does_not_have_is_refused(
    source: Path, tmp_path: Path, capsys, option: str
) -> None:
    assert run("pack", source, tmp_path / "set", option, "PatientAgee") == 2
    assert "PatientAgee is no keyword of DICOM; do you mean PatientAge?" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_dividing_slices_file_by_file_is_noted(source: Path, tmp_path: Path, capsys) -> None:
    assert run("pack", source, tmp_path / "set", "--val-fraction", "0.3", "--allow-duplicates") == 0
    assert "slices of one patient can be on both sides" in capsys.readouterr().err
    by_group = ("--val-fraction", "0.3", "--group-pattern", "(.+)[/.]", "--allow-duplicates")
    assert run("pack", source, tmp_path / "by", *by_group) == 0
    assert capsys.readouterr().err == ""


def test_the_patient_in_the_header_is_the_group(tmp_path: Path, capsys) -> None:
    source, dest = tmp_path / "scans", tmp_path / "set"
    for number in range(24):
        write_dicom(source / f"IM{number:03d}", FRAMES[0], PatientID=f"MRN-{number % 6}")
    save_pictures(source, ["photo.png"], mode="L")
    options = ("--group-field", "PatientID", "--val-fraction", "0.4")
    assert run("pack", source, dest, *options, "--allow-duplicates") == 0
    said = capsys.readouterr()
    assert said.err == "" and "groups" in said.out
    patients = []
    for name in ("train", "val"):
        dataset = Dataset(dest / name)
        numbers = [int(dataset.key(i)[2:]) for i in range(len(dataset)) if dataset.groups[i]]
        patients.append({number % 6 for number in numbers})
        assert len(numbers) == 4 * len(patients[-1])
    assert patients[0] and patients[1] and not patients[0] & patients[1]
    write_dicom(source / "later", FRAMES[0], PatientID=f"MRN-{min(patients[1])}")
    assert run("pack", source, dest, *options[:2], "--append") == 0
    val = Dataset(dest / "val")
    assert "later" in {val.key(i) for i in range(len(val))}
    assert b"MRN" not in b"".join(file.read_bytes() for file in dest.rglob("*.*"))
    assert run("pack", source, tmp_path / "other", "--group-field", "PatientAge") == 2
    assert "none of the 25 files" in capsys.readouterr().err
    save_pictures(tmp_path / "photos", ["photo.png"])
    assert run("pack", tmp_path / "photos", tmp_path / "other", "--group-field", "PatientID") == 2
    assert "photos holds no files of a field" in capsys.readouterr().err


@pytest.mark.parametrize(("absent", "code"), [("pydicom", 2), ("imagecodecs", 0)])
def test_without_a_library_one_line_names_the_extra(
    source: Path, tmp_path: Path, absent: str, code: int
) -> None:
    write_dicom(source / "small.dcm", FRAMES[0], frames=[b"\0" * 10], syntax=uid.JPEGLosslessSV1)
    script = f"""import sys
sys.modules[{absent!r}] = None
from data_pipeline.__main__ import main
from isotorus.errors import exit_code
sys.exit(exit_code(lambda: main({["pack", str(source), str(tmp_path / "set"), "--workers", "1"]!r})))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == code
    if absent == "pydicom":
        assert done.stderr.count("\n") == 1 and 'pip install "isotorus[medical]"' in done.stderr
    else:
        reason = (tmp_path / "set/skipped.txt").read_text()
        assert reason.startswith("small.dcm\ta DICOM file compressed as JPEG Lossless")
        assert 'pip install "isotorus[medical]"' in reason and reason.count("\n") == 1


def test_equal_values_give_equal_tiffs_that_other_programs_read(source: Path, tmp_path: Path) -> None:
    from PIL import Image

    assert run("pack", source, tmp_path / "set") == 0
    data = members(Dataset(tmp_path / "set"))["heart/f000.tif"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), FRAMES[0])
    assert b"tifffile" not in data


def test_a_shard_that_is_written_again_forgets_the_files_of_its_first_writing(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    file, command = tmp_path / "cells/a.tif", ("pack", tmp_path / "cells", tmp_path / "set")
    tifffile.imwrite(file, FRAMES, imagej=True, metadata={"axes": "ZYX"})
    size = file.stat().st_size
    assert run(*command, "--part", "0/1") == 0
    assert list((tmp_path / "set").rglob("*.files.npy"))
    tifffile.imwrite(file, FRAMES[0])
    os.truncate(file, size)  # another size would be another plan
    assert run(*command) == 0
    assert len(Dataset(tmp_path / "set")) == 1 and not (tmp_path / "set/files.npy").exists()
