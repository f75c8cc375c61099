"""The sections of a training recipe that decide what the encoder sees: data, views, augmentation."""

from pydantic import ConfigDict, Field, ValidationError

from data_pipeline.sources import DataConfig
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from isotorus.errors import UserError
from isotorus.nearest_name import nearest
from isotorus.recipe import read_recipe_file
from isotorus.section import Section, Unfit


class Recipe(Section):
    """The sections of a recipe that the preview uses; all others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    seed: int = Field(0, ge=0, le=2**64 - 1)
    data: DataConfig
    views: ViewsConfig = ViewsConfig()
    augment: AugmentConfig = AugmentConfig()


def read_recipe(config: str | None, path: str, channels: int) -> Recipe:
    """Return the sections of a YAML file or a packaged recipe, with the data set at `path` as the only
    source.

    Without a recipe the defaults are used, with the channels of the images and an order that suits any
    storage. Raises `UserError` for the first error: the key, the given value and what is allowed.
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
        if isinstance(data, dict) and data.get("channels") == "union":
            of_all = DataConfig.model_validate(values["data"])  # `data` has only the set that is shown
            data["channels"] = of_all.channel_names
        return Recipe.model_validate(values | {"data": data})
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    """Describe the first error of a validation in one line."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "value_error" and isinstance(first["ctx"]["error"], Unfit):
        return f"{key}.{first['ctx']['error']}".removeprefix(".")
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest(key)}"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}"
    return f"{key}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _nearest(key: str) -> str:
    """Suggest the known key nearest to a mistyped one, or list all."""
    known = [
        f"{section}.{name}"
        for section, model in (("data", DataConfig), ("views", ViewsConfig), ("augment", AugmentConfig))
        for name in model.model_fields
    ]
    near = nearest(key, known, 0.5)
    return f"; did you mean '{near}'?" if near else f"; known are {', '.join(known)}"
