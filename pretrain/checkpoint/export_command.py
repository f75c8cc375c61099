"""The options of `isotorus export RUN DEST`."""

from pathlib import Path

from isotorus.errors import ArgumentParser

_USAGE = {
    "timm": "timm.create_model('local-dir:{dest}', pretrained=True)",
    "transformers": "transformers.AutoModel.from_pretrained('{dest}')(pixel_values).pooler_output",
}
"""Each format, and how the folder is read that `export` writes in it."""


def main(arguments: list[str]) -> int:
    """Run the command; return exit code 0."""
    parser = ArgumentParser(
        prog="isotorus export", description="Write a checkpoint's encoder for timm or transformers."
    )
    parser.add_argument("checkpoint", type=Path, help="a run, a checkpoint folder or its encoder.safetensors")
    parser.add_argument("dest", type=Path, help="the folder to make")
    parser.add_argument("--format", choices=_USAGE, default="timm")
    given = parser.parse_args(arguments)
    # Imported here because it imports torch; a mistake in the arguments is refused before that.
    from pretrain.checkpoint.export import export

    export(given.checkpoint, given.dest, given.format)
    print(f"{given.dest}: {_USAGE[given.format].format(dest=given.dest)}")
    return 0
