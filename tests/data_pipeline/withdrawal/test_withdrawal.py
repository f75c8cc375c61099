"""`remove` and `compact`: what is left is what packing the remaining images gives, and nothing else."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_pipeline.__main__ import main
from data_pipeline.dataset import withdrawn
from data_pipeline.dataset.description import describe
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset_writer import staging
from data_pipeline.packing.pack import Options, pack
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.verifying.verify import verify
from data_pipeline.withdrawal.choose import read_keys
from data_pipeline.withdrawal.compact import compact
from isotorus.errors import UserError
from tests.data_pipeline.pictures import save_pictures

NAMES = [f"{'cat' if i % 3 else 'dog'}/p{i // 4}/{i:02d}.png" for i in range(24)]
OPTIONS = Options(labels="folder", group_pattern="(p[0-9]+)", shard_size=20_000)
WITHDRAWN = ("p2", "p5")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    save_pictures(folder, NAMES)
    for name in NAMES[8:10]:  # of p2: the only ones with 16 bits a channel
        deep = np.random.default_rng(0).integers(0, 2**16, (30, 20), np.uint16)
        Image.fromarray(deep).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def rest(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder without the images of two groups and without one image of another."""
    folder = tmp_path_factory.mktemp("rest") / "photos"
    shutil.copytree(photos, folder)
    for name in WITHDRAWN:
        for found in folder.glob(f"*/{name}"):
            shutil.rmtree(found)
    (folder / NAMES[0]).unlink()
    return folder


@pytest.fixture
def dest(photos: Path, tmp_path: Path) -> Path:
    pack(photos, tmp_path / "set", OPTIONS)
    return tmp_path / "set"


def remove(dest: Path, *arguments: str) -> None:
    assert main(["remove", str(dest), "--workers", "1", *arguments]) == 0


def withdraw(dest: Path) -> None:
    keys = dest.parent / "keys.txt"
    keys.write_text(f"{NAMES[0]}\n")
    remove(dest, "--keys", str(keys), *(f"--group={name}" for name in WITHDRAWN))


def samples(dataset: Dataset) -> dict[str, tuple[bytes, str, int, bytes]]:
    """Return bytes, class, group and pixels of every image by its key."""
    groups = np.zeros(len(dataset)) if dataset.groups is None else dataset.groups
    return {
        dataset.key(i): (
            dataset.read(i),
            dataset.classes[dataset.labels[i]],
            int(groups[i]),
            dataset.pixels(i, 3, 8).tobytes(),
        )
        for i in range(len(dataset))
    }


def facts(dataset: Dataset) -> dict[str, object]:
    left_out = {"plan", "removed", "tables", "shards", "bytes", "fingerprint"}
    return dataset.description.model_dump(exclude=left_out)


def test_what_is_left_is_what_packing_the_rest_gives(dest: Path, rest: Path, tmp_path: Path):
    before = samples(Dataset(dest))
    withdraw(dest)
    removed, older = Dataset(dest), Dataset(dest, generation=1)
    pack(rest, tmp_path / "fresh", OPTIONS)
    fresh = Dataset(tmp_path / "fresh")
    assert samples(removed) == samples(fresh) and facts(removed) == facts(fresh) and removed.depth == 8
    assert samples(older) == before and verify(str(dest), 1) == []

    assert main(["compact", str(dest), "--workers", "1"]) == 0
    compacted = Dataset(dest)
    assert samples(compacted) == samples(fresh) and facts(compacted) == facts(fresh)
    assert [compacted.key(i) for i in range(len(compacted))] == [fresh.key(i) for i in range(len(fresh))]
    assert verify(str(dest), 1) == [] and len(compacted.generations) == 1
    held = b"".join(path.read_bytes() for path in dest.iterdir())
    for key, (data, *_) in before.items():
        assert (data in held) == (key.encode() in held) == (key in samples(fresh)), key
    assert {path.name for path in dest.glob("*.npy")} == {
        *("index.npy", "shards.npy", "groups.npy", "modified.npy", "withdrawn.npy")
    }


def test_a_single_shard_is_the_one_that_packing_the_rest_writes(photos: Path, rest: Path, tmp_path: Path):
    options = Options(labels="folder", group_pattern="(p[0-9]+)")
    pack(photos, tmp_path / "set", options)
    withdraw(tmp_path / "set")
    compact(tmp_path / "set", 1)
    pack(rest, tmp_path / "fresh", options)
    compacted, fresh = Dataset(tmp_path / "set"), Dataset(tmp_path / "fresh")
    assert compacted.fingerprint == fresh.fingerprint
    for one, other in (("shard-000000.1.tar", "shard-000000.tar"), ("index.npy", "index.npy")):
        assert (tmp_path / "set" / one).read_bytes() == (tmp_path / "fresh" / other).read_bytes()


def test_images_that_were_removed_stay_out_and_new_ones_come_in(
    dest: Path, photos: Path, capsys: pytest.CaptureFixture[str]
):
    withdraw(dest)
    compact(dest, 1)
    grown = shutil.copytree(photos, dest.parent / "grown")
    shutil.copy(grown / NAMES[1], grown / "cat/p2/new.png")
    shutil.copy(grown / NAMES[1], grown / "cat/p3/new.png")
    said = pack(grown, dest, Options(labels="folder", group_pattern="(p[0-9]+)", append=True))
    assert "added 1 images" in said and "10 images were removed from this data set" in said
    assert len(Dataset(dest)) == 16 and verify(str(dest), 1) == []
    remove(dest, "--group=p3")
    assert len(Dataset(dest)) == 11 and verify(str(dest), 1) == []
    compact(dest, 1)
    assert len(Dataset(dest)) == 11 and verify(str(dest), 1) == []
    remove(dest, "--group=p3")
    assert "1 of them were removed before; 11 images are left" in capsys.readouterr().out


def test_the_key_of_a_file_means_all_its_pictures(tmp_path: Path):
    save_pictures(tmp_path / "photos", ["a.png", "b.png"])
    for name in ("left", "right"):
        pages = np.random.default_rng(0).integers(0, 256, (3, 20, 24), np.uint8)
        tifffile.imwrite(tmp_path / f"photos/{name}.tif", pages, imagej=True, metadata={"axes": "ZYX"})
    pack(tmp_path / "photos", tmp_path / "set", Options())
    (tmp_path / "keys.txt").write_text("left.tif\na\n")
    remove(tmp_path / "set", "--keys", str(tmp_path / "keys.txt"))
    for _ in range(2):
        left = Dataset(tmp_path / "set")
        folders = [left.key(i).partition("/")[0] for i in range(len(left))]
        assert sorted(folders) == ["b", "right", "right", "right"] and verify(left.path, 1) == []
        assert "2 images were removed" in pack(tmp_path / "photos", tmp_path / "set", Options(append=True))
        compact(tmp_path / "set", 1)


@pytest.mark.parametrize(
    "points", [(2, 8, 13), pytest.param(range(1, 60), marks=pytest.mark.nightly)], ids=["some", "all"]
)
def test_a_set_is_whole_after_a_kill_at_any_point(dest: Path, points: Sequence[int]):
    withdraw(dest)
    expected = samples(Dataset(dest))
    whole = shutil.copytree(dest, dest.parent / "whole")
    compact(whole, 1)
    content = {path.name: path.read_bytes() for path in whole.iterdir()}
    for after in points:
        killed = shutil.copytree(dest, dest.parent / f"killed{after}")
        ended = _killed_after(after, lambda folder=killed: compact(folder, 1))
        assert samples(Dataset(killed)) == expected
        if after % 4 == 0:
            assert verify(str(killed), 1) == []
        compact(killed, 1)
        assert {path.name: path.read_bytes() for path in killed.iterdir()} == content
        if ended:
            break
    assert ended == (len(points) > 3) and after < 59


def test_a_removal_that_was_killed_is_forgotten(dest: Path, photos: Path):
    (dest.parent / "keys.txt").write_text(f"\ufeff{NAMES[0]}\n")
    whole = Dataset(dest)
    before = [whole.key(i) for i in range(len(whole))]
    arguments = ["remove", str(dest), f"--keys={dest.parent / 'keys.txt'}", "--group=p3", "--workers=1"]
    assert not _killed_after(4, lambda: main(arguments))
    assert len(Dataset(dest)) == 24 and len(withdrawn.read(dest))
    assert "were removed" not in pack(photos, dest, replace(OPTIONS, append=True))
    remove(dest, "--group=p5")
    compact(dest, 1)
    left = Dataset(dest)
    (former, _) = describe(str(dest), CacheConfig()).former
    held = withdrawn.left_of(withdrawn.of(left), former.fingerprint, former.count)
    with pytest.raises(UserError, match=r"has no generation 2 \(isotorus compact has dropped older ones\)"):
        Dataset(dest, generation=2)
    assert [before[i] for i in held] == [left.key(i) for i in range(len(left))] and len(left) == 20


def _killed_after(changes: int, work: Callable[[], object]) -> bool:
    """Call `work` in a process that is killed before its change number `changes` of a name in a folder;
    return whether it ended before that.
    """
    process = os.fork()
    if not process:
        left = changes

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in ("os.rename", "os.remove"):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        sys.addaudithook(count)
        try:
            work()
        except UserError:  # a worker was killed
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --keys FILE or --group GROUP"),
        (["--group", "p0", "--group", "p77", "--group", "p78"], "2 of 3 names are in no set of"),
        ([f"--group=p{i}" for i in range(6)], "these are all 24 images"),
        (["--keys", "absent.txt"], "there is no file absent.txt"),
        (["--keys", os.devnull], "no regular file"),
    ],
)
def test_a_refusal_changes_nothing(dest: Path, arguments: list[str], message: str):
    content = {path.name: path.read_bytes() for path in dest.iterdir()}
    with pytest.raises(UserError, match=message):
        main(["remove", str(dest), *arguments])
    assert {path.name: path.read_bytes() for path in dest.iterdir()} == content


def test_an_unfinished_packing_and_tars_of_others_are_refused(dest: Path, tmp_path: Path):
    with pytest.raises(UserError, match="nothing was removed"):
        main(["compact", str(dest)])
    assert main(["index", str(dest), str(tmp_path / "indexed"), "--workers", "1"]) == 0
    (tmp_path / "keys.txt").write_text("dog/p0/00\n")
    remove(tmp_path / "indexed", "--keys", str(tmp_path / "keys.txt"))
    indexed = Dataset(tmp_path / "indexed")
    assert len(indexed) == 23 and verify(indexed.path, 1) == []
    with pytest.raises(UserError, match="isotorus pack did not write"):
        main(["compact", str(tmp_path / "indexed")])
    first = Dataset(tmp_path / "indexed").rows["shard"] == 0
    (tmp_path / "keys.txt").write_text("\n".join(indexed.key(int(i)) for i in np.flatnonzero(first)))
    remove(tmp_path / "indexed", "--keys", str(tmp_path / "keys.txt"))
    with pytest.raises(UserError, match="images that were removed"):
        main(["index", str(dest), str(tmp_path / "indexed"), "--append", "--workers", "1"])
    (dest / staging.STAGING).mkdir()
    state = staging.State(plan="p", bases={}, channels=None)
    staging.write(dest / staging.STAGING, state)
    with pytest.raises(UserError, match="unfinished packing"):
        remove(dest, "--group=p0")
    with pytest.raises(UserError, match="no folder on a disk"):
        main(["remove", "s3://bucket/set", "--group=p0"])


def test_a_set_of_a_split_is_not_changed_while_all_sets_are(photos: Path, tmp_path: Path):
    pack(photos, tmp_path / "sets", replace(OPTIONS, val_fraction=0.3))
    group = Dataset(tmp_path / "sets/train").key(0).split("/")[1]
    with staging.hold(tmp_path / "sets") as folder:
        staging.write(folder, staging.State(plan="p", bases={}, channels=None))
    with pytest.raises(UserError, match="unfinished packing"):
        remove(tmp_path / "sets/train", f"--group={group}")
    shutil.rmtree(folder)
    remove(tmp_path / "sets/train", f"--group={group}")
    assert {path.name for path in (tmp_path / "sets").iterdir()} == {"train", "val"}


def test_lists_of_keys_as_editors_write_them(tmp_path: Path):
    file = tmp_path / "keys.txt"
    names = [f"scans of March/{i:06d}" for i in range(800_000)]  # more than 16 MB
    file.write_text("\r\n".join(names), encoding="utf-8-sig", newline="")
    assert read_keys(file) == names
    file.write_text("cat/p0/01\n", encoding="utf-16")
    with pytest.raises(UserError, match="no text in UTF-8"):
        read_keys(file)


def test_a_packing_does_not_undo_what_was_done_to_a_set_since(photos: Path, tmp_path: Path):
    pack(photos, tmp_path / "sets", replace(OPTIONS, val_fraction=0.3))
    bases = {name: staging.Base(generation=1, next_shard=9) for name in ("train", "val")}
    group = Dataset(tmp_path / "sets/train").key(0).split("/")[1]
    remove(tmp_path / "sets/train", f"--group={group}")
    with staging.hold(tmp_path / "sets") as folder:
        staging.write(folder, staging.State(plan="p", bases=bases, channels=None))
    with pytest.raises(UserError, match="was changed since the packing in"):
        pack(photos, tmp_path / "sets", replace(OPTIONS, append=True))
