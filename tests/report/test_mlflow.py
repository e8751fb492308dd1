"""dptrain.report.mlflow: read back by MLflow from a local SQLite store, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest
from documents import CHECKOUT
from training_runs import flags, packed

READ = """import json, sys
from mlflow import MlflowClient
client = MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("dptrain").experiment_id])
history = {name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
           for name in run.data.metrics}
json.dump({"status": run.info.status, "name": run.info.run_name, "params": run.data.params, "tags": run.data.tags,
           "metrics": history}, sys.stdout)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with MLflow, which is too large for that of the other tests (134 MB, more than a minute)."""
    if named := os.environ.get("DPTRAIN_TEST_MLFLOW_PYTHON"):
        return Path(named)
    folder = tmp_path_factory.mktemp("mlflow") / "env"
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", f"{CHECKOUT}[mlflow]"], check=True)
    return folder / "bin" / "python"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_mlflow_has_the_figures_of_metrics_jsonl_also_of_a_resumed_run(python: Path, tmp_path: Path) -> None:
    data, run_dir = packed(tmp_path / "set"), tmp_path / "run"
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "PYTHONPATH": str(CHECKOUT)}
    environment = os.environ | store

    def run(*arguments: str) -> str:
        command = [str(python), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "failed" not in done.stdout
        return done.stdout

    for steps in (9, 14):
        run("-m", "dptrain", "train", *flags(data, run_dir, max_steps=steps), "--report-to", "mlflow")
    found = json.loads(run("-c", READ))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for curve, event, key in (("train/loss", "step", "loss"), ("test/accuracy", "epoch", "test_accuracy")):
        expected = [[line["step"], line[key]] for line in lines if line["event"] == event]
        assert found["metrics"][curve] == expected
    assert (found["status"], found["name"]) == ("FINISHED", "run")
    assert found["params"]["batch-size"] == "16"
    assert found["tags"]["params_sha256"] == lines[-1]["params_sha256"]


@pytest.mark.long
def test_a_server_that_does_not_answer_does_not_end_the_run(python: Path, tmp_path: Path) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PYTHONPATH": str(CHECKOUT)}
    words = ["-m", "dptrain", "train", *flags(packed(tmp_path / "set"), tmp_path / "run"), "--report-to", "mlflow"]
    done = subprocess.run([python, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("--report-to mlflow failed and reports no more") == 1
