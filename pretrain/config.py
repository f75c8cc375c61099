"""The whole of a run's configuration: YAML, dotted overrides, and errors that name the key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError
from pydantic.fields import FieldInfo

from data_pipeline.sources import DataConfig
from data_pipeline.transforms.augment import AugmentConfig
from data_pipeline.transforms.views import ViewsConfig
from isotorus.errors import UserError
from isotorus.names import nearest
from isotorus.recipe import read_recipe_file
from isotorus.secrets import holds_password
from isotorus.section import Section
from pretrain.checkpoint import CheckpointConfig
from pretrain.engines.config import EngineConfig
from pretrain.engines.optimizer import OptimizerConfig
from pretrain.guard import GuardConfig
from pretrain.methods import LeJEPAConfig, ObjectiveConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.monitoring.mlflow import TrackingConfig
from pretrain.monitoring.profiler import ProfileConfig
from pretrain.run_control.stopping import StoppingConfig


class Config(Section):
    name: str = Field(min_length=1, pattern=r"^[\w.+=-]+$")
    """Name of the run; its folder is <runs>/<name>."""
    runs: str = "runs"
    """Folder that holds run folders."""
    seed: NonNegativeInt = 0
    """The run is a pure function of the configuration and this."""
    steps: PositiveInt
    """Optimizer steps in all."""
    resume: Literal["auto", "never"] = "auto"
    """auto continues from the newest complete checkpoint; never refuses a run folder that has one."""
    accept: list[Literal["batch_size", "data", "objective", "seed"]] = []
    """Differences from the checkpoint to be continued that are meant: [data] when images were added,
    [objective] for another weight. Step t reads from image t · data.batch_size on in the order that data and
    seed give, so that when one of the three changes some images come again early and some late."""
    log_every: PositiveInt = 10
    """Steps between lines of metrics.jsonl."""
    online_probe: bool = True
    """Train a linear probe beside the run, on detached features, where the shards carry labels."""
    data: DataConfig
    views: ViewsConfig = ViewsConfig()
    augment: AugmentConfig = AugmentConfig()
    encoder: EncoderConfig = EncoderConfig()
    objective: ObjectiveConfig = LeJEPAConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    stopping: StoppingConfig = StoppingConfig()
    tracking: TrackingConfig = TrackingConfig()
    profile: ProfileConfig = ProfileConfig()

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name


def load_config(path: str, overrides: list[str]) -> Config:
    """Read a YAML file, or a packaged recipe by name, and apply `dotted.key=value` overrides.

    Raises UserError for the first thing wrong: the key, what was given, what is allowed.
    """
    values = read_recipe_file(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(
                f"'{override}' is not an override; write dotted.key=value, e.g. optimizer.lr=1e-3"
            )
        _assign(values, key.split("."), yaml.safe_load(text) if text else "", override)
    _refuse_passwords(values)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _assign(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"'{override}': '{key}' is a value, not a section; see --help for the fields")
    values[keys[-1]] = value


def _refuse_passwords(values: dict[str, Any]) -> None:
    """What is configured is written to config.yaml, checkpoints and MLflow."""
    for key, value in flatten(values).items():
        if holds_password(str(value)):
            raise UserError(
                f"{key} holds a URL with a password or a token, which would be written with the run; take it "
                "out and give it by the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
                "(or all of MLFLOW_TRACKING_URI), AWS_…, FSSPEC_…"
            )


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    # A choice between sections (objective.kind) puts the chosen one's name into the path.
    path = [str(part) for part in first["loc"]]
    key = ".".join(path[:1] + path[2:] if path[0] == "objective" and len(path) > 1 else path)
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest(key)}"
    if first["type"] == "missing":
        return f"'{key}' is not set; give it in the file or as {key}=…"
    if first["type"].startswith("union_tag"):
        given, kinds = first["ctx"].get("tag"), first["ctx"].get("expected_tags", "'lejepa', 'jepa', 'torus'")
        return f"objective.kind={given}: must be one of {kinds}"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}"
    return f"{key}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _nearest(key: str) -> str:
    known = [name for name, _, _ in fields()]
    same_leaf = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_leaf[0] if same_leaf else nearest(key, known, 0.5)
    return f"; did you mean '{near}'?" if near else "; --help lists the fields"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name, of sections in sections."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


FieldOf = tuple[str, FieldInfo, type[BaseModel]]


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[FieldOf]:
    """Every field's dotted name, pydantic description and owner; all kinds of a section one after another."""
    for name, field in model.model_fields.items():
        choices = get_args(field.annotation) or (field.annotation,)
        sections = [c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)]
        for section in sections:
            yield from fields(section, f"{prefix}{name}.")
        if not sections:
            yield f"{prefix}{name}", field, model


def describe_fields() -> str:
    """Name, type, default and doc of every field."""
    lines = []
    for name, field, owner in fields():
        kind = field.annotation
        if name == "objective.kind":
            lines.append(f"\n  {owner.__name__}")
        if get_origin(kind) is Literal:
            shown = "|".join(str(choice) for choice in get_args(kind))
        else:
            shown = kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind)
        default = "required" if field.is_required() else f"default {field.default}"
        lines.append(f"  {name}  ({shown}; {default})\n      {' '.join((field.description or '').split())}")
    return "\n".join(lines)
