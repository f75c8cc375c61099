"""`isotorus recipes`: list the packaged recipes; `--show NAME` prints one."""

import sys
from pathlib import Path

import isotorus
from isotorus.errors import ArgumentParser, UserError
from isotorus.nearest_name import nearest


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(
        prog="isotorus recipes",
        description="List the packaged recipes, which --config takes by name, or print one of them.",
    )
    parser.add_argument("--show", metavar="NAME", help="print this recipe, as a start for a file of your own")
    options = parser.parse_args(arguments)
    recipes = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_folder().glob("*.yaml"))}
    if options.show is None:
        width = max(map(len, recipes))
        for name, text in recipes.items():
            print(f"{name:{width}}  {summary(text)}")
        print("\nisotorus recipes --show NAME prints one; isotorus init SHARDS writes one for your images")
        return 0
    name = Path(options.show).name.removesuffix(".yaml")
    if name not in recipes:
        near = nearest(name, recipes, 0.5)
        raise UserError(
            f"--show {options.show}: no such recipe"
            + (f"; did you mean {near}?" if near else "; isotorus recipes lists them")
        )
    sys.stdout.write(recipes[name])
    return 0


def summary(text: str) -> str:
    """Return the first sentence of the comment at a recipe's top."""
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    whole = " ".join(comment)
    end = whole.find(". ")
    return whole if end < 0 else whole[:end]


def _folder() -> Path:
    """Return the folder of the recipes, beside this package: ./configs may be the user's own."""
    return Path(isotorus.__file__).parents[1] / "configs"
