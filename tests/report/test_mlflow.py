"""dptrain.report.mlflow: read back by MLflow from a local SQLite store, in an environment of its own."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from documents import CHECKOUT
from other_environments import python_with
from PIL import Image
from training_runs import configuration, finished, flags, packed

from dptrain.report.mlflow import _allowed
from dptrain.report.pictures import pictures

READ = """import base64, json, sys
from mlflow import MlflowClient
client = MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("dptrain").experiment_id])
history = {name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
           for name in run.data.metrics}
def files(folder=""):
    try:
        for one in client.list_artifacts(run.info.run_id, folder):
            yield from files(one.path) if one.is_dir else [one.path]
    except OSError:
        pass
def content(path):
    with open(client.download_artifacts(run.info.run_id, path), "rb") as file:
        return base64.b64encode(file.read()).decode()
json.dump({"status": run.info.status, "name": run.info.run_name, "params": run.data.params, "tags": run.data.tags,
           "metrics": history, "files": {path: content(path) for path in files()}}, sys.stdout)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with MLflow: 134 MB, more than a minute."""
    return python_with("mlflow", tmp_path_factory.mktemp("mlflow") / "env", f"{CHECKOUT}[mlflow]")


def run(python: Path, folder: Path, *arguments: str) -> str:
    """The output of `python` with some arguments, with a store in the folder."""
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": str(CHECKOUT)}
    command = [str(python), *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | store, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("metrics/recall of cat", "metrics/recall of cat"),
        ("metrics/F1 (macro) é", "metrics/F1 _macro_ é"),
        ("metrics/a//b", "metrics_a__b"),
        ("metrics/../b", "metrics_.._b"),
        ("m" * 300, "m" * 250),
    ],
)
def test_names_of_metrics_are_changed_to_what_mlflow_allows(name: str, allowed: str) -> None:
    assert _allowed(name) == allowed


@pytest.mark.long
@pytest.mark.timeout(900)
def test_mlflow_has_the_figures_of_metrics_jsonl_also_of_a_resumed_run(python: Path, tmp_path: Path) -> None:
    data, run_dir = packed(tmp_path / "set"), tmp_path / "run"
    for steps in (9, 14):
        words = flags(data, run_dir, max_steps=steps, report=True)
        assert "failed" not in run(python, tmp_path, "-m", "dptrain", "train", *words, "--report-to", "mlflow")
    found = json.loads(run(python, tmp_path, "-c", READ))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for curve, event, key in (("train/loss", "step", "loss"), ("test/accuracy", "epoch", "test_accuracy")):
        expected = [[line["step"], line[key]] for line in lines if line["event"] == event]
        assert found["metrics"][curve] == expected
    assert (found["status"], found["name"]) == ("FINISHED", "run")
    assert found["params"]["batch-size"] == "16"
    assert found["tags"]["params_sha256"] == lines[-1]["params_sha256"]
    kept = {name: base64.b64decode(content) for name, content in found["files"].items()}
    assert kept.pop("report.html") == (run_dir / "report.html").read_bytes()
    assert {*kept} == {"test/confusion.png", "test/mistakes.png", "network/first_filters.png"}
    for name, picture in pictures(finished(configuration(data, run_dir, report=True))).items():
        with Image.open(io.BytesIO(kept[f"{name}.png"])) as image:
            assert np.array_equal(np.asarray(image), picture)


@pytest.mark.long
def test_a_run_whose_files_cannot_be_kept_has_finished(python: Path, tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("a file where MLflow makes the folder of artifacts")
    words = flags(packed(tmp_path / "set"), tmp_path / "run", report=True)
    printed = run(python, tmp_path, "-m", "dptrain", "train", *words, "--report-to", "mlflow")
    assert printed.count("--report-to mlflow failed and reports no more") == 1
    found = json.loads(run(python, tmp_path, "-c", READ))
    assert (found["status"], found["files"]) == ("FINISHED", {})


@pytest.mark.long
def test_a_server_that_does_not_answer_does_not_end_the_run(python: Path, tmp_path: Path) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PYTHONPATH": str(CHECKOUT)}
    words = ["-m", "dptrain", "train", *flags(packed(tmp_path / "set"), tmp_path / "run"), "--report-to", "mlflow"]
    done = subprocess.run([python, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("--report-to mlflow failed and reports no more") == 1
