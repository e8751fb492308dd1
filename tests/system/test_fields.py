"""dptrain.system.fields: JSON is converted to a dataclass if every value has the type and bounds of its field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from dptrain.system.fields import Bounds, Sha256, Text, from_json


@dataclass(frozen=True)
class Inner:
    number: Annotated[int, Bounds(1, 10)]


@dataclass(frozen=True)
class Outer:
    name: str
    shape: tuple[Annotated[int, Bounds(1)], ...]
    pair: tuple[int, float]
    inner: tuple[Inner, ...]
    hashes: dict[str, Sha256]
    kind: Literal["a", 1]
    flag: bool | None
    note: Annotated[str, Text(5)] = "none"


GOOD: dict[str, Any] = {
    "name": "é",
    "shape": [3, 32],
    "pair": [0, 1],
    "inner": [{"number": 1}, {"number": 10}],
    "hashes": {"x": "0" * 64},
    "kind": 1,
    "flag": None,
}


def test_values_of_the_right_types_become_a_dataclass() -> None:
    found = from_json(Outer, json.loads(json.dumps(GOOD)))
    assert found == Outer("é", (3, 32), (0, 1.0), (Inner(1), Inner(10)), {"x": "0" * 64}, 1, None, "none")
    assert type(found.pair[1]) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 7}, "name is 7, expected text of at most 1,000 characters"),
        ({"name": "x" * 10**6}, "name is 'xxxx"),
        ({"shape": [3, 0]}, f"shape[1] is 0, expected a whole number from 1 to {2**63 - 1}"),
        ({"shape": [True]}, "shape[0] is True, expected a whole number"),
        ({"shape": 3}, "shape is 3, expected a list of at most 65,536 items"),
        ({"pair": [1]}, "pair has 1 items, expected 2"),
        ({"pair": [1.0, 1]}, "pair[0] is 1.0, expected a whole number"),
        ({"pair": [1, float("nan")]}, "pair[1] is nan, expected a finite number"),
        ({"inner": [{"number": 1}, {"number": 11}]}, "inner[1].number is 11, expected a whole number from 1 to 10"),
        ({"inner": [{"number": 1, "more": 2}]}, "the keys of inner[0]: unknown more; expected number"),
        ({"inner": [7]}, "inner[0] is 7, expected a JSON object"),
        ({"hashes": {"x\x1b": "0"}}, r"hashes.x\x1b is '0', expected a SHA-256"),
        ({"hashes": ["x"]}, "hashes is a list of 1 items, expected an object of at most"),
        ({"kind": True}, "kind is True, expected one of ('a', 1)"),
        ({"flag": 0}, "flag is 0, expected true or false"),
        ({"note": "longer"}, "note is 'longer', expected text of at most 5 characters"),
        ({"surplus": 1}, "unknown surplus"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is checked below
        from_json(Outer, GOOD | change)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_a_missing_key_is_an_error_unless_it_has_a_default_value() -> None:
    with pytest.raises(ValueError, match="the keys of the file: missing kind, flag; expected name"):
        from_json(Outer, {key: value for key, value in GOOD.items() if key not in ("kind", "flag")})


def test_unknown_keys_can_be_collected() -> None:
    unknown: list[str] = []
    raw = GOOD | {"later": 1, "inner": [{"number": 2, "\x07": 3}]}
    assert from_json(Outer, raw, unknown=unknown).inner == (Inner(2),)
    assert unknown == ["later", r"inner[0].\x07"]
