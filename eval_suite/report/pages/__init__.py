"""The templates of the pages and the formats of their numbers."""

from importlib.resources import files
from typing import Any

import jinja2


def template(name: str) -> jinja2.Template:
    """Return the template of a page; it escapes all values, since users choose some of the names."""
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
    """Return the entry at a path such as "shape/hubness/skewness"; None if there is no such entry."""
    for key in path.split("/"):
        values = values.get(key) if isinstance(values, dict) else None
    return values
