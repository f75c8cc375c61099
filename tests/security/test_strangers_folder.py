"""An evaluated folder is somebody else's: no file, store or result that it names or brings is believed."""

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval_suite.inputs import seals
from eval_suite.report import comparison_page
from eval_suite.report.pages import template
from isotorus import foreign_files, mlflow_store
from tests.eval_suite.eval_samples import Outcome, run_other, save_checkpoint
from tests.security.conftest import CANARY, one_line

pytestmark = pytest.mark.usefixtures("no_network")
Evaluate = Callable[..., Outcome]


def holding(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if CANARY.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "mlflow.json"])
def test_a_link_to_a_private_file_is_not_read(evaluate: Evaluate, stranger: Path, tmp_path: Path, name: str):
    private = tmp_path / "private"
    private.write_text(
        json.dumps({"step": 1, CANARY: 1.0, "run_id": "0" * 32, "uri": CANARY, "experiment": ""})
    )
    (stranger / name).unlink(missing_ok=True)
    (stranger / name).symlink_to(private)
    outcome = evaluate(stranger)
    assert outcome.code == 0, outcome.err
    assert not holding(stranger) and CANARY not in outcome.out + outcome.err


@pytest.mark.parametrize("name", ["encoder.json", "encoder.safetensors", ""])
def test_a_checkpoint_is_in_its_run(evaluate: Evaluate, stranger: Path, tmp_path: Path, name: str):
    place = stranger / "checkpoints/step_00000007" / name
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert "is a link that leads out of" in one_line(evaluate(stranger))
    assert not (stranger / "eval").exists()


@pytest.mark.parametrize("name", ["eval", "eval/7", "eval/cache"])
def test_nothing_is_written_through_a_link_out_of_the_run(
    evaluate: Evaluate, stranger: Path, tmp_path: Path, name: str
):
    (tmp_path / "mine").mkdir()
    (stranger / name).parent.mkdir(exist_ok=True)
    (stranger / name).symlink_to(tmp_path / "mine")
    assert "is a link that leads out of" in one_line(evaluate(stranger))
    assert not list((tmp_path / "mine").iterdir())


def test_files_that_wait_to_be_written_through(evaluate: Evaluate, stranger: Path, tmp_path: Path):
    """Results replace links of their names, and so do their temporary files."""
    mine = tmp_path / "mine"
    mine.write_text(CANARY)
    (stranger / "eval/7").mkdir(parents=True)
    for name in ("results.json", "report.html", ".seal", ".writable"):
        (stranger / "eval/7" / name).symlink_to(mine)
        (stranger / f"eval/7/.{name}.{os.getpid()}").symlink_to(mine)
    assert evaluate(stranger).code == 0
    assert mine.read_text() == CANARY and (stranger / "eval/7/results.json").is_file()
    assert not (stranger / "eval/7/results.json").is_symlink()


def test_latest_and_runs_are_siblings(evaluate: Evaluate, stranger: Path, tmp_path: Path):
    save_checkpoint(tmp_path / "other/checkpoints/step_00000009", step=9)
    latest = stranger / "checkpoints/latest"
    latest.unlink()
    latest.symlink_to(tmp_path / "other/checkpoints/step_00000009")
    assert "latest is a link that leads out of" in one_line(evaluate(latest))
    (tmp_path / "strangers").mkdir()
    shutil.move(stranger, tmp_path / "strangers/a")
    (tmp_path / "strangers/b").symlink_to(tmp_path / "other")
    outcome = evaluate(tmp_path / "strangers")
    assert outcome.code == 0 and (tmp_path / "strangers/a/eval/7/results.json").exists()
    assert not (tmp_path / "other/eval").exists()


def test_a_small_file_takes_little_memory(tmp_path: Path):
    (tmp_path / "small").write_text("[1]")
    tracemalloc.start()
    assert foreign_files.read_bytes(tmp_path / "small", most=2**31) == b"[1]"
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    with pytest.raises(foreign_files.Refused, match="more than 2 bytes"):
        foreign_files.read_bytes(tmp_path / "small", most=2)


@pytest.mark.parametrize("kind", ["pipe", "zero", "circle", "folder"])
def test_special_files_do_no_harm(evaluate: Evaluate, stranger: Path, kind: str):
    for name in ("config.yaml", "metrics.jsonl", "mlflow.json", "eval/7/results.json", "eval/7/.seal"):
        file = stranger / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder" and "results" not in name:
            file.mkdir()
        elif kind != "folder":
            file.symlink_to("/dev/zero" if kind == "zero" else file.name)
    outcome = evaluate(stranger)
    assert outcome.code == 0 and "Traceback" not in outcome.err, outcome.err


def test_results_and_features_of_others_are_computed_again(
    evaluate: Evaluate, stranger: Path, tmp_path: Path
):
    assert evaluate(stranger).code == 0
    results, report = (stranger / "eval/7" / name for name in ("results.json", "report.html"))
    written, pages = results.read_text(), report.read_text()
    before = report.stat().st_mtime_ns
    assert evaluate(stranger).code == 0 and report.stat().st_mtime_ns == before  # this user's own are kept

    report.write_text("<script>1</script>")
    assert evaluate(stranger).code == 0 and report.read_text() == pages
    forged = json.loads(written)
    forged["representations"]["pretrained"]["knn"]["auroc"] = 0.125
    results.write_text(json.dumps(forged))
    (stranger / "eval/7/.seal").write_text("0" * 64)
    assert evaluate(stranger).code == 0 and json.loads(results.read_text()) == json.loads(written)

    for file in (stranger / "eval/cache").glob("*.npz"):
        with np.load(file) as kept:
            changed = {name: np.zeros_like(kept[name]) for name in kept.files}
        np.savez(file, **changed)
    shutil.rmtree(stranger / "eval/7")
    assert evaluate(stranger).code == 0 and json.loads(results.read_text()) == json.loads(written)


def test_a_seal_is_of_one_user_s_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, seal = tmp_path / "file", tmp_path / "seal"
    file.write_text("made here")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    seals.write(seal, [file])
    assert seals.holds(seal, [file]) and seals.key_file().stat().st_mode & 0o077 == 0
    shutil.copy(file, tmp_path / "other")
    assert not seals.holds(seal, [tmp_path / "other"])
    file.write_text("changed")
    assert not seals.holds(seal, [file])
    file.write_text("made here")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another user"))
    assert not seals.holds(seal, [file])
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")  # where no key can be kept, nothing is taken over
    seals.write(seal, [file])
    assert not seals.holds(seal, [file])


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "sqlite:////mine/mlflow.db", "file:///mine", "databricks"]
)
def test_a_store_that_a_folder_names_is_not_used(
    evaluate: Evaluate, stranger: Path, monkeypatch: pytest.MonkeyPatch, uri: str
):
    record = {"uri": uri, "experiment": "x", "run_id": "0" * 32}
    (stranger / "mlflow.json").write_text(json.dumps(record))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "the user's own")
    monkeypatch.setattr("isotorus.mlflow_store.connect", lambda *_, **__: pytest.fail("connects"))
    outcome = evaluate(stranger)
    assert outcome.code == 0 and f"give --mlflow {uri}" in " ".join(outcome.out.split()), outcome


def test_a_server_does_not_choose_a_folder_here(tmp_path: Path):
    for place in (str(tmp_path), f"file://{tmp_path}"):
        with pytest.raises(Exception, match="--serve-artifacts"):
            mlflow_store.require_remote_files("https://server", place)
    mlflow_store.require_remote_files("https://server", "mlflow-artifacts:/0/x/artifacts")
    mlflow_store.require_remote_files("sqlite:////mine/mlflow.db", str(tmp_path))


def test_one_damaged_checkpoint_costs_itself_alone(evaluate: Evaluate, stranger: Path, tmp_path: Path):
    (stranger / "checkpoints/step_00000005/encoder.json").write_text("[" * 10**5)
    alone = save_checkpoint(tmp_path / "alone")
    (alone / "encoder.json").unlink()
    outcome = evaluate(stranger, alone, "--every", "1")
    failed = [line for line in outcome.err.splitlines() if line.startswith("failed: ")]
    assert outcome.code == 1 and len(failed) == 2, outcome.err
    assert (stranger / "eval/7/results.json").exists()


def test_names_of_folders_are_no_addresses(tmp_path: Path):
    for name in ("javascript:alert(1)", "//host/x", 'x" onclick="y', "a?b#c%41", "x\udcff"):
        address = comparison_page._address(tmp_path / name / "eval/7", tmp_path)
        assert not set(address) & set(":\"'?#<> \\") and not address.startswith("/")


@pytest.mark.parametrize("page", ["report", "comparison", "layers", "compare", "codes", "winding"])
def test_pages_have_a_content_security_policy(page: str):
    loader = template(page).environment.loader
    source, *_ = loader.get_source(template(page).environment, f"{page}.html.j2")
    base, *_ = loader.get_source(template(page).environment, "base.html.j2")
    assert 'extends "base.html.j2"' in source and "default-src 'none'" in base


def test_one_damaged_checkpoint_costs_itself_alone_in_the_other_commands(
    stranger: Path,
    splits: dict[str, Path],
    tmp_path: Path,
):
    (stranger / "checkpoints/step_00000005/encoder.json").write_text('{"format": 1}')
    few = ["--every", "1", "--data", splits["val"]]
    for arguments, made in (
        (
            ["layers", stranger, *few, "--metrics", "rank", "--images", "10"],
            stranger / "eval/layers/layers.json",
        ),
        (["codes", stranger, *few, "--out", tmp_path / "codes"], tmp_path / "codes/codes.json"),
    ):
        outcome = run_other(*arguments)
        assert outcome.code == 1 and "does not describe an encoder" in outcome.err, outcome.err
        assert made.exists()
    outcome = run_other("winding", stranger, "--data", splits["val"], "--out", tmp_path / "deep/winding")
    assert "has no angles" in one_line(outcome) and not (tmp_path / "deep").exists()
