"""Recipes and overrides of others: one line for what cannot be read; texts stay as they are spelled."""

import json
import time
from pathlib import Path

import pytest

from data_pipeline.dataset.index import Dataset
from data_pipeline.storage.cache import CacheConfig
from isotorus.errors import UserError
from isotorus.recipe import read_recipe_file
from pretrain.config import Config, load_config
from pretrain.preflight.check import check

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
HOSTILE = {
    "aliases of lists": LAUGHS,
    "aliases of mappings": LAUGHS.replace("[x,x,x,x,x,x,x,x,x,x]", "{x: 1, y: 2}"),
    "merged aliases": "a: &a {x: 1}\n"
    + "".join(
        f"b{i}: &b{i} {{<<: [{', '.join(['*' + (f'b{i - 1}' if i else 'a')] * 10)}], k{i}: 1}}\n"
        for i in range(9)
    ),
    "an alias in itself": "data: &d {path: *d}",
    "deep lists": "a: " + "[" * 20_000,
    "deep lists that close": "a: " + "[" * 900 + "]" * 900,
    "deep mappings": "{a: " * 3000,
    "deep blocks": "".join(f"{' ' * i}a:\n" for i in range(3000)),
    "not UTF-8": b"name: \xff\xfe",
    "bytes": bytes(range(256)),
    "no date": "name: 2026-99-99",
    "no number": "steps: !!int foo",
    "no time": "name: !!timestamp foo",
    "no truth value": "name: !!bool foo",
    "no base64": "name: !!binary x",
    "a list as a key": "? [a]\n: 6\n",
    "code": "name: !!python/object/apply:os.system ['touch pwned']",
    "a tab": "a:\n\tb: 1",
    "a number that takes minutes": "seed: 1" + ":59" * 300_000,
    "a number that cannot be shown": "seed: 0x" + "f" * 500_000,
    "half of a character": '{name: a, steps: 1, data: {path: "\\ud800"}}',
    "20 MB": "name: " + "a" * 20_000_000,
    "200 kB": "name: " + "a" * 200_000,
    "a list": "[1]",
    "nothing": "",
    "a number as a key": "{name: a, steps: 1, data: {path: x}, 5: 6}",
    "null as a key": "{name: a, steps: 1, data: {path: x}, ~: 6}",
}


def refusal(path: Path | str, *overrides: str) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        load_config(str(path), list(overrides))
    text = str(error.value)
    assert text.isprintable() and len(text) < 2000 and time.monotonic() - began < 120
    return text


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_recipe_is_one_line(case: str, tmp_path: Path):
    text = HOSTILE[case]
    (tmp_path / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refusal(tmp_path / "x.yaml")
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/tmp", "a" * 300, "a\0b", "\x1b[2J", "configs/../../etc/passwd"]
)
def test_what_is_no_recipe_file_is_one_line(path: str):
    refusal(path)


@pytest.mark.parametrize(
    "override",
    [
        *("name=[", "name={", "name='", "name=%", "name=\t@", "name=a: b: c", "name=&a [*a]", "data.path=*x"),
        *("name=2026-13-45", "name=!!int foo", "name=!!python/object/apply:os.system ['touch pwned']"),
        *(
            "name=.",
            "name=..",
            "name=...",
            "name=a/b",
            "name=$(touch pwned)",
            "name=" + "a" * 201,
            "name=",
            "name=~",
        ),
        *(
            "seed=18446744073709551616",
            "seed=-1",
            f"seed={'9' * 5000}",
            f"steps={'9' * 30}",
            "log_every=1e400",
        ),
        *(
            f"data.workers={'9' * 20}",
            "data.workers=1000000",
            "objective.projector.layers=1000000",
            "optimizer.lr=nan",
            "optimizer.lr=.inf",
        ),
        *(f"seed=0x{'f' * 9000}", "a." * 5000 + "a=1", 'data.path="\\ud800"'),
        *(f"encoder.kwargs={{depth: {'9' * 30}}}", "encoder.kwargs=[1]", "data.path.x=1", "=1", "..=1", ".="),
        *(
            "runs=$NOT_SET_HERE/x",
            "runs=${AWS_SECRET_ACCESS_KEY}",
            "runs=" + "a" * 300,
            "runs=" + "a/" * 3000,
            'runs="a\\0b"',
        ),
    ],
)
def test_a_hostile_override_is_one_line(override: str, recipe: Path):
    refusal(recipe, override)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("override", ["runs=/dev/null", "runs=/proc/none", "encoder.weights=/dev/zero"])
def test_a_place_that_cannot_be_is_said_before_any_note(override: str, recipe: Path, caplog):
    config = configured(recipe, "steps=1", "optimizer.warmup_steps=2", override)
    with pytest.raises((UserError, OSError)):
        check(config, 1)
    assert not caplog.records


def configured(recipe: Path, *overrides: str) -> Config:
    return load_config(str(recipe), list(overrides))


@pytest.mark.parametrize("name", ["0123", "1e5", "1_000", "0x10", "yes", "true", "2026-11-30", "1.50", ".x"])
def test_a_text_stays_as_it_is_spelled(name: str, recipe: Path, tmp_path: Path):
    assert configured(recipe, f"name={name}", f"tracking.experiment={name}").name == name
    (tmp_path / "own.yaml").write_text(recipe.read_text().replace("name: tiny", f"name: {name}"))
    config = configured(tmp_path / "own.yaml", "data.path=null", f"data.sources=[{{path: {name}}}]")
    assert config.name == name and config.data.sources[0].path == name


def test_numbers_stay_numbers(recipe: Path):
    kwargs = "{init_values: 1e-5, depth: 2, dynamic_img_size: yes, img_size: [32, 32], none: null}"
    config = configured(recipe, f"encoder.kwargs={kwargs}", "optimizer.lr=1e-2", f"seed={2**64 - 1}")
    made = config.encoder.kwargs
    assert made == {**made, "init_values": 1e-5, "dynamic_img_size": True, "img_size": [32, 32], "none": None}
    assert [type(made[name]) for name in ("init_values", "depth", "dynamic_img_size")] == [float, int, bool]
    assert (config.optimizer.lr, config.seed) == (0.01, 2**64 - 1)
    assert json.loads(json.dumps(config.model_dump(mode="json"))) == config.model_dump(mode="json")


def test_reading_gives_ordinary_values(tmp_path: Path):
    (tmp_path / "x.yaml").write_text("{a: 1, b: 0.5, c: yes, d: [1e-5], e: 2026-11-30}")
    assert read_recipe_file(str(tmp_path / "x.yaml")) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": [1e-5],
        "e": "2026-11-30",
    }


def test_home_and_variables_mean_the_same_in_every_path(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    for given, meant in (("~/x", "/home/me/x"), ("$SCRATCH/x", "/scratch/x"), ("${SCRATCH}x", "/scratchx")):
        keys = ("runs", "data.path", "data.cache.folder", "encoder.weights", "tracking.uri")
        config = configured(recipe, *(f"{key}={given}" for key in keys))
        paths = (
            config.runs,
            config.data.path,
            config.data.cache.folder,
            config.encoder.weights,
            config.tracking.uri,
        )
        assert [str(path) for path in paths] == [meant] * len(keys)
        mixed = configured(
            recipe, "data.path=null", f"data.sources=[{{path: '{given}'}}]", f"tracking.uri=sqlite:///{given}"
        )
        assert mixed.data.sources[0].path == meant and mixed.tracking.uri == f"sqlite:///{meant}"


def test_no_variable_is_put_into_a_url(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PRIVATE", "c4n4ry")
    assert configured(recipe, "data.path=http://host/$PRIVATE").data.path == "http://host/$PRIVATE"


@pytest.mark.parametrize(
    "url", ["reference://x", "github://a", "zzz://x", "zip://x", "simplecache::x://y", "dask://x"]
)
def test_an_address_that_no_store_takes_is_one_line(url: str):
    with pytest.raises(UserError) as error:
        Dataset(url, cache=CacheConfig(patience=0))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000
