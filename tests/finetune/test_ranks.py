"""A fine-tuning on two processes is that of one: mixed images, the score on val and the weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.console import ROOT
from tests.eval_suite.eval_samples import CLASSES, pack, save_checkpoint


@pytest.mark.nightly
def test_two_ranks_learn_what_one_learns(tmp_path: Path):
    train, val = (pack(tmp_path / name, [*CLASSES] * 10, seed=i) for i, name in enumerate(("train", "val")))
    encoder = save_checkpoint(tmp_path / "encoder")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        given = [encoder, train, "--val", val, "--out", tmp_path / name, "--epochs", "3", "--batch-size", "8"]
        options = ["--mixup", "1", "--cutmix", "1", "--workers", "0", "--baselines", "none"]
        command = [sys.executable, *launcher, "-m", "finetune", *given, *options, "tracking.enabled=false"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "encoder.safetensors") for name in ("one", "two"))
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, two[key], rtol=1e-3, atol=1e-4)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    curves = [each["scores"]["finetuned"]["val_curve"] for each in results]
    assert curves[0] == curves[1]
