"""float32 means float32: before anything is computed on a GPU, TF32 is off, whatever turned it on."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eval_suite.inputs import find
from tests.distributed import test_engines

ROOT = Path(__file__).parents[2]
RUN = ROOT / "tests/formats/runs/lejepa"


@pytest.mark.parametrize(
    "start",
    [lambda: test_engines.build({}), lambda: find.find([str(RUN)])[0].pretrained()],
    ids=["training", "evaluation"],
)
def test_tf32_is_off(start: Callable[[], object]):
    try:
        torch.backends.cudnn.allow_tf32 = True  # torch's default
        torch.set_float32_matmul_precision("high")  # as some libraries do
        start()
        assert settings() == [False, False, "highest"]
        assert torch.backends.cudnn.conv.fp32_precision != "tf32"
        assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    finally:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")


def settings() -> list[bool | str]:
    """Return whether convolutions and matrix products of float32 may use TF32, and torch's name for that."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    return [convolutions, products, torch.get_float32_matmul_precision()]


def test_a_container_that_asks_for_tf32_does_not_get_it():
    """The containers of NVIDIA set this variable."""
    code = f"""
import json, warnings
warnings.simplefilter("error")
import torch
from pretrain.models.float32 import exact_float32
{inspect.getsource(settings)}
before = settings()
exact_float32()
print(json.dumps([before, settings()]))
"""
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[True, True, "high"], [False, False, "highest"]]
