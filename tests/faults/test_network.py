"""A host that is cut off from the network in the middle of a step, and comes back."""

import json
from pathlib import Path

import pytest

from tests.distributed.runs import losses, rows, train
from tests.launch.launched import Launched
from tests.launch.network import network

STEPS, EVERY = 60, 2
OPTIONS = (f"steps={STEPS}", f"checkpoint.every={EVERY}", "engine.micro_batch=2", "optimizer.lr=1e-5")


def slow_disk(folder: Path) -> dict[str, str]:
    """Return an environment in which rank 0 publishes checkpoints slowly (2 s), so that the run lasts."""
    hook = folder / "slow/sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text(
        "import os, sys, time\n"
        "def slow(event, arguments):\n"
        "    if event == 'os.rename' and '/.partial_' in os.fspath(arguments[0]):\n"
        "        time.sleep(2)\n"
        "if os.environ.get('RANK') == '0':\n"
        "    sys.addaudithook(slow)\n"
    )
    return {"PYTHONPATH": str(hook.parent)}


def step(folder: Path) -> int:
    return max((row["step"] for row in rows(folder)), default=0)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_host_cut_off_is_left_out_and_added_again(recipe: Path, tmp_path: Path, capsys):
    folder = tmp_path / "runs/tiny"
    (tmp_path / "alone").mkdir()
    assert train(1, recipe, *OPTIONS, f"runs={tmp_path / 'alone'}").returncode == 0
    undisturbed = losses(tmp_path / "alone/tiny")
    with network(tmp_path, 3) as nodes:
        elastic = ["--hosts", str(nodes.hostfile()), "--nnodes", "1:3", "--patience", "6"]
        more = ["checkpoint.asynchronous=false", "stopping.grace=10"]
        recipe_and_more = ["--", "--config", str(recipe), *OPTIONS, *more]
        run = Launched(nodes, tmp_path, *elastic, *recipe_and_more, **slow_disk(tmp_path))
        run.wait_for(lambda: step(folder) >= 5)
        assert "going on without" not in run.said and len(run.ranks(3)) == 1
        nodes.cut(3)
        reached = step(folder)
        until_on = run.wait_for(lambda: step(folder) > reached + 1 and len(run.ranks(2)) == 1)
        went_on_from = int(run.said.rpartition("from step_")[2][:8])
        until_clean = run.wait_for(lambda: not run.ranks(3))
        nodes.join(3)
        until_back = run.wait_for(lambda: f"continuing {folder}" in run.said.partition("node3 is back")[2])
        last = step(folder)
        run.wait_for(lambda: step(folder) > last + 2 or step(folder) == STEPS)
        assert run.end() == 0, run.said
        assert run.nothing_is_left()
    found = losses(folder)
    assert list(found) == list(range(1, STEPS + 1))
    for number, loss in undisturbed.items():
        assert found[number] == pytest.approx(loss, rel=1e-5 if number <= reached + 4 else 1e-4), number
    assert 0 <= reached - went_on_from <= EVERY + 1
    measured = {
        "fault": "a host cut off from the network, and back",
        "steps_lost": reached - went_on_from,
        "seconds_until_training_went_on": round(until_on, 1),
        "seconds_until_the_host_was_clean": round(until_clean, 1),
        "seconds_from_link_up_to_training_with_it": round(until_back, 1),
    }
    with capsys.disabled():
        print("\n" + json.dumps(measured))
