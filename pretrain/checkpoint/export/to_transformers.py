"""Write a model folder of transformers, for encoders that compute what a Dinov2 does."""

from pathlib import Path
from typing import Any

from pretrain.checkpoint.export.dinov2 import dinov2_config, dinov2_state
from pretrain.checkpoint.export.to_timm import write_json, write_weights
from pretrain.checkpoint.export.trained import Trained
from pretrain.models.description import EncoderDescription

VECTOR = "pooler_output: the class token after the last layer norm (global_pool=token)"


def write(trained: Trained, folder: Path) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors.

    Raises UserError if the encoder computes something else than a Dinov2.
    """
    config = dinov2_config(trained.on_meta, trained.described.image_size)
    write_weights(dinov2_state(trained.state, config, trained.on_meta.no_embed_class), folder)
    write_json(config | {"isotorus": trained.origin(VECTOR)}, folder / "config.json")
    write_json(_preprocessor(trained.described), folder / "preprocessor_config.json")


def _preprocessor(described: EncoderDescription) -> dict[str, Any]:
    """Return the preprocessor that prepares images as our evaluation does.

    It takes the largest centred square, resizes it, and normalises with the run's mean and std.
    """
    size = described.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": described.mean,
        "image_std": described.std,
        "do_convert_rgb": described.channels == 3 and described.channel_names is None,
    }
