"""dptrain.report.page.compare: results, differences and curves of several runs on one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_runs import assert_one_error, dptrain_here
from html_pages import Element, read_page
from training_runs import configuration, packed

from dptrain.parallel.communicator import Communicator
from dptrain.report.jsonl import JsonLines
from dptrain.report.page.write import write_comparison
from dptrain.training.loop import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `a`, `b` with two threads, and `c` with another learning rate and hostile name."""
    folder = tmp_path_factory.mktemp("compare")
    data = packed(folder / "set")
    runs: dict[str, dict[str, Any]] = {"a": {}, "b": {"threads": 2}, "<i>c": {"lr": 0.2, "epochs": 3}}
    for name, changes in runs.items():
        log = JsonLines()
        train(configuration(data, folder / name, **changes), Communicator(), [log])
        log.close()
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Element:
    done = dptrain_here("report", "a", "b", "<i>c", "--output", "page.html", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "report  page.html\n")
    return read_page(folder / "page.html")


def test_each_run_has_a_line_with_its_figures(page: Element, folder: Path) -> None:
    head, *rows = page.table("One run a line")
    assert [row[0] for row in rows] == ["a", "b", "<i>c"]
    for row in rows:
        last = json.loads((folder / row[0] / "metrics.jsonl").read_text().splitlines()[-1])
        found = dict(zip(head, row, strict=True))
        assert found["test accuracy"] == f"{100 * last['test_accuracy']:.2f} %"
        assert found["test loss"] == f"{last['test_loss']:.4f}"
        assert found["params_sha256"] == last["params_sha256"][:12]
        assert found["epochs"] == str(last["epoch"])


def test_equal_parameters_are_reported(page: Element) -> None:
    assert "The same parameters, bit for bit: a, b." in page.one("section", id="result").text


def test_only_what_differs_is_listed(page: Element) -> None:
    head, *rows = page.table("Keys and facts that differ")
    assert head == ["", "a", "b", "<i>c"]
    assert sorted(rows) == [["epochs", "2", "2", "3"], ["lr", "0.05", "0.05", "0.2"], ["threads", "1", "2", "1"]]


def test_the_curves_of_all_runs_are_in_one_plot(page: Element, folder: Path) -> None:
    curves = page.curves("Test accuracy")
    assert len({one["style"].split()[0] for one in curves.values()}) == len(curves) == 3
    for name, found in curves.items():
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert found["y"] == [line["test_accuracy"] for line in lines if line["event"] == "epoch"]
        assert found["x"] == [1, 2, 3][: len(found["y"])]


def test_logged_metrics_and_the_best_epochs_are_compared(folder: Path, tmp_path: Path) -> None:
    for name, accuracy in (("a", 0.5), ("b", None)):
        shutil.copytree(folder / name, tmp_path / name)
        path = tmp_path / name / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        first = next(line for line in lines if line["event"] == "epoch")
        first.update(validation_accuracy=accuracy, test_accuracy=0.9876)
        lines.append({"event": "metric", "step": first["step"], "epoch": 1, "name": f"of {name}", "value": 3})
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert dptrain_here("report", "a", "b", cwd=tmp_path).returncode == 0
    page = read_page(tmp_path / "comparison.html")
    head, *rows = page.table("One run a line")
    assert [row[head.index("best accuracy (split)")] for row in rows] == ["50.00 % (validation)", "98.76 % (test)"]
    assert page.curves("of a")["a"]["y"] == page.curves("of b")["b"]["y"] == [3]
    assert page.curves("Validation accuracy")["a"]["y"] == [0.5]


def test_a_metric_of_each_step_is_averaged(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a", tmp_path / "a")
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        for step in range(1, 5001):
            file.write(json.dumps({"event": "metric", "step": step, "epoch": 1, "name": "norm", "value": step}) + "\n")
        for number in range(24):
            file.write(json.dumps({"event": "metric", "step": 7, "epoch": 1, "name": f"m{number}", "value": 1}) + "\n")
    page = read_page(write_comparison([tmp_path / "a", folder / "b"], tmp_path / "page.html"))
    assert page.curves("norm")["a, mean of 10"]["y"][0] == 5.5
    assert "25 metrics were logged; the first 24 are drawn." in page.one("section", id="curves").text


def test_runs_of_the_same_name_and_no_differences(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a", tmp_path / "other" / "a")
    done = dptrain_here("report", folder / "a", tmp_path / "other" / "a", "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"report": "comparison.html"}
    page = read_page(tmp_path / "comparison.html")
    assert [row[0] for row in page.table("One run a line")[1:]] == [str(folder / "a"), str(tmp_path / "other" / "a")]
    assert "environment and versions are the same" in page.one("section", id="configuration").text


def test_flags_for_one_run_are_refused(folder: Path) -> None:
    done = dptrain_here("report", "a", "b", "--data", "set", cwd=folder)
    assert_one_error(done, "--data and --model are for the page of one run", status=2)
    assert_one_error(dptrain_here("report", "a", "set", cwd=folder), "set/metrics.jsonl: cannot be read")
