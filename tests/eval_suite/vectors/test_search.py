"""`isotorus search` lists the nearest images of files and of keys, and shows them on a page."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.eval_suite.eval_samples import Outcome, run_other, save_checkpoint
from tests.eval_suite.vectors.vector_samples import embed


def search(*arguments: object) -> Outcome:
    done = run_other("search", *arguments)
    assert done.code == 0, done.err
    return done


def listed(said: str) -> list[tuple[str, str]]:
    """Return the cosines and keys of a table in the terminal."""
    return re.findall(r"^ *\d+ +(-?[\d.]+) +(a/\S+)", said, re.MULTILINE)


def expected(embedded: Path, row: int, top: int) -> list[tuple[str, str]]:
    frame = pd.read_parquet(embedded)
    x = np.stack(frame["features"]).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosines = x @ x[row]
    order = [int(i) for i in np.argsort(-cosines) if i != row][:top]
    return [(f"{cosines[i]:.4f}", frame["key"][i]) for i in order]


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_an_image_of_the_set_by_its_key(
    embedded: Path, encoder: Path, table_set: Path, tmp_path: Path, suffix: str
):
    file = tmp_path / f"x.{suffix}"
    embed(encoder, table_set, "--out", file)
    key = pd.read_parquet(embedded)["key"][11]
    done = search(file, key, "--top", 6)
    assert listed(done.out) == expected(embedded, 11, 6) and "--page" in done.out
    assert len(listed(search(file, key, "--top", 99).out)) == 29


def test_a_file_is_nearest_to_itself(embedded: Path, table_set: Path):
    frame = pd.read_parquet(embedded)
    source = table_set.with_name("set-images") / frame["image"][3].replace("_v1", ".v1")
    found = listed(search(embedded, source, "--top", 4).out)
    assert found == [("1.0000", frame["key"][3]), *expected(embedded, 3, 3)]


def test_the_page_shows_the_images(embedded: Path, table_set: Path, tmp_path: Path):
    key = pd.read_parquet(embedded)["key"][0]
    search(embedded, key, "--top", 3, "--page", tmp_path / "near.html")
    page = (tmp_path / "near.html").read_text()
    assert page.count("<img") == 4 and key in page and "Note" not in page
    odd = tmp_path / "<script>.png"
    shutil.copy(next((table_set.with_name("set-images") / "a").iterdir()), odd)
    search(embedded, odd, "--top", 3, "--page", tmp_path / "odd.html")
    assert "<script>" not in (tmp_path / "odd.html").read_text()


def test_names_do_not_act_on_the_terminal(embedded: Path, table_set: Path, tmp_path: Path):
    odd = tmp_path / "\x1b[2Jred.png"
    shutil.copy(next((table_set.with_name("set-images") / "a").iterdir()), odd)
    page = tmp_path / "\x1b[2J.html"
    done = search(embedded, odd, "--top", 3, "--page", page)
    assert "\x1b" not in done.out and "\\x1b[2Jred.png" in done.out and page.exists()


def test_one_bad_image_does_not_stop_the_others(embedded: Path, table_set: Path, tmp_path: Path):
    (tmp_path / "text.jpg").write_text("no image")
    np.save(tmp_path / "five.npy", np.zeros((32, 32, 5), np.uint8))
    np.save(tmp_path / "float.npy", np.ones((32, 32, 3), np.float32))
    key = pd.read_parquet(embedded)["key"][0]
    bad = [tmp_path / name for name in ("text.jpg", "five.npy", "float.npy", "gone.png")]
    done = run_other("search", embedded, *bad, key, "--top", 2)
    assert done.code == 1 and listed(done.out) == expected(embedded, 0, 2)
    failed = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert "float.npy holds float32 values" in done.err and "--intensity" not in done.err
    assert len(failed) == 4 and "the image has 5 channels; expected 3" in done.err
    assert "gone.png is neither an image file nor a key in set.parquet" in done.err
    done = run_other("search", embedded, *bad)
    assert done.code == 2 and done.err.count("error: ") == 1 and "Traceback" not in done.err
    done = run_other("search", embedded, key[:-1])
    assert done.code == 2 and "did you mean" in done.err


def test_a_strangers_file_names_no_other_file(embedded: Path, encoder: Path, table_set: Path, tmp_path: Path):
    """Without the seal of this user, checkpoint and shards have to be named."""
    file = Path(shutil.copy(embedded, tmp_path / "theirs.parquet"))
    image = next((table_set.with_name("set-images") / "a").iterdir())
    done = run_other("search", file, image)
    assert done.code == 2 and "name it with --checkpoint" in done.err
    page = tmp_path / "near.html"
    done = search(file, image, "--checkpoint", encoder, "--top", 2, "--page", page)
    assert "shown with --shards" in done.err and page.read_text().count("<img") == 1
    search(file, image, "--checkpoint", encoder, "--shards", table_set, "--top", 2, "--page", page)
    assert page.read_text().count("<img") == 3


def test_another_checkpoint_and_another_set_are_refused(
    embedded: Path, table_set: Path, splits: dict[str, Path], tmp_path: Path
):
    image = next((table_set.with_name("set-images") / "a").iterdir())
    other = save_checkpoint(tmp_path / "other")
    weights = bytearray((other / "encoder.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "encoder.safetensors").write_bytes(weights)
    done = run_other("search", embedded, image, "--checkpoint", other)
    assert done.code == 2 and "has other weights than those that made set.parquet" in done.err
    key = pd.read_parquet(embedded)["key"][0]
    page = ["--page", tmp_path / "near.html"]
    done = run_other("search", embedded, key, "--shards", splits["val"], *page)
    assert done.code == 2 and "is another data set than the one of set.parquet" in done.err
    done = run_other("search", embedded, key, "--page", tmp_path / "nowhere/near.html")
    assert done.code == 2 and "there is no folder" in done.err
