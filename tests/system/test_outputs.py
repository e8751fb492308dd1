"""dptrain.system.outputs: result files never replace devices, links, or files of runs and data sets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_runs import assert_one_error, dptrain_here, train_here
from training_runs import packed

from dptrain import DataSet
from dptrain.errors import UsageError
from dptrain.system.outputs import write_output


def test_a_file_is_written_or_the_reason_is_reported(tmp_path: Path) -> None:
    write_output(tmp_path / "new", b"content")
    assert (tmp_path / "new").read_bytes() == b"content"
    with pytest.raises(UsageError, match=r"^--output .*gone/new: cannot be written: No such file.*choose another file"):
        write_output(tmp_path / "gone" / "new", b"content", "--output")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder: cannot be written: Is a directory"):
        write_output(tmp_path / "folder", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "new"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    for content in (b"first", b"second"):  # the first makes the target
        write_output(tmp_path / "link", content)
        assert (tmp_path / "target").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="loop: cannot be written: "):
        write_output(tmp_path / "loop", b"content")


def test_a_pipe_gets_the_content(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write_output(pipe, b"x" * 200_000)
    reader.join()
    assert found == [b"x" * 200_000]
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_a_stream_gets_the_content_after_earlier_text(name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    name = str(tmp_path / name)  # an absolute name stays as it is
    program = "from pathlib import Path; from dptrain.system.outputs import write_output as w; "
    program += f"print('before'); w(Path('{name}'), b'content\\n'); print('after')"
    expected = "before\ncontent\nafter\n"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == expected
    (tmp_path / "log").write_text("earlier\n")
    with (tmp_path / "log").open("a") as log:  # a file, as for `>> log`
        subprocess.run(command, stdout=log, check=True)
    assert (tmp_path / "log").read_text() == f"earlier\n{expected}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set `set`, and a run `run`."""
    folder = tmp_path_factory.mktemp("outputs")
    train_here(packed(folder / "set"), folder / "run", epochs=1)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "run", "set", "--predictions", "set/manifest.json"],
        ["eval", "run", "set", "--predictions", "link"],
        ["report", "run", "--output", "run/config.toml"],
        ["report", "run", "--output", "run/metrics.jsonl"],
        ["export", "run", "--to", "run/checkpoints/step-00000007.h5"],
        ["export", "run", "--to", "run/checkpoints/step-00000008.h5"],
        ["export", "run", "--to", "set/test-000-of-004.h5"],
    ],
)
def test_a_result_never_replaces_a_file_of_a_run_or_data_set(words: list[str], folder: Path, tmp_path: Path) -> None:
    for name in ("set", "run"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "link").symlink_to("set/manifest.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = dptrain_here(*words, cwd=tmp_path)
    assert_one_error(done, "belongs to a ", "choose another name", status=2)
    with pytest.raises(UsageError, match="belongs to a data set"):
        DataSet(tmp_path / "set").preview(tmp_path / "set" / "manifest.json")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
