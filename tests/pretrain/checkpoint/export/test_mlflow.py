"""The registry of a real MLflow server has the encoder, and MLflow loads it with the checkpoint's vectors."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from isotorus.errors import exit_code
from pretrain.checkpoint.export.command import main
from tests.mlflow_server import free_port, mlflow_server
from tests.pretrain.checkpoint.export.checkpoints import SMALL, save_checkpoint

pytestmark = pytest.mark.usefixtures("no_trace_log")
VIT = "vit_small_patch14_dinov2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as address:
        yield address


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


def test_a_server_has_it_with_signature_card_and_the_run_of_its_training(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "runs/cells"
    encoder = save_checkpoint(run / "checkpoints/step_00000007", VIT, SMALL)
    (run / "checkpoints/latest").symlink_to("step_00000007")
    client = MlflowClient(server)
    training = client.create_run("0", run_name="cells").info.run_id
    (run / "mlflow.json").write_text(json.dumps({"uri": server, "experiment": "x", "run_id": training}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    for number in ("1", "2"):
        assert main([str(run), "--format", "mlflow"]) == 0
        assert f"model cells, version {number}\n" in capsys.readouterr().out
    version = client.get_model_version("cells", "1")
    assert version.run_id == training and version.tags["step"] == "7" and version.status == "READY"
    assert version.description.startswith("# cells") and "## Load it" in version.description
    assert client.get_run(training).info.status == "RUNNING"  # only the training ends its run

    mlflow.set_tracking_uri(server)
    loaded = mlflow.pyfunc.load_model("models:/cells/1")
    assert [x.shape for x in loaded.metadata.signature.inputs] == [(-1, 3, -1, -1)]
    assert [x.shape for x in loaded.metadata.signature.outputs] == [(-1, 48)]
    for size in (56, 70):
        pixels = np.random.default_rng(size).random((5, 3, size, size), np.float32)
        with torch.no_grad():
            expected = encoder((torch.from_numpy(pixels) - 0.4) / 0.2).numpy()
        found = mlflow.pytorch.load_model("models:/cells/2")(torch.from_numpy(pixels)).detach().numpy()
        for each in (found, loaded.predict(pixels)):
            assert np.abs(each - expected).max() < 1e-4 * np.abs(expected).max()

    Image.new("RGB", (60, 70), "red").save("photo.jpg")
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", version.description, re.DOTALL)[1], names)
    assert names["vectors"].shape == (1, 48) and np.allclose(names["vectors"], names["the_same"])


def test_a_local_store_and_a_folder(tmp_path: Path):
    save_checkpoint(tmp_path / "step", "convnext_atto", {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]})
    out = tmp_path / "out"
    given = [str(tmp_path / "step"), "--format", "mlflow", "--name", "small", "--out", str(out)]
    assert main(given) == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (version,) = client.search_model_versions("name = 'small'")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    assert {"MLmodel", "README.md", "isotorus.json"} <= {path.name for path in out.iterdir()}
    assert mlflow.pyfunc.load_model(str(out)).metadata.signature.inputs.inputs[0].shape == (-1, 3, 56, 56)


def test_what_is_refused(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_checkpoint(tmp_path / "step", VIT, SMALL)
    step, dead = str(tmp_path / "step"), f"http://127.0.0.1:{free_port()}"
    mlflow_format = ["--format", "mlflow", "--out", str(tmp_path / "out")]
    for options, said in (
        ([*mlflow_format, "--mlflow", dead], f"MLflow at {dead} does not answer"),
        ([*mlflow_format, "--mlflow", "http://me:secret@host"], "holds a password"),
        (["--format", "torch", "--out", "x", "--name", "n"], "belong to --format mlflow, not to torch"),
    ):
        assert exit_code(lambda options=options: main([step, *options])) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1, error
        assert [path.name for path in tmp_path.iterdir()] == ["step"]
    # What was made before the registry refused stays.
    bad_name = [step, *mlflow_format, "--mlflow", server, "--name", "a/b"]
    assert exit_code(lambda: main(bad_name)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "a/b" in error and f"the files are in {tmp_path / 'out'}" in error
    assert (tmp_path / "out/MLmodel").exists()
