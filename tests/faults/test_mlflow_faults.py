"""One run with an MLflow server that loses answers, is slow, fails, refuses, dies and comes back.

tests/distributed/test_mlflow.py tests that a missing server stops nothing, and that a killed run is one
MLflow run with each step once.
"""

import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from pretrain.config import flatten
from tests.distributed.runs import Run, losses, rows, train
from tests.faults.proxy import Proxy
from tests.mlflow_server import Server

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]


def test_a_server_with_every_fault_in_turn(recipe: Path, tmp_path: Path):
    server, folder = Server(tmp_path), tmp_path / "runs/tiny"
    server.start()
    with Proxy(server.address) as proxy:
        tracked = ("tracking.enabled=true", f"tracking.uri={proxy.address}")
        endless = ("steps=100000", "optimizer.final_lr_ratio=1", "checkpoint.every=100000", "data.workers=1")
        run = Run(2, recipe, folder, *tracked, *endless)

        def step() -> int:
            return max(losses(folder), default=0)

        def goes_on() -> None:
            """Wait for ten more steps."""
            until = step() + 10
            run.wait_for(lambda: step() >= until)

        client = MlflowClient(server.address)
        run.wait_for(lambda: _newest(client) > 0)
        # Slow: one request waits, and steps are made meanwhile.
        proxy.delay = 20.0
        run.wait_for(lambda: proxy.waiting)
        asked = len(proxy.asked)
        goes_on()
        assert len(proxy.asked) == asked and proxy.waiting, "the server was not slow, or training too"
        proxy.delay = 0.0
        for status, said in ((500, "does not answer"), (401, "refuses the credentials")):
            warnings = run.stderr.count(said)
            proxy.status = status
            run.wait_for(lambda warnings=warnings, said=said: run.stderr.count(said) > warnings)
            goes_on()
            proxy.status = None
            missed = step()
            run.wait_for(lambda missed=missed: _newest(client) > missed)
        warnings = run.stderr.count("does not answer")  # before, as the mirror may notice at once
        server.kill()
        run.wait_for(lambda: run.stderr.count("does not answer") > warnings)
        goes_on()
        server.start()
        missed = step()
        run.wait_for(lambda: _newest(client) > missed)
        # Answers are lost again, so that what was sent is not known to be there.
        warnings = run.stderr.count("does not answer")
        proxy.loses = "log-batch"
        run.wait_for(lambda: run.stderr.count("does not answer") > warnings)
        proxy.loses = None
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.end() == 0, run.stderr
    assert "Traceback" not in run.stderr
    _one_run_with_everything(MlflowClient(server.address), folder, "KILLED")
    server.kill()


def test_a_run_is_created_once_though_the_answer_is_lost(recipe: Path, tmp_path: Path):
    server, folder = Server(tmp_path), tmp_path / "runs/tiny"
    server.start()
    client = MlflowClient(server.address)
    client.create_experiment("isotorus")
    with Proxy(server.address) as proxy:
        proxy.loses = "runs/create"
        tracked = ("tracking.enabled=true", f"tracking.uri={proxy.address}", "steps=100000")
        run = Run(1, recipe, folder, *tracked, "optimizer.final_lr_ratio=1", "data.workers=1")
        run.wait_for(lambda: any("runs/create" in asked for asked in proxy.asked))
        run.wait_for(lambda: "does not answer" in run.stderr)
        proxy.loses = None
        run.wait_for(lambda: _newest(client) > 0)
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.end() == 0, run.stderr
        _one_run_with_everything(client, folder, "KILLED")
        end = max(losses(folder)) + 5
        # The server fails at the end of the run, and answers when the same command runs again.
        proxy.status = 500
        done = train(1, recipe, *tracked, f"steps={end}", "optimizer.final_lr_ratio=1", "data.workers=1")
        assert done.returncode == 0 and "has not taken everything" in done.stderr, done.stderr
        proxy.status = None
        done = train(1, recipe, *tracked, f"steps={end}", "optimizer.final_lr_ratio=1", "data.workers=1")
        assert done.returncode == 0 and "is finished" in done.stderr, done.stderr
        _one_run_with_everything(client, folder, "FINISHED")
    server.kill()


def _newest(client: MlflowClient) -> int:
    """Return the last step whose loss the server has; 0 while there is none."""
    time.sleep(0.5)  # frequent requests would slow the server
    experiment = client.get_experiment_by_name("isotorus")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return max((p.step for r in found for p in client.get_metric_history(r.info.run_id, "loss")), default=0)


def _one_run_with_everything(client: MlflowClient, folder: Path, status: str) -> None:
    (run,) = client.search_runs([client.get_experiment_by_name("isotorus").experiment_id])
    assert run.info.status == status
    for name in ("loss", "data_wait", "grad_norm"):
        history = client.get_metric_history(run.info.run_id, name)
        found = {point.step: point.value for point in history}
        assert len(found) == len(history), f"a step of {name} is there twice"
        assert found == pytest.approx({row["step"]: row[name] for row in rows(folder)}), name
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert set(run.data.params) == {name for name in flatten(config) if not name.startswith("tracking.")}
