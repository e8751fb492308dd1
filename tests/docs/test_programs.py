"""The programs of examples/ and the notebook work, and their figures are right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from documents import CHECKOUT
from mpi_runs import mpirun, own_mpi
from nbclient import NotebookClient

import dptrain

FOLDER = CHECKOUT / "examples"
NOTEBOOK = FOLDER / "tour.ipynb"
LARGEST = 60_000  # bytes of the notebook

pytestmark = pytest.mark.slow


def output_of(program: str, folder: Path) -> str:
    """What a program prints; it writes to `folder`."""
    done = subprocess.run(
        [sys.executable, FOLDER / f"{program}.py", folder],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_quickstart_learns_and_prints_the_accuracy_of_its_checkpoint(tmp_path: Path) -> None:
    out = output_of("quickstart", tmp_path)
    run, data = dptrain.Run(tmp_path / "run"), dptrain.DataSet(tmp_path / "shapes")
    images, labels = data.arrays("test")
    predicted = run.load().predict(images)
    correct = sum(name == data.classes[label] for name, label in zip(predicted, labels, strict=True))
    assert f"\n{correct} of {len(labels)} test images are classified correctly\n" in out
    assert correct > 0.15 * len(labels)  # ten classes
    assert [line["epoch"] for line in run.epochs] == [1, 2, 3]
    assert f"\npredicted {predicted[0]}, is {data.classes[labels[0]]}\n" in out


def test_own_arrays_prints_a_confusion_matrix_of_all_test_samples(tmp_path: Path) -> None:
    out = output_of("own_arrays", tmp_path)
    rows = re.findall(r"^ *(dark top|dark left|even) +(\d+) +(\d+) +(\d+)$", out, re.MULTILINE)
    matrix = np.array([[int(count) for count in row[1:]] for row in rows])
    _, labels = dptrain.DataSet(tmp_path / "data").arrays("test")
    np.testing.assert_array_equal(matrix.sum(axis=1), np.bincount(labels))
    assert matrix.trace() > 0.9 * len(labels)


def test_callbacks_log_the_documented_figures_and_end_the_run(tmp_path: Path) -> None:
    out = output_of("callbacks", tmp_path)
    run, data = dptrain.Run(tmp_path / "run"), dptrain.DataSet(tmp_path / "shapes")
    accuracies = [line["validation_accuracy"] for line in run.epochs]
    assert accuracies[-1] >= 0.2 > max([0.0, *accuracies[:-1]])
    assert len(accuracies) < run.config["epochs"]
    assert "stopped by a callback: validation accuracy" in out
    model = run.load()
    last = {line["name"]: line["value"] for line in run.metrics if line["step"] == model.step}
    vector = np.concatenate([values.ravel() for values in model.parameters.values()])
    assert last["weight norm"] == pytest.approx(np.linalg.norm(vector), rel=1e-5)
    images, labels = data.arrays("validation")
    found = model.probabilities(images).argmax(axis=1)
    scores = []
    for label in range(len(data.classes)):  # the harmonic mean of precision and recall
        hits = int(((labels == label) & (found == label)).sum())
        precision, recall = hits / max(1, (found == label).sum()), hits / (labels == label).sum()
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert last["macro F1"] == pytest.approx(np.mean(scores), rel=1e-6)


def test_the_learning_rate_finder_chooses_by_the_validation_split(tmp_path: Path) -> None:
    out = output_of("learning_rate_finder", tmp_path)
    table = {float(rate): loss for rate, loss in re.findall(r"^ +([\d.]+) +([\d.]+)$", out, re.MULTILINE)}
    runs = {rate: dptrain.Run(tmp_path / f"lr-{rate}") for rate in table}
    assert len(runs) >= 3
    for rate, run in runs.items():
        assert run.config["lr"] == rate
        assert table[rate] == f"{run.result['validation_loss']:.4f}"
    best = min(runs, key=lambda rate: runs[rate].result["validation_loss"])
    chosen = dptrain.Run(tmp_path / "chosen")
    assert chosen.config["lr"] == best
    assert f"chosen: {best}, test accuracy after {len(chosen.epochs)} epochs" in out


@pytest.mark.mpi
def test_the_mpi_program_gives_the_same_parameters_on_one_and_two_ranks(tmp_path: Path) -> None:
    hashes = []
    for ranks in (1, 2):
        done = mpirun(own_mpi(), ranks, FOLDER / "mpi_program.py", tmp_path, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(f"ranks: {ranks},") == 1
        hashes += re.findall(r"^params_sha256: (\w{64})$", done.stdout, re.MULTILINE)
        assert len([*tmp_path.glob("runs/*/report.html")]) == ranks
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]


def texts(notebook: Any) -> str:
    """The printed output of all cells."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


def assert_readable(notebook: Any) -> None:
    """No cell has failed, and the output has no carriage returns and no escape sequences, as a live view has."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", output
    assert "\r" not in texts(notebook)
    assert "\x1b" not in texts(notebook)
    assert re.search(r"^epoch 3/3  step \d+  loss", texts(notebook), re.MULTILINE)


def test_the_notebook_is_saved_with_small_readable_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert_readable(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert NOTEBOOK.stat().st_size < LARGEST


def test_the_notebook_runs_in_a_kernel_of_jupyter(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (tmp_path / "examples").mkdir()
    resources = {"metadata": {"path": str(tmp_path / "examples")}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    assert_readable(notebook)
    assert list(map(len, re.findall(r"params_sha256 +(\w+)", texts(notebook)))) == [64]
    assert len(dptrain.Run(tmp_path / "runs" / "tour" / "run").epochs) == 4
    # The last cell shows the number of BLAS threads, which is that of before (the cell asserts it).
    assert re.fullmatch(r"\[\d+(, \d+)*\]", notebook.cells[-2].outputs[0]["data"]["text/plain"])
