"""dptrain.checkpoint.pretrained: tensors of checkpoints, .safetensors and .npz files; damaged and hostile files."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import checkpoint_of, networks, write

from dptrain.checkpoint.format import Checkpoint
from dptrain.checkpoint.pretrained import Pretrained, read_pretrained
from dptrain.errors import CheckpointError
from dptrain.export import npz, safetensors
from dptrain.export.values import exported_tensors

NETWORK = networks()["resnet20"]
WANTED = {**NETWORK.layout.shapes, **NETWORK.buffer_layout.shapes}


def read(path: Path, wanted: dict[str, Any] = WANTED) -> Pretrained:
    return read_pretrained(path, wanted, lambda line: None)


def run_folder(path: Path, checkpoint: Checkpoint) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    write(path / "checkpoints" / "step-00000009.h5", checkpoint)
    return path


WRITERS: dict[str, Callable[[Path, Checkpoint], Any]] = {
    "a.h5": write,
    "run": run_folder,
    "a.npz": lambda path, checkpoint: path.write_bytes(npz.content(checkpoint, lambda: NETWORK)),
    "a.safetensors": lambda path, checkpoint: path.write_bytes(safetensors.content(checkpoint, lambda: NETWORK)),
}


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_values_of_an_evaluation_to_the_bit(
    name: str, averaged: bool, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(NETWORK, averaged=averaged)
    WRITERS[name](tmp_path / name, checkpoint)
    found, expected = read(tmp_path / name), exported_tensors(checkpoint)
    assert found.params_sha256 == checkpoint.state.params_sha256
    assert found.tensors.keys() == expected.keys() == WANTED.keys()
    for tensor, values in expected.items():
        np.testing.assert_array_equal(found.tensors[tensor], values, strict=True)


@pytest.mark.parametrize("name", WRITERS)
def test_tensors_of_another_name_or_shape_are_listed_and_not_read(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, checkpoint_of(NETWORK))
    found = read(tmp_path / name, {"conv1.weight": WANTED["conv1.weight"], "linear1.bias": (7,), "new": (1,)})
    assert found.tensors.keys() == {"conv1.weight"}
    assert found.shapes["linear1.bias"] == WANTED["linear1.bias"]
    assert found.shapes.keys() >= WANTED.keys()


def test_files_of_other_programs_may_have_other_number_formats_and_no_metadata(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    values = np.arange(6.0).reshape(2, 3)
    arrays: dict[str, Any] = {"half": values.astype(np.float16), "double": values}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    save_file(arrays, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        found = read(tmp_path / name, dict.fromkeys(arrays, (2, 3)))
        assert found.params_sha256 == ""
        assert found.tensors.keys() == {"half", "double"}
        for one in found.tensors.values():
            np.testing.assert_array_equal(one, values.astype(np.float32), strict=True)


def test_a_wanted_tensor_of_another_number_format_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    arrays: dict[str, Any] = {"whole": np.arange(6).reshape(2, 3), "other": np.ones(3)}
    np.savez(tmp_path / "a.npz", **arrays)
    save_file(arrays, tmp_path / "a.safetensors")
    for name, dtype in (("a.npz", "int64"), ("a.safetensors", "I64")):
        with pytest.raises(CheckpointError, match=f"{name}: whole is {dtype}, expected float16, float32 or float64"):
            read(tmp_path / name, {"whole": (2, 3)})
        assert not read(tmp_path / name, {"whole": (6,)}).tensors  # not wanted, so it may have any format
    with_pickle(tmp_path / "b.npz")
    with pytest.raises(CheckpointError, match=r"b\.npz: tensor is object, expected float16"):
        read(tmp_path / "b.npz", {"tensor": (2,)})


def with_pickle(path: Path) -> None:
    """An array of objects, which only a pickle can hold."""
    np.savez(path, tensor=np.array([{"a": 1}, None], dtype=object))


def larger_than_memory(path: Path) -> None:
    """A header that claims 2**60 values."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**60,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tensor.npy", file.getvalue())


def cut_short(path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.ones(100, np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tensor.npy", file.getvalue()[:-40])


def damaged(path: Path) -> None:
    np.savez_compressed(path, tensor=np.random.default_rng(0).normal(size=100).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[150:250] = bytes(100)
    path.write_bytes(content)


def encrypted(path: Path) -> None:
    """The flag of encryption in both headers of a member."""
    np.savez(path, tensor=np.ones(100, np.float32))
    content = bytearray(path.read_bytes())
    for header, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + place] |= 1
    path.write_bytes(content)


BROKEN: dict[str, Callable[[Path], Any]] = {
    "missing.npz": lambda path: None,
    "missing.safetensors": lambda path: None,
    "missing.h5": lambda path: None,
    "text.npz": lambda path: path.write_text("no archive"),
    "text.safetensors": lambda path: path.write_text("no tensors at all"),
    "text.h5": lambda path: path.write_text("no checkpoint"),
    "short.npz": cut_short,
    "damaged.npz": damaged,
    "encrypted.npz": encrypted,
    "pickle.pt": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_one_error_that_names_it(name: str, tmp_path: Path) -> None:
    BROKEN[name](tmp_path / name)
    with pytest.raises(CheckpointError) as error:
        read(tmp_path / name, {"tensor": (100,)})
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    others = str(error.value).endswith("run folder, or a file that ends with .safetensors or .npz")
    assert others == (name == "pickle.pt")


def test_arrays_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    larger_than_memory(tmp_path / "a.npz")
    found = read(tmp_path / "a.npz", {"tensor": (2,)})
    assert found.shapes.keys() == {"tensor"}
    assert not found.tensors


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for values in (np.array([1, np.inf], np.float32), np.array([1, 1e300])):
        np.savez(tmp_path / "a.npz", tensor=values)
        with pytest.raises(CheckpointError, match=r"a\.npz: tensor holds inf as float32"):
            read(tmp_path / "a.npz", {"tensor": (2,)})
