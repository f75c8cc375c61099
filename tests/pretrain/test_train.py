"""The training loop as a whole: what its first step waits for, and what is closed when a run fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from isotorus.errors import UserError
from pretrain.config import load_config
from pretrain.preflight.check import check
from pretrain.train import train


@pytest.fixture(autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_records_are_closed_when_assembling_a_run_fails(recipe: Path, caplog: pytest.LogCaptureFixture):
    """The MLflow mirror is made before corrupt.jsonl is read, and says at its end what it could not send."""
    config = load_config(str(recipe), ["tracking.enabled=true", "tracking.uri=http://127.0.0.1:9"])
    (config.folder / "corrupt.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match="no regular file"):
        train(config, check(config, 1), torch.device("cpu"))
    assert "MLflow at http://127.0.0.1:9 has not taken everything" in caplog.text


def test_the_first_step_waits_only_for_what_it_needs(recipe: Path, tmp_path: Path):
    """What only MLflow, evaluation, GPUs or other engines need is imported later, or never."""
    code = """
import logging, sys
from pretrain.__main__ import main

class Loaded(logging.Handler):
    def emit(self, record):
        if "from the start to the first step" in record.getMessage():
            print(*sorted(sys.modules), flush=True)

logging.getLogger("pretrain.train").addHandler(Loaded())
sys.exit(main())
"""
    command = ["--config", str(recipe), "steps=2", "tracking.enabled=true"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run = subprocess.run(
        [sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert {"torch", "timm", "pretrain.train"} <= loaded
    slow = {
        "mlflow",
        "pandas",
        "pyarrow",
        "sklearn",
        "matplotlib",
        "deepspeed",
        "torchao",
        "eval_suite",
        "IPython",
    }
    assert not slow & loaded
    assert (tmp_path / "mlflow.db").exists()
