"""Formulas of useful time beside simulations, and a short simulated run on the real checkpoint logic."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch.distributed as dist

from benchmarks.planning import month
from isotorus.errors import exit_code
from pretrain.cost import goodput
from pretrain.cost.goodput import Failures
from pretrain.cost.plan_command import main

RUN = Failures(every=20_000, restart=75, stall=2, writing=20)


@pytest.mark.parametrize("interval", [60, 300, 2000])
@pytest.mark.parametrize("restart", [30, 900])
def test_the_useful_share_is_that_of_a_simulation(interval: float, restart: float):
    failures = dataclasses.replace(RUN, restart=restart)
    work = 2000 * failures.every
    found = goodput.simulate(failures, interval, work, seed=0)
    assert failures.useful(interval) == pytest.approx(found, abs=0.005)


def test_no_interval_is_better_than_the_best():
    best = RUN.best_interval()
    assert best == pytest.approx(math.sqrt(2 * RUN.stall * RUN.every), rel=0.02)
    shares = {factor: RUN.useful(factor * best) for factor in (0.25, 0.5, 0.8, 1, 1.25, 2, 4)}
    assert max(shares, key=shares.__getitem__) == 1
    simulated = {factor: goodput.simulate(RUN, factor * best, 4e7, seed=1) for factor in (0.2, 1, 5)}
    assert max(simulated, key=simulated.__getitem__) == 1
    # Where writing takes longer, the next checkpoint has to wait for it.
    assert dataclasses.replace(RUN, writing=1000).best_interval() == 1000


def test_llama_s_rate_and_no_failures():
    # 466 interruptions in 54 days.
    assert goodput.of_run(16384, goodput.LLAMA, 75, 10, None).every == pytest.approx(54 * 86400 / 466)
    never = goodput.of_run(16384, 0, 75, 10, None)
    assert never.useful(never.best_interval()) == 1


def test_each_step_is_once_in_the_history_of_hosts_that_fail_and_return(tmp_path: Path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        cluster = month.Cluster(hosts=16, days=0.3, failures=500, every=30, repair=3600, slow=7200)
        found = month.simulate(tmp_path / "run", cluster, seed=3)
    finally:
        dist.destroy_process_group()
    month.check(found, cluster.every)
    assert found.lost >= 5 and found.back >= 3 and found.slow >= 1
    assert found.lost_steps > 0 and 0.5 < found.useful < 1
    assert len(list((tmp_path / "run/checkpoints").glob("step_*"))) == 2


def test_plan_says_how_often_to_save(capsys: pytest.CaptureFixture[str]):
    given = ["--config", "lejepa_vits14", "encoder.kwargs.depth=2", "--gpus", "256"]

    def failures(*more: str) -> dict:
        assert main([*given, "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)["failures"]

    usual, often, never = failures(), failures("--failures", "100"), failures("--failures", "0")
    assert usual["every_seconds"] == pytest.approx(86400 * 1000 / (goodput.LLAMA * 256))
    assert often["checkpoint_every"] < usual["checkpoint_every"] and often["useful"] < usual["useful"]
    assert usual["useful"] >= usual["useful_as_given"]
    assert never["useful"] == 1
    assert main([*given, "--failures", "100"]) == 0
    assert "Useful share" in capsys.readouterr().out
    assert exit_code(lambda: main([*given, "--failures", "-1"])) == 2
    assert "argument --failures: invalid number of at least 0 value: '-1'" in capsys.readouterr().err
