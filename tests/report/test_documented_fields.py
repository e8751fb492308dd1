"""docs/metrics.md: its tables have exactly the fields that real runs write to metrics.jsonl."""

from __future__ import annotations

import json
import math
import re
from contextlib import closing
from typing import Any

import pytest
from documents import CHECKOUT
from training_runs import configuration, packed

from dptrain.health.interruption import NEVER
from dptrain.parallel.communicator import Communicator
from dptrain.report.jsonl import JsonLines
from dptrain.training.events import MetricLogged, RanksLost, RunStarted
from dptrain.training.loop import train

TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "text or null": (str, type(None)),
    "whole number": (int,),
    "number": (float, int),
    "number or null": (float, int, type(None)),
    "seconds": (float, int),
    "object": (dict,),
    "list of text": (list,),
    "list of whole numbers": (list,),
    "list of objects": (list,),
}


def documented() -> dict[str, dict[str, str]]:
    """The type of each field in words, by event."""
    page = (CHECKOUT / "docs" / "metrics.md").read_text(encoding="utf-8")
    sections = re.split(r"^#+ ", page, flags=re.MULTILINE)
    found = {}
    for section in sections:
        if event := re.match(r"Event `(\w+)`", section):
            found[event[1]] = dict(re.findall(r"^\| `([\w.]+)` \| ([\w ]+) \|", section, flags=re.MULTILINE))
    return found


def flat(line: dict[str, Any]) -> dict[str, Any]:
    """The fields of a line, those of an object in it as `object.field` too."""
    objects = [(key, value) for key, value in line.items() if isinstance(value, dict)]
    inner = {f"{key}.{name}": one for key, value in objects for name, one in value.items()}
    return line | inner


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every line of a run with test-time augmentation that is resumed, loses a rank, and logs figures."""
    folder = tmp_path_factory.mktemp("fields")
    data, run_dir = packed(folder / "set", shape=(3, 8, 8)), folder / "run"

    class Keeping(JsonLines):
        def handle(self, event: Any) -> None:
            super().handle(event)
            if isinstance(event, RunStarted):
                self.run = event.run

    for changes in ({"max_steps": 9}, {"tta": "mirror"}):
        with closing(Keeping()) as reporter:
            train(configuration(data, run_dir, **changes), Communicator(), [reporter], NEVER)
            if "tta" in changes:
                reporter.handle(RanksLost(reporter.run, 14, [1], 0.25))
                for value in (0.5, math.nan):
                    reporter.handle(MetricLogged(14, 1, "macro F1", value))
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_exactly_the_documented_fields(lines: list[dict[str, Any]]) -> None:
    tables = documented()
    assert {line["event"] for line in lines} == set(tables)
    for line in lines:
        assert set(flat(line)) == set(tables[line["event"]]), line["event"]


def test_fields_have_the_documented_types(lines: list[dict[str, Any]]) -> None:
    tables = documented()
    for line in lines:
        for name, value in flat(line).items():
            assert type(value) in TYPES[tables[line["event"]][name]], name
