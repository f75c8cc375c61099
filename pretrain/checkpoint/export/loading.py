"""Code that loads an export and makes the vectors of an image, for the model card and docs/export.md."""

from pretrain.checkpoint.export.command import Format
from pretrain.models.description import EncoderDescription

_MODES = {1: "L", 3: "RGB"}
_OPEN = 'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")'
_FROM_IMAGE = {
    "timm": """\
import timm
import torch
from PIL import Image, ImageOps

encoder = timm.create_model("local-dir:{folder}", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder), is_training=False)
{open}
with torch.no_grad():
    vectors = encoder(prepare(image)[None])
""",
    "transformers": """\
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel

encoder = AutoModel.from_pretrained("{folder}").eval()
prepare = AutoImageProcessor.from_pretrained("{folder}")
{open}
with torch.no_grad():
    vectors = encoder(**prepare(image, return_tensors="pt")).pooler_output
""",
}
"""Formats whose folder says how images are prepared."""
_PREPARE = """\
image = ImageOps.fit(image, ({size}, {size}), Image.Resampling.BICUBIC)
pixels = np.asarray(image, np.float32).reshape({size}, {size}, {channels}).transpose(2, 0, 1)[None] / 255"""
_ANY_PIXELS = """\
# Put {channels} channels of your image here{named}: upright, its centred square, brightness from 0 to 1.
pixels = np.random.rand(1, {channels}, {size}, {size}).astype(np.float32)"""
_IMPORTS = {
    "timm": "import numpy as np\nimport timm\nimport torch\n",
    "transformers": "import numpy as np\nimport torch\nfrom transformers import AutoModel\n",
    "onnx": "import numpy as np\nimport onnxruntime\n",
    "torch": "import numpy as np\nimport torch\n",
    "mlflow": "import mlflow\nimport numpy as np\nimport torch\n",
}
_FROM_PIXELS = {
    "timm": """\
encoder = timm.create_model("local-dir:{folder}", pretrained=True).eval()
mean, std = (np.float32(values).reshape(-1, 1, 1) for values in ({mean}, {std}))
with torch.no_grad():
    vectors = encoder(torch.from_numpy((pixels - mean) / std))
""",
    "transformers": """\
encoder = AutoModel.from_pretrained("{folder}").eval()
mean, std = (np.float32(values).reshape(-1, 1, 1) for values in ({mean}, {std}))
with torch.no_grad():
    vectors = encoder(torch.from_numpy((pixels - mean) / std)).pooler_output
""",
    "onnx": """\
session = onnxruntime.InferenceSession("{folder}/model.onnx")
(vectors,) = session.run(None, {{"image": pixels}})
""",
    "torch": """\
encoder = torch.export.load("{folder}/model.pt2").module()
vectors = encoder(torch.from_numpy(pixels))
""",
    "mlflow": """\
encoder = mlflow.pytorch.load_model("models:/{folder}/latest")  # from the store of MLFLOW_TRACKING_URI
vectors = encoder(torch.from_numpy(pixels)).detach().numpy()
the_same = mlflow.pyfunc.load_model("models:/{folder}/latest").predict(pixels)
""",
}


def code(format: Format, described: EncoderDescription, folder: str) -> str:
    """Return Python code that makes `vectors` (1, D) of photo.jpg, or of pixels of other images.

    `folder` is what the folder of the export is called from where the code runs; for `mlflow`, what the
    registry calls the model.
    """
    size, channels = described.image_size, described.channels
    is_photo = channels in _MODES and described.depth != 16 and described.intensity == ["none"]
    # A photo does not state its spacing, and its channels have no names.
    is_photo = is_photo and described.square is None and described.channel_names is None
    opened = _OPEN.format(mode=_MODES[channels]) if is_photo else ""
    words = {"folder": folder, "size": size, "channels": channels, "open": opened}
    words |= {"named": f" ({', '.join(described.channel_names)})" if described.channel_names else ""}
    words |= {"mean": described.mean, "std": described.std}
    if is_photo and format in _FROM_IMAGE:
        return _FROM_IMAGE[format].format(**words)
    images = "from PIL import Image, ImageOps\n" if is_photo else ""
    pixels = f"{opened}\n{_PREPARE}" if is_photo else _ANY_PIXELS
    return f"{_IMPORTS[format]}{images}\n{pixels.format(**words)}\n{_FROM_PIXELS[format].format(**words)}"
