"""A run's whole configuration: its sections, reading it with overrides, errors, and its fields in words."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ByteSize, Field, PositiveInt, ValidationError
from pydantic.fields import FieldInfo

from data_pipeline.sources import DataConfig
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from isotorus.errors import UserError
from isotorus.nearest_name import nearest
from isotorus.paths import PathText
from isotorus.recipe import read_override, read_recipe_file
from isotorus.secrets import holds_password
from isotorus.section import Section, Unfit
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.methods.config import LeJEPAConfig, ObjectiveConfig
from pretrain.models.config import AverageConfig, EncoderConfig
from pretrain.monitoring.config import GuardConfig, HeldOutConfig, ProfileConfig, TrackingConfig
from pretrain.run_control.config import StoppingConfig

_LONGEST_SHOWN = 200
"""Characters of a wrong value that its error shows."""
_DEEPEST = 20
"""Points in the key of an override; no section is that deep."""


class Config(Section):
    name: str = Field(max_length=200, pattern=r"^\.*[\w+=-][\w.+=-]*$")
    """Name of the run, of letters, digits and _ . + = - only; its folder is <runs>/<name>."""
    runs: PathText = "runs"
    """Folder that holds run folders. In this and every other path ~ and $VAR stand for the home folder and a
    variable of the environment."""
    seed: int = Field(0, ge=0, le=2**64 - 1)
    """The run is a pure function of the configuration and this number."""
    steps: PositiveInt
    """Total number of optimizer steps."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the newest complete checkpoint; never: refuse a run folder that has one."""
    accept: list[Literal["batch_size", "data", "objective", "seed"]] = []
    """Intended differences from the checkpoint that the run continues from: [data] when images were added,
    [objective] for another weight. Step t reads from image t · data.batch_size on, in the order that data
    and seed give; if one of the three changes, some images are seen again too early, others late."""
    log_every: PositiveInt = 10
    """Steps between rows of metrics.jsonl."""
    monitor: int = Field(10, ge=0)
    """With views.actions and objective.kind=torus: rows of metrics.jsonl from one count of the angles'
    windings, on 32 images of the data, to the next; 0: never. For two actions of order 1 a count takes as
    long as it takes to encode 1,024 turned views."""
    online_probe: bool = True
    """Train a linear probe beside the encoder, on detached features, if the data has labels."""
    data: DataConfig
    views: ViewsConfig = ViewsConfig()
    augment: AugmentConfig = AugmentConfig()
    encoder: EncoderConfig = EncoderConfig()
    objective: ObjectiveConfig = LeJEPAConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    average: AverageConfig = AverageConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    stopping: StoppingConfig = StoppingConfig()
    tracking: TrackingConfig = TrackingConfig()
    profile: ProfileConfig = ProfileConfig()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.runs) / self.name

    @property
    def mirror(self) -> str | None:
        """The URL of the run's folder in `checkpoint.mirror`."""
        return self.checkpoint.mirror and f"{self.checkpoint.mirror.rstrip('/')}/{self.name}"


def load_config(path: str, overrides: list[str]) -> Config:
    """Read a YAML file, or a packaged recipe by name, and apply `dotted.key=value` overrides.

    Raises UserError for the first error; it names the key, the value given and what is allowed.
    """
    values = read_recipe_file(path)
    for override in overrides:
        assign(values, override)
    return from_values(values)


def from_values(values: dict[str, Any]) -> Config:
    """Return the configuration with these sections and values; raises UserError as `load_config` does."""
    _refuse_passwords(values)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def assign(values: dict[str, Any], override: str) -> None:
    """Set the value of a `dotted.key=value` in nested sections; raises UserError for any other text."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not an override; write dotted.key=value, e.g. optimizer.lr=1e-3")
    if key.count(".") > _DEEPEST:
        raise UserError(f"unknown key '{key[:_LONGEST_SHOWN]}…'; --help lists the fields")
    _assign(values, key.split("."), read_override(text, override), override)


def _assign(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    """Set a value in nested sections, which are made where they are missing."""
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"'{override}': '{key}' is a value, not a section; see --help for the fields")
    values[keys[-1]] = value


def _refuse_passwords(values: dict[str, Any]) -> None:
    """Raise UserError for a URL with a secret: config.yaml, checkpoints and MLflow repeat every value."""
    for key, value in flatten(values).items():
        if holds_password(str(value)):
            raise UserError(
                f"{key} holds a URL with a password or a token, which would be written with the run; take it "
                "out and give it by the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
                "(or all of MLFLOW_TRACKING_URI), AWS_…, FSSPEC_…"
            )


def _explain(error: ValidationError) -> str:
    """Return a validation's first error in one line that names the key."""
    first, *others = error.errors()
    # For a choice between sections (objective.kind), pydantic puts the kind into the path.
    path = [str(part) for part in first["loc"]]
    path = path[:1] + path[2:] if path[:1] == ["objective"] else path
    if first["type"] == "value_error" and isinstance(first["ctx"]["error"], Unfit):
        return ".".join([*path, str(first["ctx"]["error"])])
    key = ".".join(path)
    # For a field that takes one of several types, it puts each type behind the field, and an error for each.
    field, _, kind = key.rpartition(".")
    if kind and field in {name for name, _, _ in fields()} and isinstance(first["loc"][-1], str):
        key = field
        same = [each["msg"] for each in others if each["loc"][:-1] == first["loc"][:-1]]
        first["msg"] = " or ".join(dict.fromkeys([first["msg"], *(msg.partition("be ")[2] for msg in same)]))
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest(key)}"
    if first["type"] == "missing":
        return f"'{key}' is not set; give it in the file or as {key}=…"
    if first["type"].startswith("union_tag"):
        kinds = [field.annotation for name, field, _ in fields() if name == "objective.kind"]
        named = ", ".join(f"'{get_args(kind)[0]}'" for kind in kinds)
        return f"objective.kind={first['ctx'].get('tag')}: must be one of {named}"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}"
    said = first["msg"].replace("True, False", "true, false")
    return f"{key}={_shortened(first['input'])}: {said[0].lower()}{said[1:]}"


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


def _nearest(key: str) -> str:
    """Return the end of an error about an unknown key: the most similar known key, or where to look."""
    known = [name for name, _, _ in fields()]
    same_leaf = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_leaf[0] if same_leaf else nearest(key, known, 0.5)
    return f"; did you mean '{near}'?" if near else "; --help lists the fields"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


FieldOf = tuple[str, FieldInfo, type[BaseModel]]


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[FieldOf]:
    """Yield each field's dotted name, pydantic description and section; all kinds of a section in turn."""
    for name, field in model.model_fields.items():
        choices = get_args(field.annotation) or (field.annotation,)
        sections = [c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)]
        for section in sections:
            yield from fields(section, f"{prefix}{name}.")
        if not sections:
            yield f"{prefix}{name}", field, model


def describe_fields() -> str:
    """Return the name, type, default and documentation of every field, for --help."""
    lines = []
    for name, field, owner in fields():
        if name == "objective.kind":
            lines.append(f"\n  objective.kind={get_args(field.annotation)[0]}")
        doc = " ".join((field.description or "").split())
        lines.append(f"  {name}  ({field_in_words(field, owner, name.rpartition('.')[2])})\n      {doc}")
    return "\n".join(lines)


def field_in_words(field: FieldInfo, owner: type[BaseModel], name: str) -> str:
    """Return a field's type and default in words, such as "integer ≥ 1, optional" or "text; default runs"."""
    kind = "size such as 100GB"
    if field.annotation is not ByteSize:
        kind = _type_in_words(owner.model_json_schema()["properties"][name])
    if field.is_required():
        return f"{kind}; required"
    default = field.get_default(call_default_factory=True)
    if default is None:
        return kind
    if isinstance(default, ByteSize):
        default = default.human_readable(decimal=True)
    shown = default if isinstance(default, str | Path) else json.dumps(default, ensure_ascii=False)
    return f"{kind}; default {shown}"


_WORDS = {"string": "text", "boolean": "true or false", "object": "keys and values"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _type_in_words(schema: dict[str, Any]) -> str:
    """Return the type that a JSON schema describes, in words."""
    null = {"type": "null"}
    if choices := schema.get("anyOf"):
        words = " or ".join(_type_in_words(choice) for choice in choices if choice != null)
        return f"{words}, optional" if null in choices else words
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return "|".join(json.dumps(x) if isinstance(x, bool) else str(x) for x in values)
    if items := schema.get("prefixItems"):
        return f"[{', '.join(map(_type_in_words, items))}]"
    kind = schema["type"]
    if kind == "array":
        return f"list of {_type_in_words(schema['items'])}"
    if kind == "integer" and "exclusiveMinimum" in schema:
        schema = {"minimum": schema["exclusiveMinimum"] + 1} | schema
        del schema["exclusiveMinimum"]
    word = "path" if schema.get("format") == "path" else _WORDS.get(kind, kind)
    bounds = [f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema]
    return f"{word} {' and '.join(bounds)}" if bounds else word
