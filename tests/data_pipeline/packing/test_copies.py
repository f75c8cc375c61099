"""`pack --drop-duplicates` and `verify --duplicates`: near copies are found, listed, and on no two sides."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.near_copies import hashes
from data_pipeline.dataset.near_copies.hashes import alike
from data_pipeline.dataset.near_copies.pairs import NearCopies
from data_pipeline.dataset.near_copies.thumbnails import create, thumbnail, write
from isotorus.errors import exit_code


def photo(seed: int) -> Image.Image:
    """Return a picture with details of all sizes, as photos have."""
    random = np.random.default_rng(seed)
    total = np.zeros((96, 128, 3))
    for size in (4, 8, 16, 32):
        coarse = Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((128, 96), Image.Resampling.BICUBIC), np.float64) / np.sqrt(size)
    return Image.fromarray((total / total.max() * 255).astype(np.uint8))


def pairs_of(codes: np.ndarray) -> list[tuple[int, int]]:
    usable, cut = np.ones(len(codes), np.bool_), np.zeros(len(codes), np.bool_)
    found = [
        (int(a), int(b)) for one, other in alike(codes, usable, cut) for a, b in zip(one, other, strict=True)
    ]
    assert len(found) == len(set(found))
    return found


def test_all_pairs_of_hashes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_BLOCK", 300)  # so that there are several blocks
    random = np.random.default_rng(0)
    codes = random.integers(0, 2**64, 1200, dtype=np.uint64)
    for i in range(400):
        flipped = random.choice(64, i % 9, replace=False).astype(np.uint64)
        codes[800 + i] = codes[i] ^ np.bitwise_or.reduce(np.uint64(1) << flipped, initial=np.uint64(0))
    codes = random.permutation(codes)
    apart = np.bitwise_count(codes[:, None] ^ codes)
    expected = {(i, j) for i, j in np.argwhere(np.triu(apart <= 6, 1)).tolist()}
    assert len(expected) > 250
    assert set(pairs_of(codes)) == expected


def test_a_million_equal_hashes_do_not_explode() -> None:
    found = pairs_of(np.full(5000, 7, np.uint64))
    assert len(found) < 9 * 5000
    assert {(0, row) for row in range(1, 5000)} <= set(found)


def in_file(file: Path, images: list[Image.Image]) -> NearCopies:
    create(file, len(images))
    write(file, 0, [thumbnail(np.asarray(image.convert("RGB"))) for image in images])
    return NearCopies(file)


def test_what_is_done_to_files_and_nothing_else(tmp_path: Path) -> None:
    photos = [photo(seed) for seed in range(30)]
    photos[0].save(tmp_path / "a.jpg", quality=40)
    changed = [
        Image.open(tmp_path / "a.jpg"),
        photos[1].resize((70, 60)),
        ImageEnhance.Brightness(photos[2]).enhance(0.6),
        photos[3].point(lambda value: 255 * (value / 255) ** 0.8),
    ]
    turned = [photos[4].transpose(Image.Transpose.FLIP_LEFT_RIGHT), photos[5].rotate(90)]
    blank = [Image.new("RGB", (50, 40), (shade, shade, shade)) for shade in (0, 0, 200)]
    found = in_file(tmp_path / "t.npy", [*photos, *changed, *turned, *blank])
    assert found.pairs.tolist() == [[0, 30], [1, 31], [2, 32], [3, 33]]
    assert (found.flat, found.cut) == (3, 0)


def test_images_that_change_slowly_are_not_all_copies_of_the_first(tmp_path: Path) -> None:
    first, last = (np.asarray(photo(seed), np.float64) for seed in (1, 2))
    film = [Image.fromarray((first + (last - first) * t).astype(np.uint8)) for t in np.linspace(0, 1, 40)]
    film += [photo(seed) for seed in range(10, 40)]
    found = in_file(tmp_path / "t.npy", film)
    near = {tuple(pair) for pair in found.pairs.tolist()}
    dropped = {copy.row: copy.of for copy in found.copies(of_kept=True)}
    kept = set(range(40)) - dropped.keys()
    assert len(dropped) > 10 and len(kept) > 2
    assert set(dropped.values()) <= kept
    assert not any(pair in near for pair in combinations(sorted(kept), 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of 12 photos, of which 6 are there again in another folder, and a blank image."""
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
    for seed in range(12):
        photo(seed).save(tmp_path / f"images/a/{seed:02d}.png")
    for seed in range(6):
        photo(seed).resize((100, 80)).save(tmp_path / f"images/b/again{seed}.jpg")
    for name in ("blank", "white"):
        Image.new("L", (30, 30), 255).save(tmp_path / f"images/b/{name}.png")
    return tmp_path / "images"


def pack(*arguments: object) -> None:
    assert main(["pack", *map(str, arguments), "--workers", "1"]) == 0


def test_copies_are_left_out_and_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "set"
    pack(folder, dest, "--labels", "folder", "--drop-duplicates")
    said = capsys.readouterr().out
    assert f"left out: 6 near copies of images that stay (6 of them with another label), see {dest}" in said
    rows = [json.loads(line) for line in (dest / "duplicates.jsonl").read_text().splitlines()]
    assert [(row["image"], row["copy_of"]) for row in rows] == [
        (f"b/again{seed}.jpg", f"a/{seed:02d}.png") for seed in range(6)
    ]
    assert all(row["bits"] <= 6 and row["correlation"] >= 0.97 for row in rows)
    dataset = Dataset(dest)
    keys = sorted(dataset.key(i) for i in range(len(dataset)))
    assert keys == [*(f"a/{seed:02d}" for seed in range(12)), "b/blank", "b/white"]
    pack(folder, dest, "--labels", "folder", "--drop-duplicates")
    assert capsys.readouterr().out.startswith("already packed")
    photo(3).resize((80, 80)).save(folder / "a/again.png")
    photo(50).save(folder / "a/new.png")
    pack(folder, dest, "--labels", "folder", "--drop-duplicates", "--append")
    assert capsys.readouterr().out.startswith("added 1 images, 14 were there already")
    rows = [json.loads(line) for line in (dest / "duplicates.jsonl").read_text().splitlines()]
    assert len(rows) == 7 and rows[0]["image"] == "a/again.png" and rows[0]["copy_of"] == "a/03"


def test_copies_across_sets_are_an_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        pack(folder / name, tmp_path / name)
    capsys.readouterr()
    line = ["verify", "--duplicates", str(tmp_path / "a"), str(tmp_path / "b"), "--workers", "1"]
    assert main([*line, "--out", str(tmp_path / "copies.jsonl")]) == 1
    said = capsys.readouterr().out
    assert said.count("across sets: ") == 6
    assert "6 near copies across sets and 0 within a set, among 20 images; pack again with" in said
    assert "note: 2 images of a single grey value were not compared" in said
    rows = [json.loads(text) for text in (tmp_path / "copies.jsonl").read_text().splitlines()]
    assert {(row["key"], row["of_key"]) for row in rows} == {(f"again{i}", f"{i:02d}") for i in range(6)}
    assert {(row["set"], row["of_set"]) for row in rows} == {(str(tmp_path / "b"), str(tmp_path / "a"))}
    assert main([*line, "--allow-across"]) == 0
    assert main(["verify", "--duplicates", str(tmp_path / "a"), "--workers", "1"]) == 0
    assert "next: isotorus init" in capsys.readouterr().out


def test_images_of_one_group_are_no_copies(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = ["--group-pattern", r"(\d)\."]  # the last digit of the number
    for seed in range(6):
        photo(seed).save(folder / f"a/x{seed}.jpg")
    pack(folder / "a", tmp_path / "set", *pattern, "--drop-duplicates")
    assert "left out" not in capsys.readouterr().out
    assert main(["verify", "--duplicates", str(tmp_path / "set"), "--workers", "1"]) == 0
    assert "0 near copies across sets and 0 within a set" in capsys.readouterr().out


def test_options_of_duplicates_alone_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: main(["verify", str(tmp_path), "--allow-across"])) == 2
    assert capsys.readouterr().err.startswith("error: --out and --allow-across are about near copies")
    line = ["verify", str(tmp_path), "--duplicates", "--out", str(tmp_path / "none/a.jsonl")]
    assert exit_code(lambda: main(line)) == 2
    assert "expected a file in a folder that exists" in capsys.readouterr().err


def test_copies_across_a_new_split_are_refused_or_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, dest = tmp_path / "photos", tmp_path / "set"
    source.mkdir()
    rows = ["image,set,label"]
    for seed in range(12):
        photo(seed).save(source / f"{seed:02d}.png")
        rows.append(f"{seed:02d}.png,train,{seed}")
    for seed in (3, 7):
        photo(seed).save(source / f"{seed:02d}-again.jpg", quality=60)
        rows.append(f"{seed:02d}-again.jpg,{'val' if seed == 3 else 'train'},{seed}")
    photo(20).save(source / "20.png")
    (tmp_path / "table.csv").write_text("\n".join([*rows, "20.png,val,20"]))
    command = ["pack", str(source), str(dest), "--labels", str(tmp_path / "table.csv"), "--workers", "1"]
    split = ["--split-column", "set"]
    assert exit_code(lambda: main([*command, *split])) == 2
    said = capsys.readouterr().err
    assert "1 image is a near copy of images of another set" in said
    assert "03-again.jpg is like 03.png" in said and said.count("\n") == 1
    assert not list(dest.rglob("dataset.json"))
    # The finished shards are kept, and the same command with the option publishes them.
    inode = next((dest / ".packing").rglob("*.tar")).stat().st_ino
    assert main([*command, *split, "--allow-duplicates"]) == 0
    assert "note: 1 image is a near copy" in capsys.readouterr().out
    assert inode in {file.stat().st_ino for file in dest.rglob("*.tar")}
    assert not list(dest.rglob("*thumbnails*"))
    assert main(["verify", "--duplicates", str(dest)]) == 1
    capsys.readouterr()
    # There are no copies across if groups keep them on one side, or if copies are left out.
    for more in (["--group-column", "label"], ["--drop-duplicates"], ["--group-duplicates"]):
        command[2] = str(tmp_path / more[0])
        assert main([*command, *more, "--val-fraction", "0.5"]) == 0
        assert "near copy of images of another set" not in capsys.readouterr().out


def sides(dest: Path) -> dict[str, str]:
    """Return the set in which each image of a split is, by key."""
    sets = [Dataset(dest / name) for name in ("train", "val")]
    return {each.key(i): Path(each.path).name for each in sets for i in range(len(each))}


@pytest.mark.parametrize("more", [[], ["--stratify"]], ids=["by hash", "stratified"])
def test_near_copies_are_kept_on_one_side(
    tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    rows = ["image,patient,label"]
    for seed in range(40):
        photo(seed).save(source / f"{seed:02d}.png")
        rows.append(f"{seed:02d}.png,{f'p{seed // 2}' if seed < 10 else ''},x")
    for seed in (0, 5, 20, 21, 22, 30):  # 0 is of p0 and 5 of p2; the copy of 5 is of p4
        photo(seed).save(source / f"{seed:02d}-again.jpg", quality=60)
        rows.append(f"{seed:02d}-again.jpg,{'p4' if seed == 5 else ''},x")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    command = ["--labels", str(tmp_path / "table.csv"), "--group-column", "patient", "--val-fraction", "0.5"]
    command += [*more, "--workers", "1"]
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    assert main(["pack", str(source), before, *command, "--allow-duplicates"]) == 0
    assert "near copies of images of another set" in capsys.readouterr().out
    assert main(["pack", str(source), after, *command, "--group-duplicates"]) == 0
    assert "kept together: 12 images that are near copies of others, in 6 chains" in capsys.readouterr().out
    assert main(["verify", "--duplicates", after]) == 0
    side = sides(tmp_path / "after")
    for seed in (0, 5, 20, 21, 22, 30):
        assert side[f"{seed:02d}"] == side[f"{seed:02d}-again"]
    for patient in range(5):
        assert side[f"{2 * patient:02d}"] == side[f"{2 * patient + 1:02d}"]
    assert side["04"] == side["08"]  # p2 and p4 hold copies of each other
    if not more:  # only copies have moved: the first of each chain, and images without copies, stay
        moved = {key for key, old in sides(tmp_path / "before").items() if side[key] != old}
        assert moved <= {"08", "09", *(f"{seed:02d}-again" for seed in (0, 5, 20, 21, 22, 30))}
    # A new image of a group that went with another one goes to that side too.
    photo(99).save(source / "99.png")
    (tmp_path / "new.csv").write_text("image,patient,label\n99.png,p4,x\n")
    line = ["--labels", str(tmp_path / "new.csv"), "--group-column", "patient", "--workers", "1"]
    assert main(["pack", str(source), after, *line, "--append"]) == 0
    assert sides(tmp_path / "after")["99"] == side["08"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--drop-duplicates --group-duplicates --val-fraction .5", "exclude each other"),
        ("--group-duplicates --split-column set --labels t.csv", "--split-column says where each image is"),
        ("--group-duplicates", "--group-duplicates is about the sets of a new split"),
        ("--allow-duplicates --val-fraction .5 --append", "--allow-duplicates is about the sets of a new"),
    ],
)
def test_options_about_copies_that_contradict_others_are_refused(
    options: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pack", str(tmp_path), str(tmp_path / "set"), *options.split()]
    assert exit_code(lambda: main(command)) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
