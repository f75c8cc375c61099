"""The options of `isotorus export RUN --out FOLDER`."""

from pathlib import Path
from typing import Literal, get_args

from isotorus.errors import ArgumentParser, UserError

Format = Literal["timm", "transformers", "onnx", "torch"]
_USAGE = {
    "timm": "timm.create_model('local-dir:{dest}', pretrained=True)",
    "transformers": "transformers.AutoModel.from_pretrained('{dest}')(pixel_values).pooler_output",
    "onnx": "onnxruntime.InferenceSession('{dest}/model.onnx').run(None, {{'image': pixels}})",
    "torch": "torch.export.load('{dest}/model.pt2').module()(pixels)",
}
"""Each format, and how the folder is read that `export` writes in it."""


def main(arguments: list[str]) -> int:
    """Run the command; return exit code 0."""
    parser = ArgumentParser(
        prog="isotorus export",
        description="Write a checkpoint's encoder for timm, transformers, ONNX or torch.export.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a run, a checkpoint folder or its encoder.safetensors")
    add("dest", type=Path, nargs="?", help="the folder to make; the same as --out")
    add("--out", type=Path, metavar="FOLDER", help="the folder to make")
    add("--format", choices=get_args(Format), default="timm", help="default: %(default)s")
    text = "licence of the data, for the model card, such as CC-BY-4.0"
    add("--data-license", metavar="TEXT", help=text)
    given = parser.parse_args(arguments)
    if (given.dest is None) == (given.out is None):
        raise UserError("name the folder to make once: isotorus export RUN --out FOLDER")
    dest = given.out or given.dest
    # Imported here because it imports torch; a mistake in the arguments is refused before that.
    from pretrain.export.export import export

    if checked := export(given.checkpoint, dest, given.format, given.data_license):
        print(checked)
    print(f"{dest}: {_USAGE[given.format].format(dest=dest)}")
    return 0
