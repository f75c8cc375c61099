"""Recipes: YAML files of a run's configuration, the user's own or those packaged in `configs/`."""

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

import isotorus
from isotorus.errors import UserError, from_os_error
from isotorus.recipe_text import spelled

_LONGEST = 2**20
"""Largest size of a recipe in characters."""
_MOST_VALUES = 100_000
"""Largest number of values in a recipe, with those that aliases repeat: ten lines can name 10⁹ values."""
_LONGEST_NUMBER = 1000
"""Largest number of characters of a number: 1:59:59:… of a megabyte takes minutes to compute."""


def read_recipe_file(path: str) -> dict[str, Any]:
    """Return the keys and values of a YAML file, or of a packaged recipe by its name, not yet validated.

    A file at `path` comes before a packaged recipe of that name ("x", "x.yaml" or "configs/x.yaml"). Values
    remember how they were spelled (`isotorus.recipe_text`). Raises `UserError` if there is no such file, if
    the text is not YAML, or if it is not a mapping.
    """
    try:
        values = read_yaml(_text(path), _Speller)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())[:500]}") from None
    except OSError as error:
        raise from_os_error(error, f"reading --config {path}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected keys and values, found {type(values).__name__}")
    return values


def read_override(text: str, override: str) -> Any:
    """Return the value of the override `override`, whose text after the = is `text`; "" for no text.

    Raises `UserError` if the text is not YAML.
    """
    try:
        return read_yaml(text, _Speller) if text else ""
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(
            f"'{override[:200]}': the value is not YAML: {reason}; put a text with such characters into "
            """quotes, as key='"text"'"""
        ) from None


class _Loader(yaml.SafeLoader):
    """YAML without code, with the numbers of YAML 1.2: PyYAML follows 1.1, where 1e-5 is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class _Speller(_Loader):
    """Gives numbers, truth values and dates that remember how they were spelled."""

    def construct_spelled(self, node: yaml.ScalarNode) -> Any:
        construct = _Loader.yaml_constructors[node.tag]
        return spelled(construct(self, node), node.value)


for _kind in ("int", "float", "bool", "timestamp"):
    _Speller.add_constructor(f"tag:yaml.org,2002:{_kind}", _Speller.construct_spelled)


def read_yaml(text: str, loader: type[yaml.SafeLoader] = _Loader) -> Any:
    """Return the value of a recipe or of an override in YAML, or of any text that `loader` understands.

    Raises `yaml.YAMLError` also for a value that is impossible, such as the 13th month, and for a text that
    would take much memory or time.
    """
    if len(text) > _LONGEST:
        raise yaml.YAMLError(f"it has more than {_LONGEST} characters")
    reading = loader(text)
    try:
        node = reading.get_single_node()
        if node is None:
            return None
        _count(node, {}, set())
        return reading.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # What PyYAML raises for a value that does not fit its tag, such as !!int x.
        raise yaml.YAMLError(f"a value does not fit its kind: {error}") from None
    finally:
        reading.dispose()


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Return how many values a node has, counted again wherever an alias repeats them."""
    if id(node) in above:
        _refuse(node, "an alias stands inside the value that it names")
    if id(node) not in known:
        above.add(id(node))
        inner = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        else:
            _check_scalar(node)
        known[id(node)] = 1 + sum(_count(part, known, above) for part in inner)
        above.discard(id(node))
        if known[id(node)] > _MOST_VALUES:
            _refuse(node, f"with its aliases it has more than {_MOST_VALUES} values")
    return known[id(node)]


def _check_scalar(node: yaml.Node) -> None:
    """Refuse a number that is far too long, and a text such as "\\ud800", which no file can hold."""
    if not node.tag.endswith(":str") and len(node.value) > _LONGEST_NUMBER:
        _refuse(node, f"a number, date or !!tag has more than {_LONGEST_NUMBER} characters")
    try:
        node.value.encode()
    except UnicodeEncodeError:
        _refuse(node, "a text has half of a surrogate pair, which is no character")


def _refuse(node: yaml.Node, problem: str) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _text(path: str) -> str:
    """Return the text of a recipe, at most one character more than `_LONGEST`."""
    if Path(path).is_file():
        with Path(path).open(encoding="utf-8") as file:
            return file.read(_LONGEST + 1)
    # Beside this package: a folder `configs` in the present one is the user's own.
    recipes = Path(isotorus.__file__).parents[1] / "configs"
    packaged = recipes / f"{Path(path).name.removesuffix('.yaml')}.yaml"
    if packaged.is_file() and Path(path).parent in (Path(), Path("configs")):
        return packaged.read_text(encoding="utf-8")
    known = sorted(entry.name for entry in recipes.iterdir() if entry.name.endswith(".yaml"))
    raise UserError(f"--config {path}: no such file; packaged recipes are {', '.join(known)}")
