"""A clock that jumps and a host that gets another name between restarts."""

import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.distributed.runs import ENVIRONMENT, ROOT, command, killing, losses, rows, train
from tests.faults.conftest import STEPS, command_or_skip
from tests.recipe import write_recipe


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_run_continues_after_changes_of_clock_and_host(recipe: Path, shards: Path, tmp_path: Path):
    if shutil.which("faketime") is None:
        pytest.skip("there is no faketime (Debian: faketime)")
    command_or_skip("unshare", "--uts", "true")
    folder, uri = tmp_path / "runs/tiny", f"sqlite:///{tmp_path}/mlflow.db"
    tracked = ("tracking.enabled=true", f"tracking.uri={uri}", "checkpoint.every=2")
    train_tiny = command(1, recipe, *STEPS, *tracked)

    for jump, host, newest in (("+0", "node1", 4), ("-400d", "node2", 8), ("+400d", "node3", 12)):
        new_host = ["unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh"]
        in_save = f"event == 'open' and '/.partial_{newest + 2:08d}/' in paths[0]"
        run = subprocess.run(
            [*new_host, "faketime", "-f", jump, *train_tiny],
            cwd=ROOT,
            env=ENVIRONMENT | killing(tmp_path, None, in_save),
            capture_output=True,
            text=True,
        )
        # faketime gives its own code when a signal ends what it runs.
        assert (run.returncode == 0) == (newest == 12), run.stderr
        assert newest == 4 or f"continuing {folder} from step_" in run.stderr
    times = [row["time"] for row in rows(folder)]
    assert max(times) - min(times) > 700 * 86400, "the clock has not jumped"

    (tmp_path / "whole").mkdir()
    done = train(1, write_recipe(shards, tmp_path / "whole"), *STEPS)
    assert done.returncode == 0 and losses(folder) == losses(tmp_path / "whole/runs/tiny")
    client = MlflowClient(uri)
    (only,) = client.search_runs([client.get_experiment_by_name("isotorus").experiment_id])
    steps = sorted(x.step for x in client.get_metric_history(only.info.run_id, "loss"))  # it sorts by time
    assert steps == list(range(1, 13))
    assert only.info.status == "FINISHED"
