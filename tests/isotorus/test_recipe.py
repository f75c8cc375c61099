"""Recipe files: where they are found, and what is refused in one line."""

from pathlib import Path

import pytest
import yaml

from isotorus.errors import UserError
from isotorus.recipe import read_recipe_file

PACKAGED = Path(__file__).parents[2] / "configs"
FIRST = min(PACKAGED.glob("*.yaml"))


@pytest.mark.parametrize("name", [FIRST.name, FIRST.stem, f"configs/{FIRST.name}"])
def test_packaged_recipes_are_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_recipe_file(name) == yaml.safe_load(FIRST.read_text())


def test_a_file_of_the_user_comes_before_a_packaged_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FIRST.name).write_text("name: mine")
    assert read_recipe_file(FIRST.name) == {"name": "mine"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1,", "is not YAML"),
        (b"name: \xff\xfe", "is not YAML"),
        (b"- 1", "expected keys and values, found list"),
        (b"", "expected keys and values, found NoneType"),
        (None, "no such file; packaged recipes are "),
    ],
)
def test_what_is_no_recipe_is_refused_by_its_name(content, said, tmp_path):
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.yaml") as refusal:
        read_recipe_file(str(path))
    assert said in str(refusal.value)
