import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_pipeline.__main__ import main
from data_pipeline.dataset.description import Split
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.modified import MODIFIED
from data_pipeline.decoders.decode import decode
from data_pipeline.packing.assignment import assign
from data_pipeline.packing.listing import Item
from data_pipeline.packing.pack import Options, pack
from data_pipeline.storage.disk_list import DiskList
from data_pipeline.verifying.verify import verify
from isotorus.errors import UserError
from tests.data_pipeline.pictures import picture, png, save_pictures


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def write_csv(file: Path, rows: list[dict[str, str]]) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def keys(dataset: Dataset) -> set[str]:
    return {dataset.key(i) for i in range(len(dataset))}


def test_same_images_same_bytes_whatever_the_workers_place_and_dates(
    labelled_folder: Path, packed: Dataset, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "images"
    for file in sorted(labelled_folder.rglob("*.*"), reverse=True):
        (elsewhere / file.relative_to(labelled_folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, elsewhere / file.relative_to(labelled_folder))
    pack(elsewhere, tmp_path / "two", Options(labels="folder", shard_size=20_000, workers=2))
    assert packed.description.shards > 2
    one, two = contents(Path(packed.path)), contents(tmp_path / "two")
    assert one.pop(MODIFIED) != two.pop(MODIFIED)  # the dates themselves
    assert one == two


def test_every_image_is_there_with_its_class(labelled_folder: Path, packed: Dataset) -> None:
    files = {
        str(f.relative_to(labelled_folder).with_suffix("")): f
        for f in labelled_folder.rglob("*.*")
        if f.is_file()
    }
    assert len(packed) == len(files) and keys(packed) == set(files)
    assert packed.classes == ["cat", "dog"] and packed.description.class_counts == [15, 8]
    for i in range(len(packed)):
        assert packed.read(i) == files[packed.key(i)].read_bytes()
        assert packed.classes[packed.labels[i]] == packed.key(i).split("/")[0]
        height, width = decode(packed.read(i), 3).shape[:2]
        assert (packed.rows["height"][i], packed.rows["width"][i]) == (height, width)


def test_tar_and_webdataset_read_the_shards(packed: Dataset) -> None:
    shards = [Path(packed.path, packed.shard_name(i)) for i in range(len(packed.shards))]
    listed = [subprocess.check_output(["tar", "tf", shard], text=True).split() for shard in shards]
    names = [name for shard in listed for name in shard]
    assert sum(name.endswith(".cls") for name in names) == len(packed)
    assert any(len({name.split("/")[0] for name in shard}) == 2 for shard in listed)  # classes mix
    samples = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [packed.key(i) for i in range(len(packed))]
    for i, sample in enumerate(samples):
        assert int(sample["cls"]) == packed.labels[i]
        assert sample.get("png", sample.get("jpg")) == packed.read(i)


def test_mean_and_std_are_those_of_all_pixels(packed: Dataset) -> None:
    pixels = np.concatenate([decode(packed.read(i), 3).reshape(-1, 3) for i in range(len(packed))]) / 255
    np.testing.assert_allclose(packed.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(packed.std, pixels.std(0), rtol=1e-9)
    grey_mean, grey_std = packed.statistics(1)
    luma = pixels @ [0.299, 0.587, 0.114]
    assert abs(grey_mean[0] - luma.mean()) < 1e-9 and grey_std[0] >= luma.std()


def test_grey_images_are_recorded_as_grey(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", [f"{i}.png" for i in range(5)], mode="L")
    pack(tmp_path / "images", tmp_path / "set", Options())
    dataset = Dataset(tmp_path / "set")
    pixels = np.concatenate([decode(dataset.read(i), 1).ravel() for i in range(5)]) / 255
    assert dataset.description.channels == 1 and (dataset.labels == -1).all() and dataset.classes == []
    np.testing.assert_allclose([*dataset.mean, *dataset.std], [pixels.mean(), pixels.std()], rtol=1e-9)
    assert dataset.statistics(3) == (dataset.mean * 3, dataset.std * 3)


def test_names_that_tar_and_webdataset_find_hard(tmp_path: Path) -> None:
    names = ["a.b/c.d.jpg", "ünï/çödé 图.png", "x" * 200 + "/" + "y" * 180 + ".png", "CAPS.PNG"]
    save_pictures(tmp_path / "images", names)
    pack(tmp_path / "images", tmp_path / "set", Options())
    dataset = Dataset(tmp_path / "set")
    expected = {"a_b/c_d", "ünï/çödé 图", "x" * 200 + "/" + "y" * 180, "CAPS"}
    assert keys(dataset) == expected
    read = webdataset.WebDataset([f"{dataset.path}/shard-000000.tar"], shardshuffle=False)
    assert {sample["__key__"] for sample in read} == expected
    assert verify(dataset.path, workers=1) == []


def test_names_that_look_alike_and_names_that_are_no_text(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    composed, decomposed = (unicodedata.normalize(form, "Zürich") for form in ("NFC", "NFD"))
    names = [composed, decomposed, os.fsdecode(b"caf\xe9"), "two\nlines", "-dash", "back\\slash", "%s", "*"]
    for seed, name in enumerate(names):
        (images / f"{name}.png").write_bytes(png(seed))
    (images / os.fsdecode(b"not\xffread\tat all.png")).write_text("not found")
    pack(images, tmp_path / "set", Options())
    dataset = Dataset(tmp_path / "set")
    assert {dataset.key(i): dataset.read(i) for i in range(len(dataset))} == {
        name: (images / f"{name}.png").read_bytes() for name in names
    }
    assert verify(dataset.path, workers=1) == []
    assert (tmp_path / "set/skipped.txt").read_text().startswith(r"not\udcffread\tat all.png")
    (tmp_path / "extracted").mkdir()
    tar = ["tar", "-xf", str(tmp_path / "set/shard-000000.tar"), "-C", str(tmp_path / "extracted")]
    assert subprocess.run(tar, env={"LC_ALL": "C.UTF-8"}, stderr=subprocess.DEVNULL).returncode == 0
    assert {file.name for file in (tmp_path / "extracted").iterdir()} == {f"{name}.png" for name in names}


def test_labels_and_other_columns_from_a_csv(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", ["a.png", "b.png", "c.png", "unlisted.png"])
    rows = [
        {"file": "a.png", "state": "good", "cell": "mono"},
        {"file": "b.png", "state": "", "cell": "poly"},
        {"file": "./c.png", "state": "bad", "cell": "mönö"},
    ]
    labels = write_csv(tmp_path / "labels.csv", rows)
    options = f"--labels {labels} --image-column file --label-column state"
    assert main(["pack", str(tmp_path / "images"), str(tmp_path / "set"), *options.split()]) == 0
    dataset = Dataset(tmp_path / "set")
    assert dataset.classes == ["bad", "good"]
    found = {dataset.key(i): int(dataset.labels[i]) for i in range(len(dataset))}
    assert found == {"a": 1, "b": -1, "c": 0}
    samples = webdataset.WebDataset([str(tmp_path / "set/shard-000000.tar")], shardshuffle=False)
    extra = {sample["__key__"]: (json.loads(sample["json"]), "cls" in sample) for sample in samples}
    assert extra == {
        "a": ({"cell": "mono"}, True),
        "b": ({"cell": "poly"}, False),
        "c": ({"cell": "mönö"}, True),
    }


def test_a_split_keeps_groups_together_and_the_class_list(tmp_path: Path) -> None:
    names = [f"{i:03d}.png" for i in range(120)]
    save_pictures(tmp_path / "images", names)
    # Class z is so rare that some set lacks it.
    rows = [
        {"image": name, "label": "z" if i < 3 else "ab"[i % 2], "patient": str(i // 3)}
        for i, name in enumerate(names)
    ]
    labels = write_csv(tmp_path / "labels.csv", rows)
    options = f"--labels {labels} --group-column patient --val-fraction .2 --test-fraction .3"
    assert main(["pack", str(tmp_path / "images"), str(tmp_path / "sets"), *options.split()]) == 0
    sets = {name: Dataset(tmp_path / "sets" / name) for name in ("train", "val", "test")}
    parts = {name: keys(dataset) for name, dataset in sets.items()}
    assert sum(map(len, parts.values())) == 120 and set.union(*parts.values()) == {n[:-4] for n in names}
    groups = [{int(key) // 3 for key in part} for part in parts.values()]
    assert sum(map(len, groups)) == 40  # no group is on two sides
    assert all(dataset.classes == ["a", "b", "z"] for dataset in sets.values())
    assert len({dataset.fingerprint for dataset in sets.values()}) == 3


def test_a_split_has_the_asked_shares() -> None:
    items = DiskList(Item(f"{i}.png", size=1) for i in range(10_000))
    split = Split(val_fraction=0.2, test_fraction=0.3, grouped=False)
    sets = assign(items, [], split, shard_size=10**6).sets
    shares = {name: sum(map(len, shards)) / 10_000 for name, shards in sets.items()}
    assert shares == pytest.approx({"train": 0.5, "val": 0.2, "test": 0.3}, abs=0.015)


def test_more_images_do_not_move_the_others_between_the_sets(tmp_path: Path) -> None:
    before_after = []
    for count in (60, 80):
        save_pictures(tmp_path / str(count), [f"{i}.png" for i in range(count)])
        pack(tmp_path / str(count), tmp_path / f"sets{count}", Options(val_fraction=0.3))
        before_after.append(keys(Dataset(tmp_path / f"sets{count}/val")))
    before, after = before_after
    assert before == {key for key in after if int(key) < 60}


def test_files_that_are_no_images_are_left_out_and_listed(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", [f"{i}.png" for i in range(6)])
    whole = (tmp_path / "images/0.png").read_bytes()
    (tmp_path / "images/cut.png").write_bytes(whole[:-300])
    (tmp_path / "images/text.jpg").write_text("not found")
    (tmp_path / "images/empty.tif").touch()
    (tmp_path / "images/notes.txt").write_text("of no concern")
    assert "3 files skipped" in pack(tmp_path / "images", tmp_path / "set", Options(shard_size=1))
    assert len(Dataset(tmp_path / "set")) == 6 and Dataset(tmp_path / "set").description.skipped == 3
    listed = [line.split("\t") for line in (tmp_path / "set/skipped.txt").read_text().splitlines()]
    assert [name for name, _ in listed] == ["cut.png", "empty.tif", "text.jpg"]
    assert all(reason for _, reason in listed)
    shards = sorted(file.name for file in (tmp_path / "set").glob("*.tar"))
    assert shards == [f"shard-{i:06d}.tar" for i in range(6)]  # without gaps where nothing was usable


def alive(group: int) -> bool:
    """Return whether a process of this group still runs."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has just ended
        if int(its_group) == group and state != "Z":
            return True
    return False


MANY = 1000
"""Images whose packing takes long enough to be interrupted."""


@pytest.mark.parametrize("sent, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_killed_packing_continues_and_ends_in_the_same_bytes(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    images, dest = tmp_path / "images", tmp_path / "set"
    save_pictures(images, [f"{i:04d}.png" for i in range(MANY)])
    arguments = ["pack", str(images), str(dest), "--shard-size", "30KB", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "data_pipeline", *arguments],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(list(dest.glob(".packing/shard-*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    if sent == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, sent)  # a terminal's Ctrl-C reaches the workers too
    assert process.communicate()[1] == "" and process.returncode == code
    while alive(process.pid):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    assert not (dest / "dataset.json").exists()
    shards = (dest / ".packing").glob("*.tar")
    finished = {file.stat().st_ino for file in shards if file.with_suffix(".json").exists()}

    assert main(arguments) == 0
    assert len(finished) >= 3
    assert finished <= {file.stat().st_ino for file in dest.glob("*.tar")}  # moved, not made again
    pack(images, tmp_path / "reference", Options(shard_size=30_000))
    assert contents(dest) == contents(tmp_path / "reference")


def test_a_file_replaced_by_one_of_equal_size_is_packed_again(tmp_path: Path) -> None:
    images, dest = tmp_path / "images", tmp_path / "set"
    images.mkdir()
    for i in range(6):
        picture(i).save(images / f"{i}.bmp")
    (images / "text.png").write_text("not found")
    with pytest.raises(UserError, match="cannot be packed"):
        pack(images, dest, Options(shard_size=1, strict=True))
    staged = {file.stat().st_ino for file in dest.glob(".packing/*.tar")}
    picture(99).save(images / "3.bmp")
    pack(images, dest, Options(shard_size=1))
    pack(images, tmp_path / "reference", Options(shard_size=1))
    assert contents(dest) == contents(tmp_path / "reference")
    assert len(staged & {file.stat().st_ino for file in dest.glob("*.tar")}) == 5


def test_a_second_packing_into_the_same_folder_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    images, dest = tmp_path / "images", tmp_path / "set"
    save_pictures(images, [f"{i:04d}.png" for i in range(MANY)])
    arguments = ["pack", str(images), str(dest), "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "data_pipeline", *arguments], start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list(dest.glob(".packing/.shard-*")):  # a shard is being written
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGSTOP)
        for further in ([], ["--shard-size", "1"]):
            with pytest.raises(UserError, match="another process is packing"):
                main([*arguments, *further])
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    while alive(process.pid):
        time.sleep(0.05)
    assert main(arguments) == 0 and len(Dataset(dest)) == MANY


def test_packing_again_says_so_and_changes_nothing(labelled_folder: Path, packed: Dataset) -> None:
    before = {file: file.stat().st_mtime_ns for file in Path(packed.path).iterdir()}
    line = pack(labelled_folder, Path(packed.path), Options(labels="folder", shard_size=20_000, workers=2))
    assert line.startswith("already packed: 23 images")
    assert {file: file.stat().st_mtime_ns for file in Path(packed.path).iterdir()} == before
