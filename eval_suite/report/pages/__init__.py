"""The pages' templates, and how numbers are written in them."""

from importlib.resources import files
from typing import Any

import jinja2


def template(name: str) -> jinja2.Template:
    """A page's template; what users have named is escaped."""
    folder = str(files("eval_suite.report").joinpath("pages"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.4g}"
    environment.filters["dig"] = _dig
    return environment.get_template(f"{name}.html.j2")


def _dig(values: Any, path: str) -> Any:
    """The entry at a path such as "shape/hubness/skewness", None where there is none."""
    for key in path.split("/"):
        values = values.get(key) if isinstance(values, dict) else None
    return values
