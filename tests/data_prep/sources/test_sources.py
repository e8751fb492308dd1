"""data_prep.sources: a further source is one new file and one line, and a data set states how it was packed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from selection import quick_first

import data_prep
from data_prep.__main__ import main
from dptrain.data.loading import load_shards
from dptrain.data.manifest import read_manifest

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
        (["digits.npz", "out"], "digits.npz: no such file or folder, and no command has this name"),
        (["here.npz"], "the folder for the data set is missing: python -m data_prep here.npz OUT"),
        (["here.npz", "out", "--from=other.npz"], "here.npz is given, and --from too: leave one out"),
        (["here.txt", "out"], "here.txt: no source can read this; see python -m data_prep --help for the sources"),
    ],
)
def test_a_path_in_the_place_of_a_source_is_refused_with_the_reason(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("here.npz", "here.txt"):
        (tmp_path / name).touch()
    assert main(words) == 2
    assert capsys.readouterr().err == f"data_prep: error: {message}\n"


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
