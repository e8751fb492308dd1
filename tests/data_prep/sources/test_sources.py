"""data_prep.sources: a further source is one new file and one line, and a data set states how it was packed."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_sets import SMALL_CIFAR10, python_members, read_source, write_archive, write_idx_files
from picture_files import write_pictures
from selection import quick_first

import data_prep
from data_prep.__main__ import main
from data_prep.cifar import read_archive
from data_prep.images import ImageData
from data_prep.sources import SOURCES
from dptrain.data.loading import load_shards
from dptrain.data.manifest import read_manifest
from dptrain.errors import DptrainError

STRIPES = '''
"""Images of horizontal and vertical stripes."""

from __future__ import annotations

import argparse

import numpy as np

from ..images import ImageData, ImageSource, LabelledImages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=8, metavar="N", help="height and width, pixels (default: 8)")


def read(options: argparse.Namespace) -> ImageData:
    rows = np.tile(np.array([0, 255], np.uint8), (options.size, options.size // 2))
    images = np.stack([rows.T, rows] * 10)[..., None]
    train, test = (LabelledImages(one, np.arange(20) % 2) for one in (images, 255 - images))
    return ImageData("stripes", ["horizontal", "vertical"], train, test, layout="channels_last")


SOURCE = ImageSource("stripes", "pack stripes of two directions", add_arguments, read)
'''


HELP = "see python -m data_prep --help"


@pytest.mark.slow
def test_a_new_source_needs_one_file_and_one_line(tmp_path: Path) -> None:
    package = Path(shutil.copytree(Path(data_prep.__file__).parent, tmp_path / "data_prep"))
    (package / "sources" / "stripes.py").write_text(STRIPES)
    registry = package / "sources" / "__init__.py"
    registry.write_text(registry.read_text().replace('    "shapes",\n', '    "shapes",\n    "stripes",\n'))

    def run(*words: str) -> str:
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "data_prep", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert "pack stripes of two directions" in run("--help")
    assert "--size N" in run("stripes", "--help")
    packed = run("stripes", "set", "--size", "6", "--shards", "2")
    assert "stripes, 20 training and 20 test images, 2 classes, 2 shards each" in packed
    assert "no problems found" in run("verify", "set")
    manifest = read_manifest(tmp_path / "set")
    assert manifest.image_shape == (1, 6, 6)
    again = shlex.split(manifest.repack_command(tmp_path / "set", 5))
    assert again[:4] == ["dptrain", "prep", "stripes", str(tmp_path / "set")]
    assert again[4:] == ["--size", "6", "--shards", "5", "--force"]
    run(*again[2:])
    assert read_manifest(tmp_path / "set").shard_count == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits.npz", "out"], f"digits.npz: no such file or folder, and no source has this name; {HELP}"),
        (["picz", "out"], f"picz: no such file or folder, and no source has this name; {HELP}"),
        (
            ["x.npy", "out"],
            "x.npy: images and labels are in several such files; pack their folder: python -m data_prep . OUT",
        ),
        (["here.npz"], "the folder for the data set is missing: python -m data_prep here.npz OUT"),
        (["here.npz", "out", "--from=other.npz"], "here.npz is given, and --from too: leave one out"),
        (["here.txt", "out"], "here.txt: no source can read this; see python -m data_prep --help for the sources"),
    ],
)
def test_a_path_in_the_place_of_a_source_is_refused_with_the_reason(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("here.npz", "here.txt", "x.npy"):
        (tmp_path / name).touch()
    assert main(words) == 2
    assert capsys.readouterr().err == f"data_prep: error: {message}\n"


@pytest.mark.parametrize("name", ["cifar10", "idx", "npz", "npy", "images"])
def test_a_full_disk_is_an_error_that_names_its_folder_alone(name: str, tmp_path: Path) -> None:
    """And not the file of the source, which is on another disk."""
    path, words = tmp_path / "source", ["--processes", "1"] if name == "images" else []
    arrays = {"x": np.zeros((20, 4, 4), np.uint8), "y": np.zeros(20, np.uint8)}
    if name == "cifar10":
        path = write_archive(path, python_members())
    elif name == "idx":
        write_idx_files(path)
    elif name == "npz":
        path = tmp_path / "source.npz"
        np.savez(path, x=arrays["x"], y=arrays["y"])
    elif name == "npy":
        path.mkdir()
        for array in arrays:
            np.save(path / array, arrays[array])
    else:
        write_pictures(path, ["cats/1.png", "cats/2.png"])

    def read() -> ImageData:
        out = tmp_path / "out"
        return read_archive(path, SMALL_CIFAR10, out) if name == "cifar10" else read_source(name, path, out, *words)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(DptrainError) as caught:
            read()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"{tmp_path}: images cannot be stored there for packing: ")


@pytest.mark.parametrize("name", ["cifar10", "csv", "hdf5", "idx", "npy", "npz", "images"])
def test_the_names_of_files_may_have_capital_letters(name: str, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", ["cats/1.png", "cats/2.png"])
    arrays = {"x": np.zeros((20, 4, 4), np.uint8), "y": np.zeros(20, np.uint8)}
    files = {"cifar10": "CIFAR-10-BINARY.TAR.GZ", "csv": "A.CSV", "hdf5": "A.HDF5", "images": "A.ZIP", "npz": "A.NPZ"}
    path = (folder if name == "csv" else tmp_path) / files.get(name, "folder")
    if name == "cifar10":
        path.touch()
    elif name == "csv":
        path.write_text("cats/1.png,cat\ncats/2.png,cat\n")
    elif name == "hdf5":
        with h5py.File(path, "w") as file:
            file.update(arrays)
    elif name == "idx":
        write_idx_files(path)
        for each in path.iterdir():
            each.rename(each.with_name(each.name.upper()))
    elif name == "npy":
        path.mkdir()
        for array in arrays:
            np.save(path / array, arrays[array])
            (path / f"{array}.npy").rename(path / f"{array}.NPY")
    elif name == "npz":
        with path.open("wb") as content:
            np.savez(content, x=arrays["x"], y=arrays["y"])
    else:
        shutil.make_archive(str(tmp_path / "A"), "zip", folder)
        (tmp_path / "A.zip").rename(path)
    assert next(source.name for source in SOURCES if source.path_flag and source.detects(path)) == name
    if name != "cifar10":
        assert len(read_source(name, path, tmp_path / "out").train.labels) > 0


@quick_first("options", [[], ["--seed", "5"], ["--limit", "33"], ["--validation-fraction", "0.2"]])
def test_the_command_to_pack_again_packs_the_same_images(options: list[str], tmp_path: Path) -> None:
    """Found in the field: the advice was a command that does not exist for data packed by another program."""
    folder = tmp_path / "my set"
    words = ["shapes", "--json", str(folder), "--train", "50", "--test", "30", "--shards=2", *options, "--force"]
    assert main(words) == 0
    manifest = read_manifest(folder)
    assert list(manifest.command) == ["shapes", "--train", "50", "--test", "30", *options]
    command = shlex.split(manifest.repack_command(folder, 5))
    assert command[:3] == ["dptrain", "prep", "shapes"]
    samples = load_shards(folder, manifest, range(2), 1).train
    assert main(command[2:]) == 0
    again = read_manifest(folder)
    assert again.shard_count == 5
    assert (again.mean, again.seed, again.command) == (manifest.mean, manifest.seed, manifest.command)
    for split in ("train", "test"):
        assert again.samples(split) == manifest.samples(split)
    index = [one.index for one in load_shards(folder, again, range(5), 1).train.values()]
    assert sorted(np.concatenate(index)) == sorted(np.concatenate([one.index for one in samples.values()]))
