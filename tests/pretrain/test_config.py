"""Configuration: what is refused and how, what --help shows, and recipes that are found from any folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from isotorus.errors import UserError
from pretrain.__main__ import parse
from pretrain.config import describe_fields, field_in_words, fields, load_config

RECIPES = sorted(path.name for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"))


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(str(recipe), list(overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_overrides_reach_their_section(recipe: Path):
    config = load_config(str(recipe), ["optimizer.lr=1e-2", "views.global_scale=[0.5, 1.0]", "seed=7"])
    assert (config.optimizer.lr, config.views.global_scale, config.seed) == (0.01, (0.5, 1.0), 7)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ("num_slices=8", "unknown key 'num_slices'; did you mean 'objective.sigreg.num_slices'?"),
        ("optimizer.lr=fast", "optimizer.lr='fast'"),
        ("steps=0", "steps=0: input should be greater than 0"),
        ("steps", "'steps' is not an override"),
        ("seed.x=1", "'seed' is a value, not a section"),
        ("name=a/b", "name='a/b'"),
        ("engine.kind=ddpp", "engine.kind='ddpp': input should be 'ddp'"),
    ],
)
def test_refusals_name_the_key(recipe: Path, override: str, said: str):
    if override.startswith("seed."):
        recipe.write_text(recipe.read_text() + "seed: 1\n")
    assert said in refusal(recipe, override)


def test_arguments_that_cannot_be_read_are_one_line():
    with pytest.raises(UserError, match="--config; see isotorus train --help"):
        parse([])


def test_missing_required_field(recipe: Path):
    recipe.write_text(recipe.read_text().replace("steps: 12\n", ""))
    assert refusal(recipe).startswith("'steps' is not set")


def test_broken_yaml(tmp_path: Path):
    (tmp_path / "x.yaml").write_text("a: [1,")
    assert "is not YAML" in refusal(tmp_path / "x.yaml")


def test_every_field_is_documented():
    undocumented = [name for name, field, _ in fields() if not field.description]
    assert undocumented == []
    described = describe_fields()
    assert all(name in described for name, _, _ in fields())


def test_types_and_defaults_are_shown_in_words():
    words = {}
    for name, field, owner in fields():
        words[name] = text = field_in_words(field, owner, name.rpartition(".")[2])
        for python in (
            "typing",
            "Annotated",
            "Undefined",
            "Optional",
            "None",
            "<class",
            "int",
            "str",
            "bool",
        ):
            assert not re.search(rf"\b{python}\b|{python}\[", text), f"{name}: {text}"
    assert words["checkpoint.keep_last"] == "integer ≥ 1, optional"
    assert words["guard.spike"] == "number > 0, optional; default 10.0"
    assert words["stopping.requeue_code"] == "integer ≥ 0 and ≤ 125; default 0"
    assert words["views.global_scale"] == "[number, number]; default [0.3, 1.0]"
    assert words["data.cache.size"] == "size such as 100GB; default 100.0GB"
    assert words["accept"] == "list of batch_size|data|objective|seed; default []"
    assert words["steps"] == "integer ≥ 1; required"


@pytest.mark.parametrize("kind", ["lejepa", "jepa", "torus"])
def test_giving_every_default_that_help_shows_changes_nothing(kind: str, tmp_path: Path):
    recipe = tmp_path / "least.yaml"
    recipe.write_text(f"{{name: least, steps: 1, data: {{path: x}}, objective: {{kind: {kind}}}}}")
    config = load_config(str(recipe), [])
    known = [field for field in fields() if not field[0].startswith(("objective.", "data.sources."))]
    shown = {
        name: field_in_words(field, owner, name.rpartition(".")[2]).partition("default ")[2]
        for name, field, owner in [*known, *fields(type(config.objective), "objective.")]
    }
    defaults = [f"{name}={text}" for name, text in shown.items() if text]
    assert len(defaults) > 60 and load_config(str(recipe), defaults) == config


def test_recipes_are_found_from_anywhere(tmp_path: Path):
    code = f"from pretrain.config import load_config as c\nfor name in {RECIPES}: c('configs/' + name, [])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
