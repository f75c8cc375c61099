"""The templates of the pages and the formats of their numbers."""

from importlib.resources import files

import jinja2

from eval_suite.results import dig


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
    environment.filters["points"] = lambda value: f"{100 * value:+.1f}".replace("-", "−")
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.4g}"
    environment.filters["dig"] = dig
    return environment.get_template(f"{name}.html.j2")
