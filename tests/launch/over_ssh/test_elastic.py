"""Fewer ranks on the same batch, and ranks that are started again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.engines.config import EngineConfig
from tests.distributed.runs import losses, rows
from tests.launch.launched import Launched
from tests.launch.network import Network, network


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("network"), 2) as made:
        yield made


@pytest.mark.parametrize(
    ("batch", "ranks", "micro_batch", "passes"),
    [(16, 4, 4, 1), (16, 3, 4, 2), (16, 3, 6, 1), (16, 2, 4, 2), (16, 1, 4, 4), (16, 3, 1, 5), (3, 3, 8, 1)],
)
def test_fewer_ranks_take_more_micro_batches(batch: int, ranks: int, micro_batch: int, passes: int):
    config = EngineConfig(micro_batch=micro_batch)
    assert config.passes(batch, ranks) == config.on(batch, ranks).accumulation == passes
    assert passes <= batch // ranks  # no rank has an empty one


@pytest.mark.nightly
def test_a_killed_rank_is_started_again_on_two_hosts(nodes: Network, recipe: Path, tmp_path: Path):
    folder = tmp_path / "runs/tiny"
    options = ["--hosts", str(nodes.hostfile()), "--max-restarts", "1"]
    long = ("steps=100", "checkpoint.every=2")
    run = Launched(nodes, tmp_path, *options, "--", "--config", str(recipe), *long)
    run.wait_for(lambda: any(row["step"] > 5 for row in rows(folder)))
    run.ranks(2)[0].kill()
    assert run.end() == 0, run.said
    assert f"continuing {folder} from step_" in run.said
    assert list(losses(folder)) == list(range(1, 101)) and run.nothing_is_left()


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_one_command_a_node_continues_alone_and_adds_the_other_again(
    nodes: Network, recipe: Path, tmp_path: Path
):
    folder = tmp_path / "runs/tiny"
    options = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "9", "--rdzv-backend", "c10d"]
    options += ["--rdzv-endpoint", "node1:29412", "--rdzv-id", "elastic", "--", "--config", str(recipe)]
    options += ["steps=100000", "checkpoint.every=2", "optimizer.final_lr_ratio=1", "stopping.lost=8"]
    first, second = (Launched(nodes, tmp_path, *options, node=i) for i in (1, 2))

    def goes_on() -> None:
        before = max(losses(folder), default=0)
        first.wait_for(lambda: max(losses(folder), default=0) > before + 2)

    first.wait_for(lambda: second.ranks(2))  # the first may have started alone
    goes_on()
    nodes.crash(2)
    goes_on()
    assert second.end() and not second.ranks(2)
    nodes.join(2)
    nodes.start_sshd(2)
    before = first.said.count("continuing")
    second = Launched(nodes, tmp_path, *options, node=2)
    first.wait_for(lambda: first.said.count("continuing") > before and second.ranks(2))
    goes_on()
    second.process.terminate()  # the signal stops all
    assert (second.end(), first.end()) == (0, 0), first.said + second.said
    assert list(losses(folder)) == list(range(1, max(losses(folder)) + 1))
    assert (folder / f"checkpoints/step_{max(losses(folder)):08d}/COMPLETE").exists()
