"""The options of `isotorus export RUN --out FOLDER`."""

import argparse
from pathlib import Path
from typing import Literal, get_args

from data_pipeline.dataset.channel_names import channel_list
from isotorus import mlflow_store
from isotorus.errors import ArgumentParser, UserError
from isotorus.secrets import masked
from pretrain.checkpoint.mirror.address import is_address

Format = Literal["timm", "transformers", "onnx", "torch", "mlflow"]
_USAGE = {
    "timm": "timm.create_model('local-dir:{dest}', pretrained=True)",
    "transformers": "transformers.AutoModel.from_pretrained('{dest}')(pixel_values).pooler_output",
    "onnx": "onnxruntime.InferenceSession('{dest}/model.onnx').run(None, {{'image': pixels}})",
    "torch": "torch.export.load('{dest}/model.pt2').module()(pixels)",
}
"""How the folder of each format is read."""


def main(arguments: list[str]) -> int:
    """Run the command; return exit code 0."""
    given = _parse(arguments)
    dest = given.out
    # Imported here because it imports torch; a mistake in the arguments is refused before that.
    from pretrain.checkpoint.export.export import export, register
    from pretrain.checkpoint.mirror.fetch import fetch

    checkpoint = fetch(given.checkpoint)[0] if is_address(given.checkpoint) else Path(given.checkpoint)

    about = {"licence": given.data_license, "channels": given.channels, "head": not given.without_head}
    if given.format == "mlflow":
        uri = mlflow_store.own(given.mlflow)
        print(register(checkpoint, dest, uri, given.name, **about))
        print(
            f"registered in MLflow at {masked(uri)}; the code that loads it is in the version's description"
        )
        return 0
    if checked := export(checkpoint, dest, given.format, **about):
        print(checked)
    print(f"{dest}: {_USAGE[given.format].format(dest=dest)}")
    print(f"{dest / 'README.md'} is the model card, with code that loads the encoder")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; `out` of the result is the folder, however it was named.

    Raises UserError for options that do not go together.
    """
    parser = ArgumentParser(
        prog="isotorus export",
        description="Write a checkpoint's encoder for timm, transformers, ONNX or torch.export, or register "
        "it in MLflow, each with a model card.",
    )
    add = parser.add_argument
    what = "a run, a checkpoint folder, its encoder.safetensors, or the address of a run or a checkpoint in"
    add("checkpoint", help=f"{what} its mirror (s3://…)")
    add("dest", type=Path, nargs="?", help="the folder to make; the same as --out")
    add("--out", type=Path, metavar="FOLDER", help="the folder to make; --format mlflow does not need one")
    add("--format", choices=get_args(Format), default="timm", help="default: %(default)s")
    licence = "licence of the data, for the model card, such as CC-BY-4.0"
    add("--data-license", metavar="TEXT", help=licence)
    of_sets = "for encoders that find channels by name: the channels of the images, in their order"
    add("--channels", metavar="A,B,…", type=channel_list, help=f"{of_sets} (default: all)")
    alone = "after training with labels: export the encoder alone, which gives vectors"
    add("--without-head", action="store_true", help=f"{alone} (transformers: always)")
    add("--name", help="with --format mlflow: what the registry calls the model (default: the run's name)")
    store = "with --format mlflow: the store (default $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)"
    add("--mlflow", metavar="URI", type=mlflow_store.address, help=store)
    given = parser.parse_args(arguments)
    folders = [folder for folder in (given.dest, given.out) if folder is not None]
    if len(folders) > 1 or (not folders and given.format != "mlflow"):
        raise UserError("name the folder to make once: isotorus export RUN --out FOLDER")
    given.out = folders[0] if folders else None
    if given.format != "mlflow" and (given.name or given.mlflow):
        raise UserError(f"--name and --mlflow belong to --format mlflow, not to {given.format}")
    return given
