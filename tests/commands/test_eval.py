"""`dptrain eval`: its confusion matrix and its CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_runs import assert_one_error, dptrain_here
from training_runs import CLASSES, TEST, configuration, packed, run

from dptrain.report import confusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set `set` and a run `run` on it."""
    folder = tmp_path_factory.mktemp("eval")
    run(configuration(packed(folder / "set"), folder / "run"))
    return folder


def test_the_matrix_the_csv_and_the_accuracy_agree(folder: Path, tmp_path: Path) -> None:
    done = dptrain_here(
        "eval", folder / "run", folder / "set", "--confusion", "--predictions", "p.csv", "--json", cwd=tmp_path
    )
    found = json.loads(done.stdout)
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    names = found["classes"]
    counts = [[sum((r["class"], r["predicted"]) == (a, b) for r in rows) for b in names] for a in names]
    assert found["confusion"] == counts
    assert sum(map(sum, counts)) == len(rows) == found["samples"] == TEST
    assert sum(counts[number][number] for number in range(CLASSES)) == found["correct"]
    assert [int(row["index"]) for row in rows] == list(range(TEST))


def test_the_matrix_is_printed_for_people(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = dptrain_here("eval", folder / "run", folder / "set", "--confusion", cwd=tmp_path)
    assert "confusion matrix: rows are true classes, columns are predicted classes\n" in done.stdout
    assert "  4 class-4 " in done.stdout
    plain = dptrain_here("eval", folder / "run", folder / "set", "--json", cwd=tmp_path)
    assert "confusion" not in json.loads(plain.stdout)


def test_predictions_that_cannot_be_written_are_one_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = "eval", folder / "run", folder / "set", "--predictions"
    assert_one_error(dptrain_here(*parts, "missing/p.csv", cwd=tmp_path), "no such folder", status=2)
    (tmp_path / "taken").mkdir()
    assert_one_error(dptrain_here(*parts, "taken", cwd=tmp_path), "taken: cannot be written: ", status=2)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    monkeypatch.setattr(confusion, "MOST_CLASSES", CLASSES - 1)
    done = dptrain_here("eval", folder / "run", folder / "set", "--confusion", cwd=tmp_path)
    assert_one_error(done, "5 classes, expected at most 4", status=2)
