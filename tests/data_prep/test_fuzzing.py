"""Readers of formats that others write: any bytes are read, or refused by one line; nothing else is raised.

pytest -m long tests/data_prep/test_fuzzing.py -rP      atheris, 2 minutes for each format
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import struct
import subprocess
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import CHECKOUT
from forging import forged_bytes, forged_json
from fuzz_targets import TARGETS, ManifestJson, Target
from hypothesis import given, settings
from hypothesis import strategies as st

QUICK = settings(deadline=None, max_examples=50)
SECONDS = 120


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {name: make(tmp_path_factory.mktemp("fuzz") / name) for name, make in TARGETS.items()}


@pytest.mark.parametrize("name", TARGETS)
def test_the_inputs_that_are_changed_are_valid(name: str, targets: dict[str, Target]) -> None:
    assert all(targets[name].accepts(seed) for seed in targets[name].seeds)


@pytest.mark.parametrize("name", TARGETS)
@given(choice=st.integers(0, 7), content=st.binary(max_size=100))
@QUICK
def test_any_bytes_are_read_or_refused(name: str, choice: int, content: bytes, targets: dict[str, Target]) -> None:
    targets[name].accepts(bytes([choice]) + content)


@pytest.mark.parametrize("name", TARGETS)
@given(number=st.integers(0, 99), draw=st.integers(0, 2**32))
@QUICK
def test_changed_valid_bytes_are_read_or_refused(name: str, number: int, draw: int, targets: dict[str, Target]) -> None:
    """Bits, bytes, whole numbers and pieces."""
    seeds = targets[name].seeds
    seed = seeds[number % len(seeds)]
    targets[name].accepts(seed[:1] + forged_bytes(seed[1:], random.Random(draw)))


NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 255, 2**16, 2**31, 2**32 - 1, 2**63, 2**64, 16**5000])
IDX = st.builds(
    lambda number, axes, lengths, content: (
        bytes([number]) + bytes((0, 0, 8, axes)) + struct.pack(f">{len(lengths)}I", *lengths) + content
    ),
    st.integers(0, 3),
    st.integers(0, 4),
    st.lists(NUMBERS.map(lambda number: abs(number) % 2**32), max_size=4),
    st.binary(max_size=40),
)
NPZ = st.builds(
    lambda number, kind, fortran, shape, content: bytes([number]) + npy(kind, fortran, shape) + content,
    st.integers(1, 4),
    st.sampled_from(["|u1", "<i8", "<u8", "|b1", "|O", "<f4", "(2,)|u1", "|S0", "|V9", "nonsense", "i1,i1"]),
    st.booleans(),
    st.lists(NUMBERS, max_size=4),
    st.binary(max_size=40),
)


def npy(kind: str, fortran: bool, shape: list[int]) -> bytes:
    """The start of a .npy file; a number that Python does not print is written in hexadecimal."""
    lengths = "".join(f"{hex(length)}, " for length in shape)
    header = f"{{'descr': '{kind}', 'fortran_order': {fortran}, 'shape': ({lengths})}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.binary(max_size=9),
    st.sampled_from([1e300, "text", [[[7]]], {b"data": 7}]),
    st.sampled_from([np.zeros((1, 3072), np.uint8), np.zeros((1, 3072)), np.zeros(3, object), np.uint8(3)]),
)
VALUES = st.one_of(LEAVES, st.lists(LEAVES, max_size=3), st.tuples(LEAVES, LEAVES))
CIFAR = st.builds(
    lambda number, value, protocol: bytes([number]) + pickle.dumps(value, protocol),
    st.integers(3, 5),
    st.dictionaries(
        st.sampled_from([b"data", b"labels", b"label_names", "data", 1, (1, (2, 3)), None]), VALUES, max_size=3
    ),
    st.integers(0, 5),
)
CELLS = st.sampled_from(
    [
        "a.png",
        "b.png",
        "a.png/x",
        "",
        " ",
        "cat",
        "0",
        "train",
        "test",
        "val",
        "\0",
        "\x1b[31m",
        "é" * 300,
        "../..",
        "path",
    ]
)
CSV = st.builds(
    lambda choice, rows, quote, end, encoding: (
        bytes([choice]) + end.join(",".join(f"{quote}{cell}{quote}" for cell in row) for row in rows).encode(encoding)
    ),
    st.integers(0, 1),
    st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=5),
    st.sampled_from(["", '"', "'"]),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin1"]),
)


@pytest.mark.parametrize(("name", "inputs"), [("idx", IDX), ("npz", NPZ), ("cifar", CIFAR), ("csv", CSV)])
@given(data=st.data())
@QUICK
def test_files_of_odd_parts_are_read_or_refused(
    name: str, inputs: st.SearchStrategy[bytes], data: Any, targets: dict[str, Target]
) -> None:
    targets[name].accepts(data.draw(inputs))


@given(draw=st.integers(0, 2**32))
@settings(deadline=None, max_examples=80)
def test_manifests_of_odd_values_are_read_or_refused(draw: int, targets: dict[str, Target]) -> None:
    target = targets["manifest"]
    assert isinstance(target, ManifestJson)
    text = forged_json(json.loads(target.manifest), random.Random(draw))
    target.accepts(b"\0" + text.encode("utf-8", "surrogatepass"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with atheris, which only Linux on x86-64 has as a wheel."""
    if named := os.environ.get("DPTRAIN_TEST_FUZZ_PYTHON"):
        return Path(named)
    folder = tmp_path_factory.mktemp("atheris") / "env"
    venv.create(folder, with_pip=True)
    command = [str(folder / "bin/python"), "-m", "pip", "install", "-q", f"{CHECKOUT}[fuzz]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(
            f"atheris cannot be installed: make an environment by pip install '.[fuzz]', and name its Python in "
            f"DPTRAIN_TEST_FUZZ_PYTHON\n{done.stderr}"
        )
    return folder / "bin" / "python"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TARGETS)
def test_a_fuzzer_that_is_guided_by_coverage_finds_no_fault(name: str, python: Path, tmp_path: Path) -> None:
    command = [str(python), str(CHECKOUT / "tests" / "fuzz_program.py"), name, str(SECONDS), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"the input is in {tmp_path}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    figures = json.loads((tmp_path / "figures.json").read_text())
    (end,) = re.findall(r"DONE +cov: (\d+) .*exec/s: (\d+)", done.stderr)
    print(f"{name}: {figures}, {end[0]} branches reached, {end[1]} inputs a second")
    assert figures["read"] > 10
    assert figures["refused"] > 1000
