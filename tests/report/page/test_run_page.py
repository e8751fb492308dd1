"""dptrain.report.page: the page of a real run, read back and compared with metrics.jsonl and the evaluation."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import zlib
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import assert_one_error, dptrain_here
from data_sets import image_data
from html_pages import Element, read_page
from thread_ranks import on_ranks
from training_runs import configuration, packed

import dptrain
from data_prep.pack import pack
from dptrain.checkpoint.format import read_checkpoint
from dptrain.nn import Flatten, Layer, Linear
from dptrain.parallel.communicator import Communicator
from dptrain.report.html import HtmlPage
from dptrain.report.jsonl import JsonLines
from dptrain.report.page import write
from dptrain.report.page.write import write_report
from dptrain.training.evaluate_checkpoint import CheckpointEvaluation, evaluate_checkpoint
from dptrain.training.loop import train

HOSTILE = ("<script>alert(1)</script>", '"><img src=//evil.example onerror=x>', "a & b", "</td></table>", "&lt;i&gt;")
SHAPE = (3, 6, 7)
RUN = "<b>run & 'co'"
STATIC = ("page.html", "run.html", "compare.html", "page.css", "page.js")


def train_with_report(data: Path, folder: Path, ranks: int = 1, **changes: Any) -> None:
    """A run with the reporters of the command line, but without a console."""
    config = configuration(data, folder, report=True, **changes)

    def program(communicator: Communicator) -> None:
        with closing(JsonLines()) as log, closing(HtmlPage()) as page:
            train(config, communicator, [log, page])

    on_ranks(ranks, program)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set `set` whose classes have hostile names, and a run on it on two ranks."""
    folder = tmp_path_factory.mktemp("page")
    images = replace(image_data(classes=5, shape=SHAPE), classes=HOSTILE, name="<i>set</i>")
    pack(folder / "set", images, shards=4)
    train_with_report(folder / "set", folder / RUN, ranks=2)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Element:
    return read_page(folder / RUN / "report.html")


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RUN / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> CheckpointEvaluation:
    path = folder / RUN / "checkpoints" / "step-00000014.h5"
    return evaluate_checkpoint(read_checkpoint(path), path, folder / "set", Communicator(), predictions=True)


def of(event: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


def section(page: Element, name: str) -> Element:
    return page.one("section", id=name)


def test_nothing_is_loaded_from_elsewhere(page: Element, folder: Path) -> None:
    for element in page.all():
        for name in ("src", "href", "action", "srcset", "poster"):
            assert element.attributes.get(name, "#").startswith(("#", "data:")), element
        assert not [name for name in element.attributes if name.startswith("on")], element
    style = page.one("style").text
    assert "url(" not in style
    assert "@import" not in style
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert (folder / RUN / "report.html").stat().st_size < 200_000


def test_hostile_names_are_text(page: Element) -> None:
    assert page.one("h1").text == RUN
    assert page.one("title").text == RUN
    assert [row[0] for row in section(page, "classes").table("Precision and recall by class")[1:]] == [*HOSTILE]
    assert "<i>set</i>" in page.one("p", class_="subtitle").text
    scripts = [one for one in page.all("script") if one.attributes.get("type") != "application/json"]
    assert [one.text.strip() for one in scripts] == [(Path(write.__file__).parent / "page.js").read_text().strip()]
    assert {one.attributes["src"][:22] for one in page.all("img")} == {"data:image/png;base64,"}


def test_headings_and_tables_have_the_structure_that_a_screen_reader_needs(page: Element) -> None:
    levels = [int(one.name[1]) for one in page.all() if re.fullmatch("h[1-6]", one.name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for table in page.all("table"):
        assert all(cell.attributes["scope"] == "col" for cell in table.one("thead").all("th"))
        for row in table.one("tbody").all("tr"):
            assert row.one("th").attributes["scope"] == "row"
            assert len(row.all()) >= len(table.one("thead").all("th"))
    for image in page.all("img"):
        assert "alt" in image.attributes
    names = [one.attributes["id"] for one in page.all() if "id" in one.attributes]
    assert len(set(names)) == len(names)
    links = [one.attributes["href"][1:] for one in page.one("nav").all("a")]
    assert links == [one.attributes["id"] for one in page.all("section")]


def test_the_figures_are_those_of_metrics_jsonl(page: Element, lines: list[dict[str, Any]]) -> None:
    epochs, steps = of("epoch", lines), of("step", lines)
    last = epochs[-1]
    values = [one.text for one in section(page, "result").all("span", class_="value")]
    assert values[:2] == [f"{100 * last['test_accuracy']:.2f} %", f"{last['test_loss']:.4f}"]
    assert last["params_sha256"] in section(page, "reproduce").text
    head, *rows = section(page, "curves").table("Figures by epoch")
    for row, line in zip(rows, epochs, strict=True):
        found = dict(zip(head, row, strict=True))
        assert (found["epoch"], found["step"]) == (str(line["epoch"]), str(line["step"]))
        assert found["training loss"] == f"{line['loss']:.4f}"
        assert found["test accuracy"] == f"{100 * line['test_accuracy']:.2f} %"
    loss, accuracy = (section(page, "curves").curves(title) for title in ("Loss", "Accuracy"))
    for curves, key in ((loss, "loss"), (accuracy, "accuracy")):
        assert curves["training"]["y"] == [line[key] for line in epochs]
        assert curves["test"]["y"] == [line[f"test_{key}"] for line in epochs]
        assert curves["test"]["x"] == [1, 2]
        assert curves["single batches"]["y"] == [line[key] for line in steps]
        assert curves["single batches"]["steps"] == [line["step"] for line in steps]
    assert section(page, "curves").curves("Learning rate")["learning rate"]["y"] == [line["lr"] for line in steps]


def test_the_time_of_each_rank_is_that_of_metrics_jsonl(page: Element, lines: list[dict[str, Any]]) -> None:
    _, *rows = section(page, "speed").table("Time of the steps of all epochs, by rank")
    assert [row[0] for row in rows] == ["0", "1"]
    for rank, row in enumerate(rows):
        seconds = [line["rank_seconds"][rank] for line in of("epoch", lines)]
        total = sum(sum(one.values()) for one in seconds)
        for cell, kind in zip(row[2:6], ("compute", "data", "waiting", "reduction"), strict=True):
            assert float(cell.removesuffix(" %")) == pytest.approx(
                100 * sum(one[kind] for one in seconds) / total, abs=0.06
            )


def test_matrix_precision_and_recall_are_those_of_the_evaluation(
    page: Element, evaluation: CheckpointEvaluation
) -> None:
    classes = section(page, "classes")
    _, *rows = classes.table("Confusion matrix: a row is a true class, a column a predicted class")
    matrix = np.array([[0 if cell == "·" else int(cell) for cell in row[1:]] for row in rows])
    assert tuple(matrix.sum(axis=1)) == evaluation.class_samples
    assert tuple(matrix.diagonal()) == evaluation.class_correct
    assert matrix.sum() == evaluation.samples
    predictions = evaluation.predictions
    assert predictions is not None
    for number, row in enumerate(classes.table("Precision and recall by class")[1:]):
        found, true = predictions.predicted == number, predictions.labels == number
        right = int((found & true).sum())
        assert row[1] == (f"{100 * right / found.sum():.1f} %" if found.any() else "-")
        assert row[2:] == [f"{100 * right / true.sum():.1f} %", str(true.sum())]


def pixels(png: str) -> np.ndarray:
    """The pixels (H, W, 3) of a PNG in a data URI, by the standard: chunks with their CRC, rows without a filter."""
    content = base64.b64decode(png.removeprefix("data:image/png;base64,"))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        name, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", content, place + 8 + length)[0] == zlib.crc32(name + body)
        chunks[name] = body
        place += 12 + length
    assert [*chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, kind, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, kind, rest) == (8, 2, [0, 0, 0])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_mistakes_are_the_images_of_the_test_split(page: Element, evaluation: CheckpointEvaluation) -> None:
    original = image_data(classes=5, shape=SHAPE).test
    assert evaluation.predictions is not None
    expected = evaluation.predictions.mistakes(24)
    items = section(page, "mistakes").all("li")
    assert len(items) == len(expected) > 3
    for item, index, probability in zip(items, expected.index.tolist(), expected.confidence, strict=True):
        label = HOSTILE[int(original.labels[index])]
        assert f"{100 * probability:.1f} %" in item.text
        assert f"true: {label}" in item.text
        assert item.text.endswith(f"no. {index}")
        image = item.one("img")
        assert np.array_equal(pixels(image.attributes["src"]), original.images[index].transpose(1, 2, 0))
        assert image.attributes["alt"].startswith(f"test sample {index}: {label}, predicted as ")


def test_filters_are_those_of_the_checkpoint(page: Element, folder: Path) -> None:
    checkpoint = read_checkpoint(folder / RUN / "checkpoints" / "step-00000014.h5")
    weight = checkpoint.layouts["parameters"].views(checkpoint.state.parameters)["conv1.weight"]
    images = section(page, "filters").all("img")
    assert len(images) == len(weight) == 3
    for image, kernel in zip(images, weight, strict=True):
        found = pixels(image.attributes["src"]).transpose(2, 0, 1)
        assert np.abs(found - 127.5 - 127.5 * kernel / np.abs(kernel).max()).max() <= 0.51


def test_the_command_writes_the_same_page_again(folder: Path, page: Element, tmp_path: Path) -> None:
    done = dptrain_here("report", folder / RUN, "--output", "page.html", "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"report": "page.html"}
    again = read_page(tmp_path / "page.html")
    for one, other in zip(again.all("section"), page.all("section"), strict=True):
        assert one.text == other.text
    assert [one.attributes["src"] for one in again.all("img")] == [one.attributes["src"] for one in page.all("img")]


def moved(folder: Path, run: Path) -> Path:
    """A copy of the run whose data set is not at its place."""
    shutil.copytree(folder / RUN, run)
    text = (run / "config.toml").read_text().replace(f'"{folder / "set"}"', '"gone/set"')
    (run / "config.toml").write_text(text)
    return run


def test_without_data_set_or_checkpoint_a_sentence_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    run = moved(folder, tmp_path / "run")
    page = read_page(write_report(run))
    for name in ("classes", "mistakes"):
        assert "left out: gone/set: no such folder" in section(page, name).text
    assert section(page, "filters").all("img")
    assert section(page, "curves").curves("Loss")
    assert dptrain_here("report", run, "--data", folder / "set", cwd=tmp_path).returncode == 0
    assert len(section(read_page(run / "report.html"), "mistakes").all("img")) > 3
    other = packed(tmp_path / "other", shape=SHAPE)
    assert dptrain_here("report", run, "--data", other, cwd=tmp_path).returncode == 0
    assert "another data set than that of the run" in section(read_page(run / "report.html"), "classes").text
    shutil.rmtree(run / "checkpoints")
    page = read_page(write_report(run))
    for name in ("classes", "mistakes", "filters"):
        assert "left out: the run has no checkpoint" in section(page, name).text
    assert section(page, "result").all("span", class_="value")
    (run / "config.toml").unlink()
    assert "config.toml: cannot be read" in section(read_page(write_report(run)), "configuration").text


def test_a_run_that_has_just_begun_has_a_page(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / RUN, run)
    whole = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(whole[:4]) + whole[4][:30])
    page = read_page(write_report(run))
    assert "No epoch of this run is finished." in section(page, "result").text
    assert section(page, "curves").curves("Loss")["single batches"]["steps"] == [1, 2, 3]
    (run / "metrics.jsonl").write_text("")
    assert "no figures yet" in section(read_page(write_report(run)), "curves").text


def with_lines(run: Path, changes: dict[str, Any], *more: dict[str, Any]) -> Element:
    """The page of a run after changes to the figures of its first epoch, and with more lines in metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    of("epoch", lines)[0].update(changes)
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
    return read_page(write_report(run))


def test_logged_metrics_are_drawn(folder: Path, tmp_path: Path) -> None:
    run = moved(folder, tmp_path / "run")
    series: dict[str, list[float | None]] = {"<i>recall": [0.25, None, 0.75], "samples": [7, 8, 9]}
    logged = [
        {"event": "metric", "step": step, "epoch": 1, "name": name, "value": value}
        for name, values in series.items()
        for step, value in zip((7, 9, 14), values, strict=True)
    ]
    curves = section(with_lines(run, {}, *logged), "curves")
    assert curves.curves("<i>recall")["<i>recall"]["y"] == [0.25, 0.75]
    assert curves.curves("samples")["samples"]["x"] == pytest.approx([1, 9 / 7, 2])
    assert "metrics were logged" not in curves.text
    many = [{"event": "metric", "step": 7, "epoch": 1, "name": f"m{number}", "value": number} for number in range(30)]
    curves = section(with_lines(run, {}, *many), "curves")
    assert "32 metrics were logged; the first 24 are drawn." in curves.text


def test_the_best_epoch_is_chosen_on_the_validation_split(folder: Path, tmp_path: Path) -> None:
    run = moved(folder, tmp_path / "run")
    result = section(with_lines(run, {"test_accuracy": 0.9876}), "result").text
    assert "Best test accuracy98.76 %epoch 1, chosen on the test split" in result
    result = section(with_lines(run, {"validation_accuracy": 0.75}), "result").text
    assert "Best validation accuracy75.00 %epoch 1, test accuracy 98.76 %" in result
    assert "Best test accuracy" not in result


@pytest.mark.slow
def test_the_code_of_a_model_runs_only_with_model(tmp_path: Path) -> None:
    model = tmp_path / "net.py"
    code = (
        "from dptrain.nn import Flatten, Linear\ndef build(shape, classes):\n    return [Flatten(), Linear(classes)]\n"
    )
    model.write_text(code)
    data, run = packed(tmp_path / "set"), tmp_path / "run"
    train_with_report(data, run, model=f"{model}:build", model_options={})
    assert section(read_page(run / "report.html"), "classes").all("table")  # the run has the predictions already
    kept = run / "model" / "net.py"
    kept.write_text(f"raise SystemError('hostile code ran')\n{code}")
    page = read_page(write_report(run))
    assert "Refusing to run model code" in section(page, "classes").text
    assert "the network has no convolution" in section(page, "filters").text
    assert f"--model {kept}:build" in section(page, "reproduce").text
    assert dptrain_here("report", run, "--model", f"{model}:build", cwd=tmp_path).returncode == 0
    assert section(read_page(run / "report.html"), "classes").all("table")


def test_a_run_of_a_function_in_python_has_no_command(tmp_path: Path) -> None:
    def build(shape: tuple[int, int, int], classes: int) -> list[Layer]:
        return [Flatten(), Linear(classes)]

    data, run_dir = packed(tmp_path / "set"), tmp_path / "run"
    run = dptrain.train(data, model=build, run_dir=run_dir, output="none", batch_size=16, max_steps=3)
    page = read_page(run.folder / "report.html")
    assert "a function of a Python program, so no command" in section(page, "reproduce").text
    assert "--model" not in section(page, "reproduce").text


@pytest.mark.slow
def test_a_report_that_cannot_be_written_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = packed(tmp_path / "set")
    train_with_report(data, tmp_path / "run", max_steps=3)
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "report.html").mkdir()
    capsys.readouterr()
    train_with_report(data, tmp_path / "run")
    words = capsys.readouterr().err
    assert words.startswith("dptrain: the report is not written: ")
    assert words.count("\n") == 1
    assert f"later: dptrain report {tmp_path / 'run'}" in words
    done = dptrain_here("report", tmp_path / "run", cwd=tmp_path)
    assert_one_error(done, "report.html: cannot be written: ", "--output", status=2)
    monkeypatch.setattr(write, "run_page", int)
    train_with_report(data, tmp_path / "other")
    assert "failed: TypeError: " in capsys.readouterr().err
    assert not (tmp_path / "other" / "report.html").exists()


def test_a_run_writes_its_report_unless_it_is_told_not_to(tmp_path: Path) -> None:
    packed(tmp_path / "set")
    words = ["train", "set", "--max-steps", "2", "--batch-size", "16", "--run-dir"]
    done = dptrain_here(*words, "run", cwd=tmp_path)
    assert re.search("^report +run/report.html$", done.stdout, re.MULTILINE)
    read_page(tmp_path / "run" / "report.html")
    done = dptrain_here(*words, "quiet", "--no-report", cwd=tmp_path)
    assert "report" not in done.stdout
    assert not (tmp_path / "quiet" / "report.html").exists()


def test_a_folder_without_a_run_is_one_error(tmp_path: Path) -> None:
    done = dptrain_here("report", tmp_path, cwd=tmp_path)
    assert_one_error(done, "metrics.jsonl: cannot be read: No such file or directory; give the folder of a run")
    assert [*tmp_path.iterdir()] == []
