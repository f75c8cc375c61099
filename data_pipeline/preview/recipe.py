"""The sections of a training recipe that decide what the encoder sees: data, views, augmentation."""

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from data_pipeline.sources import DataConfig
from data_pipeline.transforms.augment import AugmentConfig
from data_pipeline.transforms.views import ViewsConfig
from isotorus.errors import UserError
from isotorus.names import nearest
from isotorus.recipe import read_recipe_file


class Recipe(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)  # sections of training alone are not checked

    seed: NonNegativeInt = 0
    data: DataConfig
    views: ViewsConfig = ViewsConfig()
    augment: AugmentConfig = AugmentConfig()


def read_recipe(config: str | None, path: str, channels: int) -> Recipe:
    """The sections of a YAML file, or of a packaged recipe by name, on the data set at `path` alone.

    Without one, the defaults, as many channels as the images have, and an order that any store allows.
    Raises UserError for the first thing wrong: the key, what was given, what is allowed.
    """
    values = read_recipe_file(config) if config else {"data": {"channels": channels, "order": "windowed"}}
    for key in values:
        near = nearest(str(key), Recipe.model_fields, 0.75)
        if near and near != key:
            raise UserError(f"unknown key '{key}'; did you mean '{near}'?")
    data = values.get("data") or {}
    if isinstance(data, dict):
        data = {k: v for k, v in data.items() if k != "sources"} | {"path": path}
    try:
        return Recipe.model_validate(values | {"data": data})
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest(key)}"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}"
    return f"{key}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _nearest(key: str) -> str:
    known = [
        f"{section}.{name}"
        for section, model in (("data", DataConfig), ("views", ViewsConfig), ("augment", AugmentConfig))
        for name in model.model_fields
    ]
    near = nearest(key, known, 0.5)
    return f"; did you mean '{near}'?" if near else f"; known are {', '.join(known)}"
