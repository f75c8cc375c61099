"""Adding to a data set that is in use: what is there stays, byte for byte and in its order."""

import json
import multiprocessing
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.packing.pack import Options, pack
from data_pipeline.verifying.verify import verify
from isotorus.errors import UserError, exit_code
from tests.data_pipeline.pictures import picture, save_pictures

SMALL = "--shard-size 15KB --workers 1"


def keys(dataset: Dataset) -> list[str]:
    return [dataset.key(i) for i in range(len(dataset))]


def labels(dataset: Dataset) -> dict[str, str | None]:
    names = [dataset.classes[label] if label >= 0 else None for label in dataset.labels]
    return dict(zip(keys(dataset), names, strict=True))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def run(command: str, *paths: Path) -> int:
    return exit_code(lambda: main(["pack", *map(str, paths), *command.split()]))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Images of two classes, and later more of them and of a third, which comes first in the alphabet."""
    save_pictures(tmp_path / "images", [f"{'dc'[i % 2]}/{i:02d}.png" for i in range(12)], mode="L")
    return tmp_path / "images"


def grow(source: Path) -> None:
    for i in range(12, 20):
        (source / "ad"[i % 2]).mkdir(exist_ok=True)
        picture(i, height=30, width=90 - i).save(source / "ad"[i % 2] / f"{i:02d}.jpg")


def test_the_old_generation_stays_and_the_new_one_is_exact(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "set"
    run(f"--labels folder {SMALL}", source, dest)
    old = Dataset(dest)
    old_shards = {file.name: file.read_bytes() for file in dest.glob("*.tar")}
    old_labels, old_keys, old_print = labels(old), keys(old), old.fingerprint
    grow(source)
    assert run(f"--labels folder {SMALL} --append", source, dest) == 0

    new = Dataset(dest)
    assert new.classes == ["c", "d", "a"] and new.channels == 3 and old.channels == 1
    assert keys(new)[:12] == old_keys and len(new) == 20 and new.generation == 2
    assert labels(new) == {
        str(f.relative_to(source).with_suffix("")): f.parent.name for f in source.glob("*/*")
    }
    assert {name: (dest / name).read_bytes() for name in old_shards} == old_shards
    assert verify(str(dest), workers=1) == []

    for reopened in (Dataset(dest, generation=1), old):
        assert (labels(reopened), keys(reopened), reopened.fingerprint) == (old_labels, old_keys, old_print)
        assert [reopened.read(i) for i in range(12)] == [new.read(i) for i in range(12)]

    pack(source, tmp_path / "at once", Options(labels="folder"))
    at_once = Dataset(tmp_path / "at once").description
    ours = new.description
    for name in ("count", "moments", "mean", "std", "width", "height", "depth", "channels", "sixteen_bit"):
        assert getattr(ours, name) == getattr(at_once, name), name
    for kind, counts in (("classes", "class_counts"), ("extensions", "extension_counts")):
        both = (dict(zip(getattr(s, kind), getattr(s, counts), strict=True)) for s in (ours, at_once))
        assert next(both) == next(both)
    assert len({old_print, new.fingerprint, at_once.fingerprint}) == 3


def test_info_lists_the_generations(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = tmp_path / "set"
    pack(source, dest, Options(labels="folder"))
    old = Dataset(dest).fingerprint
    assert main(["info", str(dest)]) == 0 and "generation 1" not in capsys.readouterr().out
    grow(source)
    pack(source, dest, Options(labels="folder", append=True))
    assert main(["info", str(dest)]) == 0
    assert f"generation 1 12 images in 1 shards, fingerprint {old}" in capsys.readouterr().out
    assert main(["info", str(dest), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(g["count"], g["fingerprint"]) for g in facts["generations"]] == [
        (12, old),
        (20, facts["fingerprint"]),
    ]


def test_a_data_set_inside_the_source_is_no_source(source: Path) -> None:
    dest = source / "packed"
    pack(source, dest, Options(val_fraction=0.5))
    grow(source)
    assert pack(source, dest, Options(append=True)).startswith("added 8 images, 12 were there already")
    assert not (dest / "skipped.txt").exists()


def test_class_numbers_in_the_shards_are_those_of_the_class_list(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "set"
    run(f"--labels folder {SMALL}", source, dest)
    grow(source)
    run(f"--labels folder {SMALL} --append", source, dest)
    classes, found = Dataset(dest).classes, {}
    for shard in sorted(dest.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".cls"):
                    content = tar.extractfile(member)
                    assert content is not None
                    found[member.name[:-4]] = classes[int(content.read())]
    assert found == labels(Dataset(dest))


@pytest.mark.parametrize("only_new", [True, False])
def test_the_source_may_hold_the_old_images_or_not(source: Path, tmp_path: Path, only_new: bool) -> None:
    dest = tmp_path / "set"
    pack(source, dest, Options())
    if only_new:
        shutil.rmtree(source)
        source.mkdir()
    grow(source)
    line = pack(source, dest, Options(append=True))
    assert line.startswith(f"added 8 images, {0 if only_new else 12} were there already; now 20 images")
    before = files_of(dest)
    assert pack(source, dest, Options(append=True)).startswith(f"nothing new: {8 if only_new else 20} were")
    assert pack(source, dest, Options(append=True, shard_size=1)).startswith("nothing new")
    assert files_of(dest) == before


def test_unreadable_files_alone_make_no_generation(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "set"
    (source / "text.png").write_text("not found")
    pack(source, dest, Options())
    assert "1 files skipped" in pack(source, dest, Options(append=True))
    (source / "more.png").write_text("not found")
    assert "2 files skipped" in pack(source, dest, Options(append=True))
    assert Dataset(dest).generation == 1 and not (dest / ".packing").exists()
    listed = [line.split("\t")[0] for line in (dest / "skipped.txt").read_text().splitlines()]
    assert listed == ["more.png", "text.png"]
    picture(1).save(source / "text.png")  # repaired
    assert pack(source, dest, Options(append=True)).startswith("added 1 images")


def test_another_image_of_a_known_name_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "set"
    pack(source, dest, Options())
    before = files_of(dest)
    grow(source)
    picture(99, height=77).save(source / "d/02.png")
    assert run("--append", source, dest) == 2
    assert "1 file changed (d/02.png)" in capsys.readouterr().err
    assert files_of(dest) == before


def test_a_corrected_label_is_reported_and_not_taken(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "set"
    pack(source, dest, Options())
    assert "12 of them with another label" in pack(source, dest, Options(append=True, labels="folder"))
    assert Dataset(dest).classes == []


def test_splits_and_groups_hold_for_what_is_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, dest = tmp_path / "images", tmp_path / "sets"
    save_pictures(source, [f"p{i // 2:02d}_{i}.png" for i in range(40)])
    split = "--val-fraction .3 --test-fraction .2"
    grouped = "--group-pattern ^(p[0-9]+)_"
    run(f"{split} {grouped} --workers 1", source, dest)
    before = {name: set(keys(Dataset(dest / name))) for name in ("train", "val", "test")}
    save_pictures(source, [f"p{i // 2:02d}_{100 + i}.png" for i in range(60)])
    for options, expected in [
        ("", "was split by groups"),
        (f"{grouped} --val-fraction .2", "with --val-fraction 0.3 --test-fraction 0.2"),
        (f"{grouped} --channels 4", "use --channels 3"),
    ]:
        assert run(f"--append {options}", source, dest) == 2
        assert expected in capsys.readouterr().err
    assert run(f"--append {grouped} --workers 1", source, dest) == 0
    after = {name: set(keys(Dataset(dest / name))) for name in before}
    assert all(before[name] <= after[name] for name in before) and sum(map(len, after.values())) == 100
    groups = [{key.split("_")[0] for key in part} for part in after.values()]
    assert sum(map(len, groups)) == 30
    assert {Dataset(dest / name).generation for name in before} == {2}
    assert run(f"--append {grouped} {split}", source, dest) == 0


def test_a_set_that_gets_none_of_the_new_images_gets_the_new_classes(tmp_path: Path) -> None:
    source, dest = tmp_path / "images", tmp_path / "sets"
    save_pictures(source, [f"a/{i}.png" for i in range(20)])
    pack(source, dest, Options(labels="folder", val_fraction=0.3))
    counts = {name: len(Dataset(dest / name)) for name in ("train", "val")}
    save_pictures(source, ["b/one.png"])
    pack(source, dest, Options(labels="folder", append=True))
    sets = {name: Dataset(dest / name) for name in counts}
    assert all(dataset.classes == ["a", "b"] and dataset.generation == 2 for dataset in sets.values())
    assert sorted(len(sets[name]) - counts[name] for name in counts) == [0, 1]


def crash_at(write: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that is ended at its nth renaming of a file; return whether it was reached."""
    child = os.fork()
    if child == 0:
        replace, left = os.replace, multiprocessing.Value("i", write)  # counted over all processes

        def dying(*paths: str) -> None:
            with left.get_lock():
                left.value -= 1
                dies = left.value < 0
            if dies:
                os._exit(9)
            replace(*paths)

        os.replace = dying  # type: ignore[assignment]
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        try:
            work()
            os._exit(0)
        except UserError:  # a worker died
            os._exit(9)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("append", [False, True])
def test_killed_at_any_file_it_continues_and_the_old_generation_stays_readable(
    tmp_path: Path, append: bool
) -> None:
    source, begun = tmp_path / "images", tmp_path / "begun"
    save_pictures(source, [f"{i}.png" for i in range(6)])
    if append:
        pack(source, begun, Options(val_fraction=0.4))
        save_pictures(source, [f"{i}.png" for i in range(6, 12)])
    else:
        begun.mkdir()
    options = Options(val_fraction=0.4, append=append)
    shutil.copytree(begun, tmp_path / "reference")
    pack(source, tmp_path / "reference", options)
    expected = files_of(tmp_path / "reference")
    prints = {
        name: [Dataset(tmp_path / "reference" / name, generation=g).fingerprint for g in range(1, append + 2)]
        for name in ("train", "val")
    }

    crashes = 0
    while True:
        dest = tmp_path / f"crash {crashes}"
        shutil.copytree(begun, dest)
        crashed = crash_at(crashes, lambda dest=dest: pack(source, dest, options))
        for name in prints:
            if append or (dest / name / "dataset.json").exists():
                dataset = Dataset(dest / name)
                assert dataset.fingerprint == prints[name][dataset.generation - 1]
                assert all(dataset.read(i) for i in range(len(dataset)))
        pack(source, dest, options)
        assert files_of(dest) == expected
        if not crashed:
            break
        crashes += 1
    assert crashes > 12


def test_nothing_to_add_to(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--append", source, tmp_path / "nowhere") == 2
    assert "leave out --append" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()
    (source / "text.png").write_text("not found")
    assert run("--strict", source, tmp_path / "set") == 2
    assert run("--append", source, tmp_path / "set") == 2
    assert "leave out --append" in capsys.readouterr().err


@pytest.mark.parametrize("generation", [0, 3, -1])
def test_a_generation_that_is_not_there(source: Path, tmp_path: Path, generation: int) -> None:
    pack(source, tmp_path / "set", Options())
    grow(source)
    pack(source, tmp_path / "set", Options(append=True))
    with pytest.raises(UserError, match="expected 1 to 2"):
        Dataset(tmp_path / "set", generation=generation)


def test_labels_and_groups_are_those_of_the_set_whatever_else_is_added(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", [f"{i}.png" for i in range(40)])

    def run(rows: list[str], *more: str) -> None:
        (tmp_path / "t.csv").write_text("\n".join(["image,label,patient", *rows, ""]))
        command = ["pack", tmp_path / "images", tmp_path / "set", "--labels", tmp_path / "t.csv"]
        options = ["--group-column", "patient", "--workers", "1"]
        assert main([*map(str, command), *options, *more]) == 0

    run([f"{i}.png,{i % 2},{i}" for i in range(20)], "--val-fraction", "0.4")
    added = [f"{i}.png,{i % 2}.0,{i - 20}.0" for i in range(20, 39)]
    run([*added, "39.png,x,B"], "--append")
    side = {key: name for name in ("train", "val") for key in keys(Dataset(tmp_path / "set" / name))}
    assert len(side) == 40 and {side[str(i)] for i in range(20)} == {"train", "val"}
    assert all(side[str(i)] == side[str(i + 20)] for i in range(19))
    assert Dataset(tmp_path / "set/train").classes == ["0", "1", "x"]


def test_renamed_and_removed_files_are_named(source: Path, tmp_path: Path, capsys) -> None:
    assert run("", source, tmp_path / "set") == 0
    first, second, *_ = sorted(path for path in source.rglob("*.*") if path.is_file())
    first.rename(first.with_stem("another"))
    second.unlink()
    capsys.readouterr()
    assert main(["pack", str(source), str(tmp_path / "set"), "--append", "--workers", "1"]) == 0
    assert "note: 2 files are no longer there" in capsys.readouterr().out


def test_what_meant_no_label_means_it_again(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    names = sorted(str(file.relative_to(source)) for file in source.glob("*/*"))
    rows = [f"{name},{['good', 'unsure', 'NA'][i % 3]}" for i, name in enumerate(names)]
    dest = tmp_path / "set"
    table.write_text("\n".join(["image,label", *rows[:6]]))
    assert run(f"--labels {table} --missing unsure {SMALL}", source, dest) == 0
    table.write_text("\n".join(["image,label", *rows]))
    for _ in range(2):
        assert run(f"--labels {table} --append {SMALL}", source, dest) == 0
    assert Dataset(dest).classes == ["NA", "good"]
    assert list(labels(Dataset(dest)).values()).count(None) == 4
    assert Dataset(dest).description.table_missing == ["unsure"]
