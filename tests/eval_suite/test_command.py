"""`python -m eval_suite` makes results from a run, in one process and in two."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.decode import decode
from data_pipeline.transforms.views import center_view
from eval_suite.geometry import rank
from eval_suite.inputs import seals
from eval_suite.usefulness import neighbors
from pretrain.models.config import MLPConfig
from pretrain.models.projector import build_mlp
from tests.eval_suite.eval_samples import CLASSES, KWARGS, ONE, pack, save_checkpoint


def features_by_hand(run: Path, shards: Path) -> np.ndarray:
    """Compute the embeddings with timm alone, one image after another."""
    folder = run / "checkpoints" / "latest"
    model = timm.create_model("vit_tiny_patch16_224", **KWARGS).eval()
    model.load_state_dict(load_file(folder / "encoder.safetensors"), strict=True)
    data = Dataset(shards)
    views = torch.stack([center_view(decode(data.read(i), 3), 32) for i in range(len(data))])
    with torch.inference_mode():
        return model((views / 255 - 0.5) / 0.2).numpy()


def test_results_compare_an_encoder_with_its_baselines(evaluated):
    results = evaluated.results
    assert list(results["representations"]) == ["pretrained", "untrained", "pixels", "handmade"]
    assert list(results["differences"]) == ["untrained", "pixels", "handmade"]
    sets = {row["feature_set"] for row in results["representations"]["handmade"]["probe"]["val"]}
    assert sets == {"all", "hog", "histograms"}
    assert results["reported_on"] == "test"
    assert results["classes"] == sorted(CLASSES)
    assert results["data"]["train"]["samples"] == 44
    assert results["data"]["train"]["labelled"] == 40
    assert results["checkpoint"]["step"] == 7
    assert results["left_out"] == []
    for found in results["representations"].values():
        for method in ("probe", "knn"):
            for score in ("balanced_accuracy", "auroc"):
                low, high = found[method][f"{score}_interval"]
                assert 0 <= low <= found[method][score] <= high <= 1
        assert found["knn"]["k"] in (10, 20)
        assert len(found["rank"]["eigenspectrum"]) == found["width"]
    # The classes differ only in brightness, which raw pixels show.
    assert results["representations"]["pixels"]["probe"]["auroc"] > 0.9
    ours, theirs = (results["representations"][r]["probe"]["auroc"] for r in ("pretrained", "pixels"))
    assert results["differences"]["pixels"]["probe"]["auroc"]["value"] == pytest.approx(ours - theirs)


def test_three_initialisations_are_a_row_each(checkpoint: Path, data, command: Callable):
    options = ["--metrics", "knn,rank", "--k", "3", "--baselines", "untrained", "--json"]
    outcome = command(checkpoint, *data, *options)
    results = json.loads(outcome.out)
    untrained = ["untrained", "untrained-2", "untrained-3"]
    assert list(results["representations"]) == ["pretrained", *untrained]
    assert list(results["differences"]) == untrained
    assert len({results["representations"][name]["rank"]["effective_rank"] for name in untrained}) == 3
    assert outcome.err.count("report.html") == 1


def test_numbers_follow_from_the_checkpoint_that_timm_loads(evaluated, splits: dict[str, Path]):
    x = {name: features_by_hand(evaluated.run, path) for name, path in splits.items()}
    found = evaluated.results["representations"]["pretrained"]
    assert found["rank"]["effective_rank"] == pytest.approx(rank.effective_rank(x["train"]), rel=1e-3)
    labels = {name: Dataset(path).labels for name, path in splits.items()}
    known = labels["train"] >= 0
    predicted = neighbors.knn_classify(
        x["train"][known], labels["train"][known], x["test"], found["knn"]["k"]
    )
    expected = balanced_accuracy_score(labels["test"], predicted)
    assert found["knn"]["balanced_accuracy"] == pytest.approx(expected)


def test_the_terminal_shows_the_table_and_where_the_report_is(evaluated):
    out = evaluated.outcome.out
    for word in ("pretrained", "untrained", "pixels", "linear probe", "k-NN", "report.html"):
        assert word in out
    assert "MLflow" not in out


def test_finished_work_is_not_repeated_unless_asked(run: Path, data, tmp_path: Path, command: Callable):
    quick = [run, *data, "--metrics", "knn,rank", "--baselines", "", "--out", tmp_path]
    first, results = command(*quick), tmp_path / "results.json"
    before, content = (tmp_path / "report.html").stat().st_mtime_ns, results.read_text()
    again = command(*quick)
    assert (again.code, again.out) == (0, first.out)
    assert (tmp_path / "report.html").stat().st_mtime_ns == before
    assert command(*quick, "--force").code == 0
    assert (tmp_path / "report.html").stat().st_mtime_ns > before and results.read_text() == content


@pytest.mark.nightly
def test_the_whole_evaluation_repeats_itself(evaluated, data, command: Callable):
    report = evaluated.run / "eval" / "7" / "report.html"
    before = report.stat().st_mtime_ns
    again = command(evaluated.run, *data, *ONE)
    assert (again.code, again.out) == (0, evaluated.outcome.out)
    assert report.stat().st_mtime_ns == before
    forced = command(evaluated.run, *data, *ONE, "--force")
    assert forced.code == 0
    assert report.stat().st_mtime_ns > before
    # Computing again gives the same results.
    assert json.loads((report.parent / "results.json").read_text()) == evaluated.results


def test_json_goes_to_stdout_alone(evaluated, data, command: Callable):
    outcome = command(evaluated.run, *data, *ONE, "--json")
    assert json.loads(outcome.out) == evaluated.results


def test_features_are_kept_and_replaced_when_the_weights_change(checkpoint: Path, data, command: Callable):
    options = [*data, "--metrics", "rank", "--baselines", "", "--features", "embedding", "--json"]
    first = json.loads(command(checkpoint, *options).out)
    kept = checkpoint / "eval" / "cache"
    stored = sorted(kept.glob("*.npz"))
    assert len(stored) == 3
    assert all(np.load(file).files == ["embedding"] for file in stored)
    # Change the cached features, so that the next metric shows whether it reads them.
    train = next(f for f in stored if first["data"]["train"]["fingerprint"] in f.name)
    np.savez(train.with_suffix(""), embedding=np.zeros((44, 24), np.float32))
    seals.write(train.with_name(f"{train.name}.seal"), [train])
    again = [*options, "--metrics", "rank,shape"]
    stale = json.loads(command(checkpoint, *again).out)
    assert stale["representations"]["pretrained"]["rank"]["effective_rank"] == 0
    forced = json.loads(command(checkpoint, *again, "--force").out)
    assert forced["representations"] == first["representations"]
    weights = load_file(checkpoint / "encoder.safetensors")
    weights["norm.weight"] *= 2
    save_file(weights, checkpoint / "encoder.safetensors")
    fresh = json.loads(command(checkpoint, *options).out)
    assert fresh["representations"]["pretrained"]["rank"]["effective_rank"] > 0
    assert fresh["checkpoint"]["weights_sha256"] != first["checkpoint"]["weights_sha256"]


def test_what_the_loss_shaped_is_measured_too(tmp_path: Path, data, command: Callable):
    described = {"hidden": 16, "layers": 2, "width": 4, "angles": 2}
    folder = save_checkpoint(tmp_path / "torus", projector=described)
    projector = build_mlp(24, MLPConfig(hidden=16, layers=2), 4, seed=3).eval()
    projector[1].running_mean.fill_(0.1)
    save_file(projector.state_dict(), folder / "projector.safetensors")
    options = ["--metrics", "probe,retrieval,rank,graph", "--baselines", "untrained", "--json"]
    options += ONE
    results = json.loads(command(folder, *data, *options).out)
    # The outputs of a head are further representations; angles have retrieval by the winding memory too.
    rows = results["representations"]
    assert list(rows) == ["pretrained", "untrained", "projector", "angles"]
    assert [rows[name]["width"] for name in rows] == [24, 24, 4, 4]
    assert 0 <= rows["angles"]["retrieval"]["memory"]["found_at_10"] <= 1
    assert all("memory" not in rows[name]["retrieval"] for name in ("pretrained", "untrained", "projector"))
    assert list(results["differences"]) == ["untrained"]
    page = (folder / "eval/7/report.html").read_text()
    assert "projector&#39;s output" in page and "torus head&#39;s angles" in page
    geometry = results["geometry"]
    assert {name: found["width"] for name, found in geometry.items()} == {
        "embedding": 24,
        "projector": 4,
        "angles": 4,
        "untrained": 24,
    }
    kept = [np.load(file) for file in (folder / "eval/cache").glob("*.npz")]
    (val,) = [file for file in kept if "projector" in file.files and len(file["projector"]) == 20][:1]
    with torch.inference_mode():
        projected = projector(torch.from_numpy(val["embedding"]))
    np.testing.assert_allclose(val["projector"], projected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(val["angles"].reshape(-1, 2), axis=1), 1, atol=1e-5)
    # Probes choose among the feature sets of the encoder only.
    sets = {row["feature_set"] for row in results["representations"]["pretrained"]["probe"]["val"]}
    assert sets == {"embedding", "patch_mean", "last2"}


def test_without_a_test_split_val_is_reported_as_val(checkpoint: Path, data, command: Callable):
    quick = ["--folds", "0", "--metrics", "knn", "--baselines", "", "--k", "3,5", "--json"]
    outcome = command(checkpoint, *data[:4], *quick)
    results = json.loads(outcome.out)
    assert results["reported_on"] == "val"
    found = results["representations"]["pretrained"]["knn"]
    chosen = next(row for row in found["val"] if row["k"] == found["k"])
    assert found["balanced_accuracy"] == pytest.approx(chosen["balanced_accuracy"])
    page = (checkpoint / "eval" / "7" / "report.html").read_text()
    assert "validation split" in page
    assert "There is no test split" in page


@pytest.mark.parametrize(
    ("labels", "reason"),
    [([""] * 12, "no labels"), ([CLASSES[1]] * 11 + [""], f"of one class, {CLASSES[1]}")],
)
def test_scores_against_labels_are_left_out_with_a_reason(
    checkpoint: Path, tmp_path: Path, command: Callable, labels: list[str], reason: str
):
    shards = pack(tmp_path / "plain", labels, seed=5)
    outcome = command(checkpoint, "--train", shards, "--val", shards, "--baselines", "pixels", "--json")
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    against_labels = {"probe", "minibatch_probe", "knn", "few_shot", "retrieval"}
    assert {entry["metric"] for entry in results["left_out"]} - {"folds"} == against_labels
    assert all(reason in entry["reason"] for entry in results["left_out"])
    assert results["representations"]["pretrained"]["rank"]["effective_rank"] > 0
    assert "probe" not in results["representations"]["pretrained"]


def test_several_checkpoints_have_a_folder_each(tmp_path: Path, run: Path, data, command: Callable):
    other = save_checkpoint(tmp_path / "other", step=9)
    outcome = command(
        *(run, other / "encoder.safetensors", *data, "--metrics", "rank", "--baselines", ""),
        *("--out", tmp_path / "out", "--json"),
    )
    assert [entry["checkpoint"]["step"] for entry in json.loads(outcome.out)] == [7, 9]
    assert (tmp_path / "out" / "other-9" / "report.html").is_file()


def test_two_processes_embed_every_sample_once(checkpoint: Path, tmp_path: Path, data, command: Callable):
    options = [*map(str, data), "--metrics", "rank", "--json", "--batch-size", "3", "--workers", "1"]
    options += ["--baselines", "pixels,handmade"]
    alone = command(checkpoint, *options, "--out", tmp_path / "alone")
    # The features of a second checkpoint with the same weights are in the cache of the first process alone.
    same = save_checkpoint(tmp_path / "same", step=8)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = subprocess.run(
        [
            *(*torchrun, "-m", "eval_suite", str(checkpoint), str(same), *options),
            *("--out", str(tmp_path / "together")),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert together.returncode == 0, together.stderr
    first, second = json.loads(together.stdout)
    assert first["data"] == json.loads(alone.out)["data"]
    assert first["representations"] == second["representations"]
    for file in (tmp_path / "alone" / "cache").glob("*.npz"):
        theirs, ours = np.load(tmp_path / "together" / "cache" / file.name), np.load(file)
        assert theirs.files == ours.files
        for name in ours.files:
            np.testing.assert_allclose(theirs[name], ours[name], atol=1e-5)


def test_results_reach_the_runs_own_mlflow_run_once(tmp_path: Path, data, command: Callable):
    run = tmp_path / "tracked"
    save_checkpoint(run / "checkpoints" / "step_00000007")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("e", str(tmp_path / "artifacts"))).info.run_id
    (run / "mlflow.json").write_text(json.dumps({"uri": uri, "experiment": "e", "run_id": run_id}))
    for _ in range(2):
        outcome = command(run, *data, "--metrics", "knn", "--baselines", "pixels", "--mlflow", uri)
        assert f"mlflow ui --backend-store-uri {uri}" in outcome.out
    name = "eval/pretrained/knn/balanced_accuracy"
    (point,) = client.get_metric_history(run_id, name)
    results = json.loads((run / "eval" / "7" / "results.json").read_text())
    assert (point.step, point.value) == (
        7,
        results["representations"]["pretrained"]["knn"]["balanced_accuracy"],
    )
    assert {Path(a.path).name for a in client.list_artifacts(run_id, "eval/7")} == {
        "results.json",
        "report.html",
    }


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////gone/mlflow.db"])
def test_an_unreachable_store_costs_one_warning(
    tmp_path: Path, run: Path, evaluated, data, command: Callable, uri: str, caplog: pytest.LogCaptureFixture
):
    record = run / "mlflow.json"
    record.write_text(json.dumps({"uri": uri, "experiment": "e", "run_id": "0" * 32}))
    try:
        outcome = command(run, *data, *ONE, "--mlflow", uri)
    finally:
        record.unlink()
    assert outcome.code == 0
    (warning,) = [r.message for r in caplog.records if r.name.startswith("eval_suite")]
    assert uri in warning
    assert "\n" not in warning
    assert not Path("/gone").exists()
