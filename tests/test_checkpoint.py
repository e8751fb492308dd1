"""dptrain.training.checkpoint: to the bit or refused, and written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.errors import CheckpointError
from dptrain.nn.params import ParamLayout
from dptrain.training import checkpoint as checkpoint_module
from dptrain.training.checkpoint import (
    HEADER,
    MAGIC,
    USER_BLOCK,
    Origin,
    checkpoint_bytes,
    read_checkpoint,
)
from dptrain.training.durable import write_durably
from dptrain.training.state import TrainingState

SHAPES = {"conv1.weight": (3, 2, 3, 3), "conv1.bias": (3,), "linear1.weight": (5, 27), "linear1.bias": (5,)}
LAYOUT = ParamLayout(SHAPES)
ORIGIN = Origin(
    config='lr = 0.05\nmodel = "convnet"\n',
    architecture=("input(2, 6, 6)", "conv1: Conv2d(3, 3, padding=1)"),
    input_shape=(2, 6, 6),
    classes=("cat", "dog", "épée", "d", "e"),
    data_name="random",
    manifest_sha256="ab" * 32,
    steps_per_epoch=7,
    environment={"numpy": "2.0", "cpu": 'a "CPU"'},
)


def vector(size: int, seed: int) -> np.ndarray:
    """Any bits at all: infinities, every kind of NaN, denormal numbers, both zeros."""
    bits = np.random.default_rng(seed).integers(0, 2**32, size, dtype=np.uint32)
    bits[: min(size, 4)] = [0x7FC00001, 0xFF800000, 0x80000000, 0x00000001][: min(size, 4)]
    return bits.view(np.float32)


def state_of(layout: ParamLayout = LAYOUT, seed: int = 0, **changes: Any) -> TrainingState:
    values = {"step": 9, "samples_seen": 133, "epoch_loss": 0.1 + 0.2, "epoch_correct": 4, "epoch_samples": 32}
    return TrainingState(vector(layout.size, seed), vector(layout.size, seed + 1), **(values | changes))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000009.h5"
    write_durably(path, checkpoint_bytes(state_of(), ORIGIN, LAYOUT))
    return path


def scalars(state: TrainingState) -> dict[str, Any]:
    return {name: value for name, value in vars(state).items() if not isinstance(value, np.ndarray)}


shapes = st.dictionaries(
    st.from_regex(r"[a-z]{1,6}[0-9]{1,2}\.(weight|bias)", fullmatch=True),
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=5,
)


@given(
    shapes=shapes,
    seed=st.integers(0, 2**32),
    step=st.integers(0, 2**40),
    epoch_loss=st.floats(allow_nan=False),
    accuracy=st.none() | st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_what_is_read_is_what_was_written_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    step: int,
    epoch_loss: float,
    accuracy: float | None,
) -> None:
    layout = ParamLayout(shapes)
    state = state_of(layout, seed, step=step, epoch_loss=epoch_loss, test_accuracy=accuracy)
    path = tmp_path_factory.getbasetemp() / "round-trip.h5"
    write_durably(path, checkpoint_bytes(state, ORIGIN, layout))
    found = read_checkpoint(path)
    assert found.state.parameters.tobytes() == state.parameters.tobytes()
    assert found.state.momentum.tobytes() == state.momentum.tobytes()
    assert scalars(found.state) == scalars(state)
    assert found.origin == ORIGIN
    assert list(found.layout.shapes.items()) == list(layout.shapes.items())


def test_the_same_state_gives_the_same_bytes() -> None:
    assert checkpoint_bytes(state_of(), ORIGIN, LAYOUT) == checkpoint_bytes(state_of(), ORIGIN, LAYOUT)


def test_any_hdf5_reader_finds_parameters_and_momentum_in_natural_shapes(good: Path) -> None:
    state = state_of()
    with h5py.File(good, "r") as file:
        for group, flat in (("params", state.parameters), ("momentum", state.momentum)):
            assert {name: dataset.shape for name, dataset in file[group].items()} == LAYOUT.shapes
            assert file[f"{group}/linear1.weight"][()].tobytes() == LAYOUT.views(flat)["linear1.weight"].tobytes()
        assert file.attrs["step"] == 9
        assert file.attrs["epoch"] == 1
        assert file.attrs["params_sha256"] == hashlib.sha256(state.parameters.tobytes()).hexdigest()


def test_the_header_states_magic_length_and_hash_of_the_rest(good: Path) -> None:
    content = good.read_bytes()
    body = content[512:]
    length, digest = len(body).to_bytes(8, "little"), hashlib.sha256(body).digest()
    assert content[:64] == b"dptrain checkpoint v1\n\0\0" + length + digest
    assert not any(content[64:512])


LONGEST = 5.0  # seconds to refuse a file; some milliseconds are usual, a hang is what is looked for


def refused(path: Path, content: bytes) -> bool:
    """Is this content refused as a checkpoint, by an error that names the file? Others are not caught."""
    path.write_bytes(content)
    started = time.monotonic()
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        return str(path) in str(error) and time.monotonic() - started < LONGEST
    return False


def accepted_of(files: Iterable[tuple[int, bytes]], folder: Path, what: str) -> list[int]:
    """Which of the numbered files are not refused; how many were is printed."""
    refusals = {number: refused(folder / "altered.h5", content) for number, content in files}
    print(f"{sum(refusals.values()):,} of {len(refusals):,} {what} refused")
    return [number for number, was_refused in refusals.items() if not was_refused]


def flipped(content: bytes, byte: int, mask: int) -> bytes:
    changed = bytearray(content)
    changed[byte] ^= mask
    return bytes(changed)


def test_any_byte_of_the_header_that_differs_is_noticed(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    files = ((byte, flipped(content, byte, 0xFF)) for byte in range(USER_BLOCK))
    assert accepted_of(files, tmp_path, "altered header bytes") == []


def test_any_single_bit_that_flips_is_noticed(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    bits = np.random.default_rng(20).choice(8 * len(content), 2000, replace=False).tolist()
    files = ((bit, flipped(content, bit // 8, 1 << bit % 8)) for bit in bits)
    assert accepted_of(files, tmp_path, f"bit flips in a file of {len(content):,} bytes") == []


def test_a_file_cut_short_anywhere_is_noticed(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    ends = {0, 1, 511, 512, 513, len(content) - 1}
    others = np.random.default_rng(21).choice(range(514, len(content) - 1), 200 - len(ends), replace=False).tolist()
    files = ((length, content[:length]) for length in [*ends, *others])
    assert accepted_of(files, tmp_path, "truncations") == []


def test_a_file_with_something_behind_it_is_noticed(good: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "longer.h5", good.read_bytes() + b"\0")


def test_another_version_names_both(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "VERSION", 2)
    later = tmp_path / "later.h5"
    later.write_bytes(checkpoint_bytes(state_of(), ORIGIN, LAYOUT))
    assert read_checkpoint(later).state.step == 9
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"2\).*this program reads.* 1\)"):
        read_checkpoint(later)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w", userblock_size=512) as file:
        file["params"] = [1.0]
    text = tmp_path / "text.h5"
    text.write_text("hello\n" * 500)
    for path in (foreign, text):
        with pytest.raises(CheckpointError, match="not a dptrain checkpoint"):
            read_checkpoint(path)
    for path in (tmp_path / "missing.h5", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(path)


def sealed(body: bytes) -> bytes:
    """A file whose header is right for its body, as whoever wants to deceive would make it."""
    header = HEADER.pack(MAGIC, len(body), hashlib.sha256(body).digest())
    return header.ljust(USER_BLOCK, b"\0") + body


def edited(content: bytes, edit: Callable[[h5py.File], None]) -> bytes:
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        edit(file)
    return sealed(buffer.getvalue()[USER_BLOCK:])


def replace_dataset(file: h5py.File, name: str, new: Any) -> None:
    del file[name]
    file[name] = new


def hide_behind_soft_link(file: h5py.File, name: str) -> None:
    """The right contents, reached by a link."""
    file.move(name, "hidden")
    file[name] = h5py.SoftLink("/hidden")


def external_storage(file: h5py.File, elsewhere: Path) -> None:
    raw = elsewhere.with_suffix(".raw")
    raw.write_bytes(file["params/conv1.bias"][()].tobytes())  # the right contents: only their place is wrong
    del file["params/conv1.bias"]
    file["params"].create_dataset("conv1.bias", (3,), "<f4", external=[(str(raw), 0, 12)])


def virtual_dataset(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((3,), "<f4")
    layout[:] = h5py.VirtualSource(str(elsewhere), "params/conv1.bias", (3,))
    del file["params/conv1.bias"]
    file["params"].create_virtual_dataset("conv1.bias", layout)


def endless_dataset(file: h5py.File, elsewhere: Path) -> None:
    """64 TiB on paper, nothing on disk."""
    del file["params/conv1.bias"]
    file["params"].create_dataset("conv1.bias", (1 << 22, 1 << 22), "<f4", chunks=(64, 64))


def set_attribute(file: h5py.File, name: str, value: Any) -> None:
    file.attrs[name] = value


EDITS: dict[str, Callable[[h5py.File, Path], None]] = {
    "soft link": lambda file, elsewhere: hide_behind_soft_link(file, "params/conv1.bias"),
    "soft link of momentum": lambda file, elsewhere: hide_behind_soft_link(file, "momentum/conv1.bias"),
    "external link": lambda file, elsewhere: replace_dataset(
        file, "params/conv1.bias", h5py.ExternalLink(str(elsewhere), "/params/conv1.bias")
    ),
    "external link of momentum": lambda file, elsewhere: replace_dataset(
        file, "momentum/conv1.bias", h5py.ExternalLink(str(elsewhere), "/momentum/conv1.bias")
    ),
    "group that is an external link": lambda file, elsewhere: replace_dataset(
        file, "params", h5py.ExternalLink(str(elsewhere), "/params")
    ),
    "group behind a soft link": lambda file, elsewhere: hide_behind_soft_link(file, "momentum"),
    "endless dataset": endless_dataset,
    "no steps an epoch": lambda file, elsewhere: set_attribute(file, "steps_per_epoch", 0),
    "external storage": external_storage,
    "virtual dataset": virtual_dataset,
    "float64": lambda file, elsewhere: replace_dataset(file, "params/conv1.bias", np.zeros(3)),
    "big endian": lambda file, elsewhere: replace_dataset(file, "params/conv1.bias", np.zeros(3, ">f4")),
    "momentum of another shape": lambda file, elsewhere: replace_dataset(
        file, "momentum/conv1.bias", np.zeros(4, np.float32)
    ),
    "missing momentum": lambda file, elsewhere: file["momentum"].__delitem__("conv1.bias"),
    "additional parameter": lambda file, elsewhere: file["params"].__setitem__("x.bias", np.zeros(3, np.float32)),
    "group in place of a parameter": lambda file, elsewhere: (
        file["params"].__delitem__("conv1.bias"),
        file["params"].create_group("conv1.bias"),
    )[0],
    "missing attribute": lambda file, elsewhere: file.attrs.__delitem__("epoch_loss"),
    "text in place of a number": lambda file, elsewhere: file.attrs.__setitem__("step", "nine"),
    "environment that is no JSON": lambda file, elsewhere: file.attrs.__setitem__("environment", "{"),
    "other parameters than the hash says": lambda file, elsewhere: replace_dataset(
        file, "params/conv1.bias", np.zeros(3, np.float32)
    ),
    "other format": lambda file, elsewhere: file.attrs.__setitem__("format", "dptrain-dataset"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_rightly_sealed_file_with_wrong_contents_is_refused(edit: str, good: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.h5"
    elsewhere.write_bytes(good.read_bytes())
    content = edited(good.read_bytes(), lambda file: EDITS[edit](file, elsewhere))
    assert refused(tmp_path / "edited.h5", content)


def test_an_edit_that_changes_nothing_is_accepted(good: Path, tmp_path: Path) -> None:
    """So the refusals above are of the edit, not of the editing."""
    assert not refused(tmp_path / "edited.h5", edited(good.read_bytes(), lambda file: None))


def test_a_sealed_file_that_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "noise.h5", sealed(np.random.default_rng(0).bytes(4000)))


def test_no_file_beside_the_checkpoint_is_opened(good: Path, tmp_path: Path) -> None:
    """A link to a named pipe: whoever opens it waits for ever."""
    pipe = tmp_path / "pipe.h5"
    os.mkfifo(pipe)
    for name in ("params", "params/conv1.bias", "momentum/conv1.bias"):
        link = h5py.ExternalLink(str(pipe), "/" + name)
        content = edited(good.read_bytes(), lambda file, link=link, name=name: replace_dataset(file, name, link))
        path = tmp_path / "linked.h5"
        path.write_bytes(content)
        program = "from pathlib import Path\nfrom dptrain.training.checkpoint import *\n"
        program += f"read_checkpoint(Path({str(path)!r}))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
        assert "CheckpointError" in done.stderr
