"""dptrain.checkpoint.format: files are read exactly or refused, and written completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from checkpoints import LAYOUT, LAYOUTS, ORIGIN, layouts_of, refused, resealed, state_of
from data_sets import image_data
from hypothesis import given
from hypothesis import strategies as st
from selection import examples

from data_prep.pack import pack
from dptrain.arrays.layout import Layout
from dptrain.checkpoint.format import USER_BLOCK, checkpoint_bytes, read_checkpoint
from dptrain.checkpoint.state import TrainingState
from dptrain.errors import BrokenCheckpointError, CheckpointError, LaterVersionError
from dptrain.system.durable import write_durably


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000009.h5"
    write_durably(path, checkpoint_bytes(state_of(), ORIGIN, LAYOUTS))
    return path


def scalars(state: TrainingState) -> dict[str, Any]:
    return vars(state.progress)


shapes = st.dictionaries(
    st.from_regex(r"[a-z]{1,6}[0-9]{1,2}\.(weight|bias)", fullmatch=True),
    st.lists(st.integers(1, 5), max_size=4).map(tuple),
    max_size=5,
)


@pytest.mark.slow
@given(
    shapes=shapes,
    seed=st.integers(0, 2**32),
    step=st.integers(0, 2**40),
    epoch_loss=st.floats(allow_nan=False, allow_infinity=False),
    accuracy=st.none() | st.floats(0, 1),
)
@examples(30)
def test_the_state_read_equals_the_state_written_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    step: int,
    epoch_loss: float,
    accuracy: float | None,
) -> None:
    layout = Layout(shapes)
    state = state_of(layout, seed, step=step, epoch_loss=epoch_loss, test_accuracy=accuracy)
    path = tmp_path_factory.getbasetemp() / "round-trip.h5"
    write_durably(path, checkpoint_bytes(state, ORIGIN, layouts_of(layout)))
    found = read_checkpoint(path)
    assert found.state.digest() == state.digest()
    assert scalars(found.state) == scalars(state)
    assert found.origin == ORIGIN
    assert list(found.layouts["parameters"].shapes.items()) == list(layout.shapes.items())


def test_the_identity_of_a_network_includes_its_layers_but_not_their_algorithms() -> None:
    layers = [{"name": "conv1", "type": "Conv2d", "channels": 3}, {"name": "drop1", "type": "Dropout", "rate": 0.1}]
    lines = ("input (2, 8, 8)", "conv1: Conv2d(3) -> (3, 6, 6)", "drop1: Dropout(0.1) -> (3, 6, 6)")
    there = replace(ORIGIN, spec={"layers": layers}, architecture=lines, tuning={"conv1": {"algorithm": "im2col"}})
    assert there.difference(replace(there, tuning={"conv1": {"algorithm": "winograd4"}}, config="lr = 1.0")) == ""
    changed = [{**layers[0], "channels": 4}, layers[1]]
    other = replace(there, spec={"layers": changed}, architecture=(lines[0], "conv1: 4", lines[2]))
    assert there.difference(other) == "it has conv1: Conv2d(3) -> (3, 6, 6), expected conv1: 4"
    hidden = replace(there, spec={"layers": [layers[0], {**layers[1], "rate": 0.2}]})
    assert 'expected {"name": "drop1", "type": "Dropout", "rate": 0.2}' in there.difference(hidden)
    assert "expected nothing" in there.difference(replace(other, spec={}, architecture=lines[:2]))
    for broken in ({"layers": 3}, {"layers": None}, {"input_shape": [2]}):
        assert there.difference(replace(there, spec=broken))


def test_a_resume_takes_the_vectors_of_its_optimizer_and_reports_others(good: Path) -> None:
    checkpoint = read_checkpoint(good)  # its values are any bits
    for vector in checkpoint.state.vectors.values():
        np.nan_to_num(vector, copy=False)
    assert checkpoint.restricted(LAYOUTS, good).notes == ()
    plain = {name: LAYOUTS[name] for name in ("parameters", "buffers")}
    restricted = checkpoint.restricted(plain, good)
    assert list(restricted.state.vectors) == list(plain)
    (note,) = restricted.notes
    assert note == "the momentum of the checkpoint is ignored"
    with pytest.raises(CheckpointError, match=r"it has no first_moment, .* it has: momentum. Give the --optimizer"):
        checkpoint.restricted({"first_moment": LAYOUT}, good)
    with pytest.raises(CheckpointError, match=r"it has momentum \[\('conv1.weight', .*, expected \[\]"):
        checkpoint.restricted({"momentum": Layout({})}, good)


def test_the_same_state_gives_the_same_bytes() -> None:
    assert checkpoint_bytes(state_of(), ORIGIN, LAYOUTS) == checkpoint_bytes(state_of(), ORIGIN, LAYOUTS)


def test_any_hdf5_reader_finds_parameters_and_momentum_in_natural_shapes(good: Path) -> None:
    state = state_of()
    with h5py.File(good, "r") as file:
        for group, flat in ((name, state.vectors[name]) for name in ("parameters", "momentum")):
            assert {name: dataset.shape for name, dataset in file[group].items()} == LAYOUT.shapes
            assert file[f"{group}/linear1.weight"][()].tobytes() == LAYOUT.views(flat)["linear1.weight"].tobytes()
        assert file.attrs["step"] == 9
        assert file.attrs["epoch"] == 1
        assert file.attrs["params_sha256"] == hashlib.sha256(state.parameters.tobytes()).hexdigest()


WITHOUT_H5PY = """
import sys
sys.modules["h5py"] = None
from pathlib import Path
from dptrain.checkpoint.format import read_checkpoint
from dptrain.data.manifest import read_manifest
from dptrain.data.shard import read_shard
checkpoint, folder = map(Path, sys.argv[1:])
assert read_checkpoint(checkpoint).state.step == 9
assert len(read_shard(folder, read_manifest(folder), "train", 0)) == 51
"""


def test_files_are_read_without_h5py(good: Path, tmp_path: Path) -> None:
    """Old files depended on the version of HDF5: one version could not open the files of another."""
    pack(tmp_path / "set", image_data(), shards=2)
    program = [sys.executable, "-c", WITHOUT_H5PY, str(good), str(tmp_path / "set")]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        program,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_header_states_magic_sizes_and_the_hash_of_the_rest(good: Path) -> None:
    content = good.read_bytes()
    index = content[content.index(b'{\n "format"') :]
    sizes = (len(content) - 512).to_bytes(8, "little") + len(index).to_bytes(8, "little")
    assert content[:40] == b"dptrain checkpoint v2\n\0\0" + sizes
    assert content[40:72] == hashlib.sha256(content[:40] + content[512:]).digest()
    assert not any(content[72:512])
    assert json.loads(index)["origin"]["classes"] == list(ORIGIN.classes)


def setting(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(index: Any) -> None:
        for key in path[:-1]:
            index = index[key]
        index[path[-1]] = value

    return edit


def removing(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def edit(index: Any) -> None:
        for key in path[:-1]:
            index = index[key]
        del index[path[-1]]

    return edit


INDEX_EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no object": (lambda index: [index], "the file is a list of 1 items"),
    "other format": (setting("format", value="x"), "format is 'x'"),
    "negative step": (setting("state", "step", value=-1), "state.step is -1, expected a whole number"),
    "step with a point": (setting("state", "step", value=9.0), "state.step is 9.0"),
    "step that is true": (setting("state", "step", value=True), "state.step is True"),
    "step beyond 64 bits": (setting("state", "step", value=10**30), "state.step is 1000000"),
    "missing sum": (removing("state", "epoch_loss"), "state.epoch_loss is missing"),
    "sum that is no number": (setting("state", "epoch_loss", value=float("nan")), "epoch_loss is nan"),
    "sum that is text": (setting("state", "epoch_loss", value="1"), "state.epoch_loss is '1'"),
    "more correct than seen": (setting("state", "epoch_correct", value=33), "its state is inconsistent"),
    "accuracy above 1": (setting("state", "test_accuracy", value=1.5), "its state is inconsistent"),
    "no steps an epoch": (setting("origin", "steps_per_epoch", value=0), "steps_per_epoch is 0"),
    "mean of one channel": (setting("origin", "mean", value=[0.5]), "expected 2 values of each, std above 0"),
    "deviation of 0": (setting("origin", "std", value=[0.0, 1.0]), "expected 2 values of each, std above 0"),
    "a million classes": (
        setting("origin", "classes", value=["x"] * 10**6),
        "a list of 1,000,000 items, expected a list of at most",
    ),
    "two classes of one name": (setting("origin", "classes", value=["x"] * 2), "classes 0 and 1 have the same name"),
    "class of 5 MB": (setting("origin", "classes", value=["x" * 5 * 10**6]), "expected text of at most 1,000"),
    "endless image": (setting("origin", "input_shape", value=[2**30, 2**30, 2]), "image_shape is (1073741824,"),
    "hash of other letters": (setting("origin", "manifest_sha256", value="\x1b[31m"), "expected a SHA-256"),
    "configuration nested deeply": (setting("origin", "config", value="a = " + "[" * 10**5), "nested too deeply"),
    "number of 5,000 digits": (setting("origin", "config", value="a = " + "1" * 5000), "digits"),
    "environment of lists": (setting("origin", "environment", value={"a": []}), "environment.a is a list"),
    "no vectors": (setting("vectors", value={}), "the hash of the parameters is not the one in the file"),
    "no tensors": (
        setting("vectors", value={"parameters": [], "momentum": []}),
        "the hash of the parameters is not the one in the file",
    ),
    "tensor outside": (
        setting("vectors", "parameters", 0, "offset", value=10**9),
        "overlaps another array or lies outside",
    ),
    "tensor in the header": (setting("vectors", "parameters", 0, "offset", value=0), "offset is 0"),
    "tensor in the index": (
        setting("vectors", "momentum", 3, "shape", value=[400]),
        "overlaps another array or lies outside",
    ),
    "tensor over another": (setting("vectors", "parameters", 1, "shape", value=[200]), "overlaps another array"),
    "endless tensor": (
        setting("vectors", "parameters", 0, "shape", value=[2**62, 2**62]),
        "overlaps another array or lies outside",
    ),
    "tensor of no extent": (setting("vectors", "parameters", 0, "shape", value=[0]), "shape[0] is 0"),
    "tensor of 100 axes": (setting("vectors", "parameters", 0, "shape", value=[1] * 100), "dimension"),
    "tensors of one name": (
        setting("vectors", "parameters", 1, "name", value="conv1.weight"),
        "two tensors have the same name",
    ),
    "other parameters": (
        setting("params_sha256", value="0" * 64),
        "the hash of the parameters is not the one in the file",
    ),
}


@pytest.mark.parametrize("edit", INDEX_EDITS)
def test_a_file_with_a_wrong_index_and_correct_hashes_is_one_short_error(edit: str, good: Path) -> None:
    change, words = INDEX_EDITS[edit]
    good.write_bytes(resealed(good.read_bytes(), change))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(good)
    assert words in str(caught.value)
    assert type(caught.value) is CheckpointError  # the file is not damaged, so it is not renamed
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_additions_of_a_later_program_are_ignored_and_reported(good: Path) -> None:
    def edit(index: dict[str, Any]) -> None:
        index["writer"] = "dptrain 7.1"
        index["later\x1b"] = index["state"]["cosmic"] = index["origin"]["planet"] = [1]
        del index["origin"]["tuning"]

    before = read_checkpoint(good)
    good.write_bytes(resealed(good.read_bytes(), edit))
    found = read_checkpoint(good)
    assert (scalars(found.state), found.origin, before.notes) == (scalars(before.state), before.origin, ())
    assert found.notes == (
        "dptrain 7.1 wrote the checkpoint, with later\\x1b, state.cosmic, origin.planet, which is ignored",
    )


def accepted_of(files: Iterable[tuple[int, bytes]], folder: Path, what: str) -> list[int]:
    """The numbers of the files that are accepted; prints how many were refused."""
    refusals = {number: refused(folder / "altered.h5", content) for number, content in files}
    print(f"{sum(refusals.values()):,} of {len(refusals):,} {what} refused")
    return [number for number, was_refused in refusals.items() if not was_refused]


def flipped(content: bytes, byte: int, mask: int) -> bytes:
    changed = bytearray(content)
    changed[byte] ^= mask
    return bytes(changed)


def test_a_change_of_any_byte_of_the_header_is_detected(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    files = ((byte, flipped(content, byte, 0xFF)) for byte in range(USER_BLOCK))
    assert accepted_of(files, tmp_path, "altered header bytes") == []


@pytest.mark.slow
def test_any_single_bit_flip_is_detected(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    bits = np.random.default_rng(20).choice(8 * len(content), 1000, replace=False).tolist()
    files = ((bit, flipped(content, bit // 8, 1 << bit % 8)) for bit in bits)
    assert accepted_of(files, tmp_path, f"bit flips in a file of {len(content):,} bytes") == []


def test_a_file_truncated_anywhere_is_detected(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    ends = {0, 1, 511, 512, 513, len(content) - 1}
    others = np.random.default_rng(21).choice(range(514, len(content) - 1), 200 - len(ends), replace=False).tolist()
    files = ((length, content[:length]) for length in [*ends, *others])
    assert accepted_of(files, tmp_path, "truncations") == []


def test_a_file_with_trailing_bytes_is_detected(good: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "longer.h5", good.read_bytes() + b"\0")


@pytest.mark.parametrize("version", [3, 10, 999])
def test_a_later_version_is_reported_as_such_and_not_as_damage(version: int, good: Path) -> None:
    content = good.read_bytes()
    good.write_bytes(f"dptrain checkpoint v{version}\n".encode().ljust(24, b"\0") + content[24:])
    with pytest.raises(
        LaterVersionError, match=f"version {version}, this program reads versions 1 to 2: a later dptrain"
    ):
        read_checkpoint(good)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w", userblock_size=512) as file:
        file["params"] = [1.0]
    text = tmp_path / "text.h5"
    text.write_text("hello\n" * 500)
    for path in (foreign, text):
        with pytest.raises(CheckpointError, match=r"not a dptrain checkpoint.*; expected a checkpoint \(.h5\) or"):
            read_checkpoint(path)
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "endless.h5").symlink_to("/dev/zero")
    for path in (tmp_path / "missing.h5", tmp_path, tmp_path / "pipe.h5", tmp_path / "endless.h5"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(path)


def test_an_endless_file_with_a_valid_beginning_is_not_read(good: Path) -> None:
    with good.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BrokenCheckpointError, match=r"1,099,511,627,264 bytes after its header"):
        read_checkpoint(good)
    good.unlink()


def test_a_large_file_of_another_kind_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dptrain.system.files.read_bytes", lambda *_: pytest.fail("the whole file is read"))
    (tmp_path / "other.h5").write_bytes(bytes(4096))
    with pytest.raises(BrokenCheckpointError, match="not a dptrain checkpoint"):
        read_checkpoint(tmp_path / "other.h5")
