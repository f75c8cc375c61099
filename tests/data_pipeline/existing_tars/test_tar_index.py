"""Tars that others made, indexed where they are."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.decode import decode
from data_pipeline.packing.pack import Options, pack
from data_pipeline.verifying.verify import verify
from isotorus.errors import UserError
from tests.data_pipeline.pictures import picture, png
from tests.data_pipeline.tar_index import Run, labels, write
from tests.data_pipeline.tar_makers import LONG_NAMES, MAKERS, parse


@pytest.mark.parametrize("maker", MAKERS)
def test_every_image_of_every_dialect_comes_back(maker: str, tmp_path: Path, done: Run) -> None:
    names = ["a", "deep/b", "ünï çödé/图"] + ["n" * 90 + "/" + "m" * 160] * (maker in LONG_NAMES)
    images = {f"{name}.png": png(seed) for seed, name in enumerate(names)}
    files: dict[str, bytes] = images | {f"{name}.cls": b"%d" % i for i, name in enumerate(names)}
    MAKERS[maker](tmp_path / "x.tar", files)
    done(tmp_path / "x.tar", tmp_path / "set")
    dataset = Dataset(tmp_path / "set")
    assert {f"{dataset.key(i)}.png": dataset.read(i) for i in range(len(dataset))} == images
    assert labels(dataset) == {name: str(i) for i, name in enumerate(names)}
    raw = (tmp_path / "x.tar").read_bytes()
    for i, (_, offset, size) in enumerate(dataset.ranges(np.arange(len(dataset)))):
        assert parse(raw)[f"{dataset.key(i)}.png"] == (offset, raw[offset : offset + size])


def test_what_pack_makes_is_read_by_others_and_indexed_to_the_same(
    labelled_folder: Path, tmp_path: Path, done: Run
) -> None:
    pack(labelled_folder, tmp_path / "packed", Options(labels="folder", shard_size=20_000))
    packed = Dataset(tmp_path / "packed")
    shards = [tmp_path / "packed" / packed.shard_name(i) for i in range(len(packed.shards))]
    images = {packed.key(i): packed.read(i) for i in range(len(packed))}

    samples = webdataset.WebDataset(list(map(str, shards)), shardshuffle=False)
    assert {s["__key__"]: s.get("png", s.get("jpg")) for s in samples} == images
    parsed = {name: content for shard in shards for name, (_, content) in parse(shard.read_bytes()).items()}
    assert {name[:-4]: data for name, data in parsed.items() if not name.endswith(".cls")} == images
    for shard in shards:
        assert "verified" not in subprocess.check_output(["tar", "-tvf", shard], text=True)
        subprocess.run(["tar", "-xf", shard, "--one-top-level=out"], cwd=tmp_path, check=True)
    assert {
        str(f.relative_to(tmp_path / "out")): f.read_bytes() for f in tmp_path.glob("out/**/*.*")
    } == parsed

    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    done(*shards, tmp_path / "indexed", "--classes", tmp_path / "classes.txt")
    indexed = Dataset(tmp_path / "indexed")
    assert indexed.fingerprint == packed.fingerprint
    assert (indexed.rows == packed.rows).all() and indexed.classes == packed.classes
    assert (indexed.mean, indexed.std) == (packed.mean, packed.std)


def test_names_are_relative_below_the_destination_only(tmp_path: Path, done: Run) -> None:
    write(tmp_path / "in/b.tar", {"b.png": png(1)})
    write(tmp_path / "in/deep/a.tar", {"a.png": png(2)})
    write(tmp_path / "in/.hidden/c.tar", {"c.png": png(3)})
    assert "2 images in 2 tars" in done(tmp_path / "in", tmp_path / "in")
    assert "2 images in 2 tars" in done(tmp_path / "in", tmp_path / "elsewhere")
    there = [Dataset(tmp_path / name) for name in ("in", "elsewhere")]
    assert [there[0].shard_name(i) for i in range(2)] == ["b.tar", "deep/a.tar"]
    assert [there[1].shard_name(i) for i in range(2)] == [
        str(tmp_path / f"in/{n}") for n in ("b.tar", "deep/a.tar")
    ]
    shutil.move(tmp_path / "in", tmp_path / "moved")
    moved = Dataset(tmp_path / "moved")
    assert [moved.read(i) for i in range(2)] == [png(1), png(2)]
    assert len({d.fingerprint for d in (*there, moved)}) == 1


def test_a_key_as_long_as_tar_allows(tmp_path: Path, done: Run) -> None:
    name = "n" * 500_000
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as out:
        info = tarfile.TarInfo(f"{name}.png")
        info.size = len(png(0))
        out.addfile(info, io.BytesIO(png(0)))
    done(tmp_path / "x.tar", tmp_path / "set")
    assert Dataset(tmp_path / "set").key(0) == name


def test_the_workers_do_not_change_the_index(tmp_path: Path, done: Run) -> None:
    for i in range(5):
        write(
            tmp_path / f"in/{i}.tar",
            {f"{i}/{k}.png": png(10 * i + k) for k in range(3)} | {f"{i}/0.cls": "x"},
        )
    done(tmp_path / "in", tmp_path / "one")
    assert main(["index", str(tmp_path / "in"), str(tmp_path / "three"), "--workers", "3"]) == 0
    for name in ("index.npy", "shards.npy", "dataset.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_statistics_are_those_of_the_pixels(tmp_path: Path, done: Run) -> None:
    write(tmp_path / "x.tar", {"a.png": png(1), "b.png": png(2, "L"), "c.jpg": png(3)})
    done(tmp_path / "x.tar", tmp_path / "set")
    dataset = Dataset(tmp_path / "set")
    pixels = np.concatenate([decode(dataset.read(i), 3).reshape(-1, 3) for i in range(3)]) / 255
    np.testing.assert_allclose([dataset.mean, dataset.std], [pixels.mean(0), pixels.std(0)], rtol=1e-9)
    assert {dataset.key(i): dataset.extension(i) for i in range(3)} == {"a": "png", "b": "png", "c": "jpg"}
    assert set(zip(dataset.rows["width"].tolist(), dataset.rows["height"].tolist(), strict=True)) == {
        (48, 40)
    }


@pytest.mark.parametrize(
    "names", ["slice_0.5mm_{}.png", "v1.2/scan.{}0.png", "{}/0.0.png", "0.{}.jpg", "a.b/x.{}y.tif"]
)
def test_dots_in_names_are_named_and_no_advice_loses_images(
    names: str, tmp_path: Path, done: Run, refused: Run
) -> None:
    """What the refusal advises either keeps all images, or the set is made without one."""
    files = {names.format(i): png(i) for i in range(3)}
    if len({name.rpartition("/")[2].partition(".")[0] + name.rpartition("/")[0] for name in files}) == 3:
        return done(write(tmp_path / "x.tar", files), tmp_path / "set") and None
    line = refused(write(tmp_path / "x.tar", files), tmp_path / "set")
    assert "dots within these names are the cause" in line and "--image-extension" not in line
    with tarfile.open(tmp_path / "x.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert main(["pack", str(tmp_path / "unpacked"), str(tmp_path / "set"), "--workers", "1"]) == 0
    assert len(Dataset(tmp_path / "set")) == 3
    return None


def test_images_that_an_ending_leaves_out_are_counted(tmp_path: Path, done: Run) -> None:
    files = {f"{i}.{side}.png": png(i) for i in range(3) for side in ("left", "right")}
    line = done(write(tmp_path / "x.tar", files), tmp_path / "set", "--image-extension", "left.png")
    assert "3 further images of the samples left out" in line


def test_tars_of_equal_keys_are_refused_or_have_their_names_in_the_keys(
    tmp_path: Path, done: Run, refused: Run
) -> None:
    tars = []
    for number, name in enumerate("ab"):
        files: dict[str, bytes | str] = {f"{i}.png": png(2 * number + i) for i in range(2)}
        tars.append(write(tmp_path / f"{name}.tar", files | {f"{i}.cls": name for i in range(2)}))
    line = refused(*tars, tmp_path / "set")
    assert "the sample 0 is in" in line and "--tar-names-in-keys" in line
    done(*tars, tmp_path, "--tar-names-in-keys")
    expected = {"a/0": "a", "a/1": "a", "b/0": "b", "b/1": "b"}
    assert labels(Dataset(tmp_path)) == expected and verify(str(tmp_path), 1) == []
    write(tmp_path / "c.tar", {"0.png": png(9), "0.cls": "c"})
    done(tmp_path, tmp_path, "--append")
    assert labels(Dataset(tmp_path)) == expected | {"c/0": "c"} and verify(str(tmp_path), 1) == []
    elsewhere = tmp_path / "elsewhere"
    done(*tars, elsewhere, "--tar-names-in-keys")
    assert list(labels(Dataset(elsewhere))) == [str(tmp_path / key) for key in expected]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(png(1))
    with pytest.raises(UserError, match="begin with the names of tars"):
        pack(tmp_path / "images", elsewhere, Options(append=True))
    done(tars[0], tmp_path / "plain")
    assert "leave out" in refused(*tars, tmp_path / "plain", "--append", "--tar-names-in-keys")
    assert "the sample 0 is in" in refused(*tars, tmp_path / "plain", "--append")


def test_several_images_in_a_sample(tmp_path: Path, done: Run, refused: Run) -> None:
    write(tmp_path / "x.tar", {"a.left.PNG": png(1), "a.right.png": png(2), "a.cls": "0"})
    line = refused(tmp_path / "x.tar", tmp_path / "set")
    assert "several images of the sample a: left.png, right.png" in line and "--image-extension" in line
    done(tmp_path / "x.tar", tmp_path / "set", "--image-extension", "right.png")
    dataset = Dataset(tmp_path / "set")
    assert (dataset.key(0), dataset.read(0), dataset.extension(0)) == ("a", png(2), "png")
    assert "none that ends" not in refused(tmp_path / "x.tar", tmp_path / "other", "--image-extension", "txt")
    assert "no image in 1 tars" in refused(
        tmp_path / "x.tar", tmp_path / "other", "--image-extension", "up.png"
    )


def test_samples_of_which_the_members_do_not_follow_each_other(tmp_path: Path, done: Run) -> None:
    write(
        tmp_path / "x.tar",
        {"a.cls": "0", "b.cls": "1", "b.png": png(1), "a.png": png(0), "c.txt": "no image"},
    )
    assert "1 samples without an image left out" in done(tmp_path / "x.tar", tmp_path / "set")
    assert labels(Dataset(tmp_path / "set")) == {"b": "1", "a": "0"}


def test_what_is_no_readable_image_is_skipped_and_listed(tmp_path: Path, done: Run, refused: Run) -> None:
    (tmp_path / "f").mkdir()
    for name, data in {"a.png": png(0), "b.png": png(1)[:-30], "c\nd.jpg": b"not found"}.items():
        (tmp_path / "f" / name).write_bytes(data)
    (tmp_path / "f/e.png").symlink_to("a.png")
    os.link(tmp_path / "f/a.png", tmp_path / "f/g.png")
    subprocess.run(["tar", "-C", tmp_path / "f", "--sort=name", "-cf", tmp_path / "x.tar", "."], check=True)
    line = refused(tmp_path / "x.tar", tmp_path / "strict", "--strict")
    assert "4 images cannot be read" in line and not (tmp_path / "strict/dataset.json").exists()
    assert "4 images skipped" in done(tmp_path / "x.tar", tmp_path / "set")
    listed = (tmp_path / "set/skipped.txt").read_text().splitlines()
    assert [entry.split("\t")[0].rpartition("/")[2] for entry in listed] == [
        "b.png",
        r"c\nd.jpg",
        "e.png",
        "g.png",
    ]
    assert all("--dereference" in entry for entry in listed[2:])
    dataset = Dataset(tmp_path / "set")
    assert len(dataset) == 1 and dataset.key(0) == "./a" and dataset.description.skipped == 4


def test_images_of_different_numbers_of_channels(tmp_path: Path, done: Run, refused: Run) -> None:
    for i, channels in enumerate((5, 3, 1)):
        buffer = io.BytesIO()
        np.save(buffer, np.full((4, 6, channels), 1000 * i, np.uint16))
        write(tmp_path / f"in/{i}.tar", {f"{i}.npy": buffer.getvalue()})
    line = refused(tmp_path / "in", tmp_path / "set")
    assert "1 in 1 (first: " in line and "5 in 1 (first: " in line and "--channels N" in line
    assert not (tmp_path / "set").exists()
    assert "2 images in 2 tars" in done(tmp_path / "in", tmp_path / "three", "--channels", 3)
    three = Dataset(tmp_path / "three")
    assert (three.channels, three.depth, three.extension(0)) == (3, 16, "npy")
    assert "5 channels; expected 3" in (tmp_path / "three/skipped.txt").read_text()
    done(tmp_path / "in/0.tar", tmp_path / "five")
    assert Dataset(tmp_path / "five").channels == 5
    assert "different numbers" in refused(tmp_path / "in", tmp_path / "five", "--append")


def test_two_samples_with_one_key(tmp_path: Path, refused: Run) -> None:
    write(tmp_path / "one.tar", {"a/1.png": png(0), "a/2.png": png(1)})
    write(tmp_path / "two.tar", {"b/1.png": png(2), "a/2.jpg": png(3)})
    line = refused(tmp_path / "one.tar", tmp_path / "two.tar", tmp_path / "set")
    assert "sample a/2 is in " in line and "one.tar" in line and "two.tar" in line
    with tarfile.open(tmp_path / "one.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("a/1.png"))
    assert "one.tar holds a/1.png twice" in refused(tmp_path / "one.tar", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_tars_that_are_damaged_are_named_with_the_byte(tmp_path: Path, refused: Run) -> None:
    good = write(tmp_path / "a.tar", {"a.png": png(0)}).read_bytes()
    bad = tmp_path / "b.tar"
    for data, reason in {
        b"": "is empty",
        good[:1000]: "ends at byte 1000, inside the member a.png",
        b"x" * 2048: "no readable header at byte 0",
        good.rstrip(b"\0"): "byte",
        good + good: "after its end marker",
    }.items():
        bad.write_bytes(data)
        line = refused(tmp_path, tmp_path / "set")
        assert "b.tar" in line and reason in line
    bad.write_bytes(bytes(10_240))
    assert "no image in 1 tars" in refused(bad, tmp_path / "set")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_where_there_are_no_tars_or_only_compressed_ones(tmp_path: Path, done: Run, refused: Run) -> None:
    assert "No such file" in refused(tmp_path / "nowhere", tmp_path / "set")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(png(0))
    assert "no .tar file" in refused(tmp_path / "in", tmp_path / "set")
    write(tmp_path / "in/b.tar", {"b.png": png(0)})
    subprocess.run(["gzip", "-k", tmp_path / "in/b.tar"], check=True)
    assert "1 images in 1 tars" in done(tmp_path / "in", tmp_path / "set")  # unpacked beside it
    (tmp_path / "in/c.tgz").write_bytes(b"")
    assert "c.tgz is compressed" in refused(tmp_path / "in", tmp_path / "other")
    assert "local folder" in refused(tmp_path / "in", "s3://bucket/set")


def test_tars_are_appended_as_a_generation(tmp_path: Path, done: Run, refused: Run) -> None:
    folder = tmp_path / "in"
    write(folder / "b.tar", {"b.png": png(0), "b.json": '{"kind": "dog"}', "z.png": b"rubbish"})
    assert "leave out --append" in refused(folder, folder, "--append")
    done(folder, folder, "--label-key", "kind")
    first = Dataset(folder)
    assert done(folder, folder, "--append").startswith("already indexed: 1 images")
    write(folder / "a.tar", {"a.png": png(1, "L"), "a.json": '{"kind": "cat"}', "y.png": b"rubbish"})
    assert "--append" in refused(folder, folder, "--label-key", "kind")
    assert done(folder, folder, "--append").startswith("indexed: 2 images in 2 tars")
    both = Dataset(folder)
    assert both.classes == ["dog", "cat"] and labels(both) == {"b": "dog", "a": "cat"}
    assert [both.shard_name(i) for i in range(2)] == ["b.tar", "a.tar"]
    again = Dataset(folder, generation=1)
    assert again.fingerprint == first.fingerprint != both.fingerprint and labels(again) == {"b": "dog"}
    assert len((folder / "skipped.txt").read_text().splitlines()) == 2
    write(folder / "c.tar", {"b.png": png(2)})
    assert "sample b is in " in refused(folder, folder, "--append")
    (folder / "c.tar").unlink()
    write(folder / "a.tar", {f"{i}.png": png(i) for i in range(20)})
    with pytest.raises(Exception, match="its index was made for"):
        Dataset(folder)


def test_remote_tars(tmp_path: Path, done: Run, refused: Run) -> None:
    memory = fsspec.filesystem("memory")
    for i in range(2):
        tar = write(
            tmp_path / f"{i}.tar", {f"{i}{k}.png": png(10 * i + k) for k in range(3)} | {f"{i}0.cls": str(i)}
        )
        memory.pipe_file(f"/bucket/in/{i}.tar", tar.read_bytes())
    done("memory://bucket/in", tmp_path / "set")
    dataset = Dataset(tmp_path / "set")
    assert (
        dataset.read(4) == png(11)
        and dataset.key(3) == "10"
        and dataset.labels.tolist() == [0, -1, -1, 1, -1, -1]
    )
    done(tmp_path / "0.tar", tmp_path / "1.tar", tmp_path / "local")
    assert Dataset(tmp_path / "local").fingerprint == dataset.fingerprint
    assert "no .tar file" in refused("memory://bucket/nowhere", tmp_path / "other")
    memory.pipe_file("/bucket/in/1.tar", tar.read_bytes()[:3000])
    assert "memory:" in (line := refused("memory://bucket/in", tmp_path / "other")) and "byte 3000" in line


def test_killed_at_any_time_it_leaves_no_half_data_set(tmp_path: Path, done: Run) -> None:
    buffer = io.BytesIO()
    picture(0, height=800, width=800).save(buffer, "png")
    for i in range(4):
        write(tmp_path / f"in/{i}.tar", {f"{i}{k}.png": buffer.getvalue() for k in range(4)})
    command = [
        sys.executable,
        "-m",
        "data_pipeline",
        "index",
        tmp_path / "in",
        tmp_path / "set",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(command)
    while not list(tmp_path.glob("set/.packing/*.npy")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "set/dataset.json").exists()
    done(tmp_path / "in", tmp_path / "set")
    assert len(Dataset(tmp_path / "set")) == 16 and not (tmp_path / "set/.packing").exists()


def test_a_tar_of_other_bytes_is_not_called_indexed(tmp_path: Path, done: Run, refused: Run) -> None:
    tar = write(tmp_path / "x.tar", {"a.png": png(0), "a.cls": "0"})
    done(tar, tmp_path / "set")
    os.utime(tar, ns=(2 * 10**18,) * 2)
    assert "already indexed" in done(tar, tmp_path / "set")
    write(tar, {"a.png": png(0), "a.cls": "1"})
    os.utime(tar, ns=(2 * 10**18,) * 2)
    for more in ([], ["--append"]):
        assert "other bytes than when it was indexed" in refused(tar, tmp_path / "set", *more)


def test_samples_of_other_formats_are_counted_by_ending(tmp_path: Path, done: Run, refused: Run) -> None:
    files: dict[str, bytes | str] = {
        "a.png": png(0),
        "a.mask.gif": b"x",
        "b.HEIC": b"x",
        "c.nii.gz": b"x",
    }
    write(tmp_path / "x.tar", files)
    counted = "2 pictures of formats or names that are not read (.heic 1, .nii.gz 1)"
    assert counted in refused(tmp_path / "x.tar", tmp_path / "set", "--strict")
    assert counted in done(tmp_path / "x.tar", tmp_path / "set")
