"""dptrain.checkpoint.format: to the bit or refused, and written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
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
from checkpoints import LAYOUT, LAYOUTS, OLD, ORIGIN, layouts_of, resealed, state_of
from data_sets import image_data
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.pack import pack
from dptrain.arrays.layout import Layout
from dptrain.checkpoint.format import (
    HEADER_1,
    MAGIC_1,
    USER_BLOCK,
    checkpoint_bytes,
    read_checkpoint,
)
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
@settings(deadline=None, max_examples=60)
def test_what_is_read_is_what_was_written_to_the_bit(
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
    assert list(found.layout.shapes.items()) == list(layout.shapes.items())


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


def test_names_that_hdf5_cannot_hold_are_written_and_read(tmp_path: Path) -> None:
    names = ("a/b", "a%2Fb", ".", "..", "\0", "n\ud800", "\x1b[31m", "a")
    layout = Layout(dict.fromkeys(names, (2,)))
    state = state_of(layout)
    (tmp_path / "odd.h5").write_bytes(checkpoint_bytes(state, ORIGIN, layouts_of(layout)))
    assert list(read_checkpoint(tmp_path / "odd.h5").layout.shapes) == list(layout.shapes)
    with h5py.File(tmp_path / "odd.h5") as file:
        assert len(file["parameters"]) == len(layout.shapes)


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
    """Files depended on the reader's HDF5: one version could not open what another had written."""
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


def test_a_checkpoint_of_version_1_is_read() -> None:
    found = read_checkpoint(OLD)
    assert scalars(found.state) == {
        "step": 3,
        "samples_seen": 11,
        "epoch_loss": 19.259045124053955,
        "epoch_correct": 3,
        "epoch_samples": 11,
        "test_accuracy": 0.4,
    }
    assert found.layout.shapes == {"linear1.weight": (3, 24), "linear1.bias": (3,)}
    assert found.state.params_sha256 == "5269df5317764b36341bc0ec113cddffaceed0af45277de51c75efd5a03745be"
    assert (
        hashlib.sha256(found.state.vectors["momentum"].tobytes()).hexdigest()
        == "8918e00088ac781d8d312bfe5606e447ab1236e2a1302b7806b79454a2a225a8"
    )
    assert (found.origin.classes, found.origin.input_shape) == (("class-0", "class-1", "class-2"), (2, 3, 4))
    assert (found.origin.mean, found.origin.std, found.notes) == ((), (), ())


def test_the_header_states_magic_sizes_and_the_hash_of_all_but_itself(good: Path) -> None:
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
    "no object": (lambda index: [index], "the whole is a list of 1 items"),
    "other format": (setting("format", value="x"), "format is 'x'"),
    "negative step": (setting("state", "step", value=-1), "state.step is -1, expected a whole number"),
    "step with a point": (setting("state", "step", value=9.0), "state.step is 9.0"),
    "step that is true": (setting("state", "step", value=True), "state.step is True"),
    "step beyond 64 bits": (setting("state", "step", value=10**30), "state.step is 1000000"),
    "missing sum": (removing("state", "epoch_loss"), "state.epoch_loss is missing"),
    "sum that is no number": (setting("state", "epoch_loss", value=float("nan")), "epoch_loss is nan"),
    "sum that is text": (setting("state", "epoch_loss", value="1"), "state.epoch_loss is '1'"),
    "more correct than seen": (setting("state", "epoch_correct", value=33), "do not fit each other"),
    "accuracy above 1": (setting("state", "test_accuracy", value=1.5), "do not fit each other"),
    "no steps an epoch": (setting("origin", "steps_per_epoch", value=0), "steps_per_epoch is 0"),
    "mean of one channel": (setting("origin", "mean", value=[0.5]), "expected one of each a channel"),
    "no mean": (removing("origin", "mean"), "origin.mean is missing"),
    "deviation of 0": (setting("origin", "std", value=[0.0, 1.0]), "expected one of each a channel"),
    "a million classes": (setting("origin", "classes", value=["x"] * 10**6), "has 1,000,000 items, expected at most"),
    "two classes of one name": (setting("origin", "classes", value=["x"] * 2), "two classes of one name"),
    "class of 5 MB": (setting("origin", "classes", value=["x" * 5 * 10**6]), "expected text of at most 1,000"),
    "endless image": (setting("origin", "input_shape", value=[2**30, 2**30, 2]), "images (1073741824,"),
    "hash of other letters": (setting("origin", "manifest_sha256", value="\x1b[31m"), "expected a SHA-256"),
    "configuration nested deeply": (setting("origin", "config", value="a = " + "[" * 10**5), "nested too deeply"),
    "number of 5,000 digits": (setting("origin", "config", value="a = " + "1" * 5000), "digits"),
    "environment of lists": (setting("origin", "environment", value={"a": []}), "environment.a is a list"),
    "no vectors": (setting("vectors", value={}), "vectors.parameters is missing"),
    "no tensors": (setting("vectors", value={"parameters": [], "momentum": []}), "do not have the hash"),
    "tensor outside": (setting("vectors", "parameters", 0, "offset", value=10**9), "outside the data"),
    "tensor in the header": (setting("vectors", "parameters", 0, "offset", value=0), "offset is 0"),
    "tensor in the index": (setting("vectors", "momentum", 3, "shape", value=[400]), "outside the data"),
    "tensor over another": (setting("vectors", "parameters", 1, "shape", value=[200]), "overlap"),
    "endless tensor": (setting("vectors", "parameters", 0, "shape", value=[2**62, 2**62]), "outside the data"),
    "tensor of no extent": (setting("vectors", "parameters", 0, "shape", value=[0]), "shape[0] is 0"),
    "tensor of 60 axes": (setting("vectors", "parameters", 0, "shape", value=[1] * 60), "60 axes"),
    "tensors of one name": (setting("vectors", "parameters", 1, "name", value="conv1.weight"), "a second tensor"),
    "other parameters": (setting("params_sha256", value="0" * 64), "do not have the hash"),
}


@pytest.mark.parametrize("edit", INDEX_EDITS)
def test_a_rightly_sealed_file_with_a_wrong_index_is_one_short_error(edit: str, good: Path) -> None:
    change, words = INDEX_EDITS[edit]
    good.write_bytes(resealed(good.read_bytes(), change))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(good)
    assert words in str(caught.value)
    assert type(caught.value) is CheckpointError  # nothing is torn: it is not set aside
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_what_a_later_program_adds_is_left_alone_and_reported(good: Path) -> None:
    def edit(index: dict[str, Any]) -> None:
        index["writer"] = "dptrain 7.1"
        index["later\x1b"] = index["state"]["cosmic"] = index["origin"]["planet"] = [1]
        index["vectors"]["average"] = [{"name": "x", "compressed": True}]

    before = read_checkpoint(good)
    good.write_bytes(resealed(good.read_bytes(), edit))
    found = read_checkpoint(good)
    assert (scalars(found.state), found.origin, before.notes) == (scalars(before.state), before.origin, ())
    assert found.notes == (
        "the checkpoint was written by dptrain 7.1 and also holds later\\x1b, state.cosmic, origin.planet, "
        "vectors.average, which is not read",
    )


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


@pytest.mark.slow
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


@pytest.mark.parametrize("version", [3, 10, 999])
def test_a_later_version_is_said_to_be_that_and_no_damage(version: int, good: Path) -> None:
    content = good.read_bytes()
    good.write_bytes(f"dptrain checkpoint v{version}\n".encode().ljust(24, b"\0") + content[24:])
    with pytest.raises(
        LaterVersionError, match=f"version {version}, this program reads versions 1 to 2: a later dptrain"
    ):
        read_checkpoint(good)


def test_an_hdf5_of_a_later_version_than_this_one_is_said_to_be_that(good: Path) -> None:
    """What HDF5 1.14 reports for a file that HDF5 2.0 wrote, and here for one with a superblock of version 99."""
    body = bytearray(OLD.read_bytes())[USER_BLOCK:]
    body[8] = 99
    good.write_bytes(sealed(bytes(body)))
    with pytest.raises(LaterVersionError, match=r"a later HDF5 than .* wrote it .*version number.*--upgrade h5py"):
        read_checkpoint(good)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w", userblock_size=512) as file:
        file["params"] = [1.0]
    text = tmp_path / "text.h5"
    text.write_text("hello\n" * 500)
    for path in (foreign, text):
        with pytest.raises(CheckpointError, match="not a dptrain checkpoint"):
            read_checkpoint(path)
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "endless.h5").symlink_to("/dev/zero")
    for path in (tmp_path / "missing.h5", tmp_path, tmp_path / "pipe.h5", tmp_path / "endless.h5"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(path)


def test_an_endless_file_that_begins_well_is_not_read(good: Path) -> None:
    with good.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BrokenCheckpointError, match=r"1,099,511,627,264 bytes after its header"):
        read_checkpoint(good)
    good.unlink()


def sealed(body: bytes) -> bytes:
    """A file of version 1 whose header is right for its body, as whoever wants to deceive would make it."""
    header = HEADER_1.pack(MAGIC_1, len(body), hashlib.sha256(body).digest())
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
    raw.write_bytes(file["params/linear1.bias"][()].tobytes())  # the right contents: only their place is wrong
    del file["params/linear1.bias"]
    file["params"].create_dataset("linear1.bias", (3,), "<f4", external=[(str(raw), 0, 12)])


def virtual_dataset(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((3,), "<f4")
    layout[:] = h5py.VirtualSource(str(elsewhere), "params/linear1.bias", (3,))
    del file["params/linear1.bias"]
    file["params"].create_virtual_dataset("linear1.bias", layout)


def endless_dataset(file: h5py.File, elsewhere: Path) -> None:
    """64 TiB on paper, nothing on disk."""
    del file["params/linear1.bias"]
    file["params"].create_dataset("linear1.bias", (1 << 22, 1 << 22), "<f4", chunks=(64, 64))


def compress(file: h5py.File, name: str) -> None:
    array = file[name][()]
    del file[name]
    file.create_dataset(name, data=array, chunks=array.shape, compression="gzip")


def set_attribute(file: h5py.File, name: str, value: Any) -> None:
    file.attrs[name] = value


EDITS: dict[str, Callable[[h5py.File, Path], None]] = {
    "soft link": lambda file, elsewhere: hide_behind_soft_link(file, "params/linear1.bias"),
    "soft link of momentum": lambda file, elsewhere: hide_behind_soft_link(file, "momentum/linear1.bias"),
    "external link": lambda file, elsewhere: replace_dataset(
        file, "params/linear1.bias", h5py.ExternalLink(str(elsewhere), "/params/linear1.bias")
    ),
    "external link of momentum": lambda file, elsewhere: replace_dataset(
        file, "momentum/linear1.bias", h5py.ExternalLink(str(elsewhere), "/momentum/linear1.bias")
    ),
    "group that is an external link": lambda file, elsewhere: replace_dataset(
        file, "params", h5py.ExternalLink(str(elsewhere), "/params")
    ),
    "group behind a soft link": lambda file, elsewhere: hide_behind_soft_link(file, "momentum"),
    "endless dataset": endless_dataset,
    "no steps an epoch": lambda file, elsewhere: set_attribute(file, "steps_per_epoch", 0),
    "external storage": external_storage,
    "virtual dataset": virtual_dataset,
    "float64": lambda file, elsewhere: replace_dataset(file, "params/linear1.bias", np.zeros(3)),
    "big endian": lambda file, elsewhere: replace_dataset(file, "params/linear1.bias", np.zeros(3, ">f4")),
    "momentum of another shape": lambda file, elsewhere: replace_dataset(
        file, "momentum/linear1.bias", np.zeros(4, np.float32)
    ),
    "missing momentum": lambda file, elsewhere: file["momentum"].__delitem__("linear1.bias"),
    "additional parameter": lambda file, elsewhere: file["params"].__setitem__("x.bias", np.zeros(3, np.float32)),
    "group in place of a parameter": lambda file, elsewhere: (
        file["params"].__delitem__("linear1.bias"),
        file["params"].create_group("linear1.bias"),
    )[0],
    "missing attribute": lambda file, elsewhere: file.attrs.__delitem__("epoch_loss"),
    "text in place of a number": lambda file, elsewhere: file.attrs.__setitem__("step", "nine"),
    "environment that is no JSON": lambda file, elsewhere: file.attrs.__setitem__("environment", "{"),
    "other parameters than the hash says": lambda file, elsewhere: replace_dataset(
        file, "params/linear1.bias", np.zeros(3, np.float32)
    ),
    "two parameters of one name": lambda file, elsewhere: file.attrs.__setitem__(
        "parameters", ["linear1.weight", "linear1.bias", "linear1.bias"]
    ),
    "negative step": lambda file, elsewhere: set_attribute(file, "step", -1),
    "sum that is no number": lambda file, elsewhere: set_attribute(file, "epoch_loss", float("nan")),
    "environment with a number of 5,000 digits": lambda file, elsewhere: set_attribute(
        file, "environment", '{"a": ' + "1" * 5000 + "}"
    ),
    "configuration that is nested deeply": lambda file, elsewhere: set_attribute(file, "config", "a = " + "[" * 60_000),
    "compression": lambda file, elsewhere: compress(file, "params/linear1.weight"),
    "other format": lambda file, elsewhere: file.attrs.__setitem__("format", "dptrain-dataset"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_rightly_sealed_file_of_version_1_with_wrong_contents_is_refused(edit: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.h5"
    elsewhere.write_bytes(OLD.read_bytes())
    content = edited(OLD.read_bytes(), lambda file: EDITS[edit](file, elsewhere))
    assert refused(tmp_path / "edited.h5", content)


def test_an_edit_that_changes_nothing_is_accepted(tmp_path: Path) -> None:
    """So the refusals above are of the edit, not of the editing."""
    assert not refused(tmp_path / "edited.h5", edited(OLD.read_bytes(), lambda file: None))


def test_a_sealed_file_that_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "noise.h5", sealed(np.random.default_rng(0).bytes(4000)))


@pytest.mark.slow
def test_no_file_beside_the_checkpoint_is_opened(tmp_path: Path) -> None:
    """A link to a named pipe: whoever opens it waits for ever."""
    pipe = tmp_path / "pipe.h5"
    os.mkfifo(pipe)
    for name in ("params", "params/linear1.bias", "momentum/linear1.bias"):
        link = h5py.ExternalLink(str(pipe), "/" + name)
        content = edited(OLD.read_bytes(), lambda file, link=link, name=name: replace_dataset(file, name, link))
        path = tmp_path / "linked.h5"
        path.write_bytes(content)
        program = "from pathlib import Path\nfrom dptrain.checkpoint.format import *\n"
        program += f"read_checkpoint(Path({str(path)!r}))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
        assert "CheckpointError" in done.stderr
