"""The training loop as a whole: what it closes when a run fails before its first step."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from isotorus.errors import UserError
from pretrain.config import load_config
from pretrain.preflight import check
from pretrain.train import train


@pytest.fixture(autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_records_are_closed_when_assembling_a_run_fails(recipe: Path, caplog: pytest.LogCaptureFixture):
    """The MLflow mirror starts before corrupt.jsonl is read, and says at its end what it could not send."""
    config = load_config(str(recipe), ["tracking.enabled=true", "tracking.uri=http://127.0.0.1:9"])
    (config.folder / "corrupt.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match="no regular file"):
        train(config, check(config, 1), torch.device("cpu"))
    assert "MLflow at http://127.0.0.1:9 has not taken everything" in caplog.text
