"""data_prep.sources.images and csv: pictures are decoded on several processes and split; broken ones are reported."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from data_sets import read_source
from launch_runs import wait_until
from picture_files import encoded, pixels, write_pictures

from data_prep.__main__ import main
from data_prep.images import ImageData, LabelledImages
from data_prep.pictures import decoding, reading
from data_prep.pictures.decode import DECODER, Form, decode
from dptrain.data.manifest import Preparation, read_manifest
from dptrain.data.shard import read_shard
from dptrain.errors import DataError, LimitError, UsageError

CLASSES = [f"{name}/{number}.png" for name in ("cats", "dogs 🐕") for number in range(40)]
SIZE = ("--size", "9", "7")


def read_images(path: Path, *words: str) -> ImageData:
    return read_source("images", path, path.parent / "out", *SIZE, *words)


def names_of(part: LabelledImages | None) -> list[str]:
    assert part is not None
    assert part.names is not None
    return list(part.names)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_every_picture_is_packed_with_its_pixels_and_its_class(
    processes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_pictures(tmp_path / "pets", CLASSES), tmp_path / "out"
    assert main([str(folder), str(out), *SIZE, "--processes", processes, "--shards", "2"]) == 0
    captured = capsys.readouterr()
    assert f"note: {folder} is read as images" in captured.err
    assert "note: 16 of 80 pictures, drawn from each class, are the test split" in captured.err
    assert "1 size, 9x7; fitted by crop; decoded by Pillow" in captured.out
    manifest = read_manifest(out)
    assert (manifest.name, manifest.classes, manifest.image_shape) == ("pets", ("cats", "dogs 🐕"), (3, 9, 7))
    assert manifest.preparation == Preparation(DECODER, "crop", 0, 1, (9, 7), (9, 7))
    assert list(manifest.command) == ["images", "--from", str(folder), *SIZE]  # not the number of processes
    shards = [read_shard(out, manifest, split, shard) for split in manifest.splits for shard in range(2)]
    packed = [
        (image.tobytes(), label) for one in shards for image, label in zip(one.images, one.labels.tolist(), strict=True)
    ]
    right = [
        (decode((folder / name).read_bytes(), Form((3, 9, 7)))[0].tobytes(), int(not name.startswith("cats")))
        for name in CLASSES
    ]
    assert sorted(packed) == sorted(right)


@pytest.mark.slow
def test_an_archive_gives_the_same_data_set_as_its_folder(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets", CLASSES)
    shutil.make_archive(str(tmp_path / "pets"), "gztar", tmp_path, "pets")
    shutil.make_archive(str(tmp_path / "pets"), "zip", folder)
    manifests = []
    for path, out in ((folder, "a"), (tmp_path / "pets.tar.gz", "b"), (tmp_path / "pets.zip", "c")):
        assert main(["images", str(tmp_path / out), "--from", str(path), *SIZE]) == 0
        manifests.append(read_manifest(tmp_path / out))
    for split, entries in manifests[0].splits.items():
        for other in manifests[1:]:
            assert [one.contents_sha256 for one in other.splits[split]] == [one.contents_sha256 for one in entries]


def test_splits_are_those_of_the_folders(tmp_path: Path) -> None:
    names = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("cats/1.png", "dogs/2.png")]
    data = read_images(write_pictures(tmp_path / "pets", names))
    for folder, part in (("train", data.train), ("val", data.validation), ("test", data.test)):
        assert names_of(part) == [f"{folder}/cats/1.png", f"{folder}/dogs/2.png"]


def test_without_a_test_split_the_validation_pictures_are_it_or_a_share_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "pets", [f"train/{name}" for name in CLASSES] + ["val/cats/1.png"])
    data = read_images(folder)
    assert names_of(data.test) == ["val/cats/1.png"]
    assert data.validation is None
    assert "without a split test, the validation pictures are the test split" in capsys.readouterr().err
    data = read_images(folder, "--test-fraction", "0.25")
    assert names_of(data.validation) == ["val/cats/1.png"]
    assert len(data.test.labels) == 20
    assert sorted(names_of(data.train) + names_of(data.test)) == sorted(f"train/{name}" for name in CLASSES)


@pytest.mark.slow
def test_the_test_split_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets", CLASSES)
    first, again, other = (names_of(read_images(folder, "--seed", seed).test) for seed in ("0", "0", "1"))
    assert first == again != other


def test_broken_pictures_are_all_named_and_are_an_error_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "pets", CLASSES)
    (folder / "cats" / "3.png").write_bytes(b"not a picture")
    (folder / "cats" / "4.png").unlink()
    os.mkfifo(folder / "cats" / "4.png")
    half = encoded(pixels(50, 50))
    (folder / "cats" / "line\nbreak.png").write_bytes(half[: len(half) // 2])
    with pytest.raises(DataError, match="broken pictures: 3 of 81; repair or remove them, or leave them out by"):
        read_images(folder)
    lines = capsys.readouterr().err.splitlines()
    assert "data_prep: broken: cats/3.png: not a PNG, JPEG, WebP or GIF file" in lines
    assert "data_prep: broken: cats/4.png: cannot be read: not a regular file" in lines
    assert any(line.startswith(r"data_prep: broken: cats/line\nbreak.png: damaged or truncated: ") for line in lines)
    capsys.readouterr()
    assert main([str(folder), str(tmp_path / "out"), *SIZE, "--json"]) == 1
    refused = json.loads(capsys.readouterr().out)
    assert refused["error"].startswith("broken pictures: 3 of 81")
    assert refused["broken_pictures"]["cats/3.png"] == "not a PNG, JPEG, WebP or GIF file"
    assert len(refused["broken_pictures"]) == 3
    assert main([str(folder), str(tmp_path / "json"), *SIZE, "--skip-broken", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["broken_pictures"] == refused["broken_pictures"]
    assert main([str(folder), str(tmp_path / "out"), *SIZE, "--skip-broken"]) == 0
    assert "note: broken pictures are left out: 3 of 81" in capsys.readouterr().err
    manifest = read_manifest(tmp_path / "out")
    assert manifest.preparation is not None
    assert (manifest.preparation.broken, manifest.samples("train") + manifest.samples("test")) == (3, 78)


def test_a_folder_of_pictures_without_classes_is_refused_with_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "pets", ["1.png", "2.png"])
    assert main([str(folder), str(tmp_path / "out")]) == 1
    assert "has 2 pictures, but no folder for each class: expected" in capsys.readouterr().err


def test_every_broken_picture_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found in the field: the names after the tenth could not be found without decoding all others again."""
    folder = write_pictures(tmp_path / "pets", CLASSES[:3])
    for number in range(50):
        (folder / "cats" / f"bad {number}.png").touch()
    with pytest.raises(DataError, match="broken pictures: 50 of 53"):
        read_images(folder)
    assert capsys.readouterr().err.count(": the file is empty\n") == 50


@pytest.mark.parametrize(("pictures", "shards"), [(40, 8), (20, 4), (10, 2), (5, 1)])
def test_a_small_set_gets_fewer_shards_unless_their_number_is_given(
    pictures: int, shards: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in the field: 20 pictures were refused for the 8 shards that nobody had asked for."""
    folder = write_pictures(tmp_path / "pets", [f"cats/{number}.png" for number in range(pictures)])
    assert main([str(folder), str(tmp_path / "out"), *SIZE]) == 0
    assert read_manifest(tmp_path / "out").shard_count == shards
    captured = capsys.readouterr()
    note = f"note: packed in {shards} shard{'s' * (shards > 1)} instead of 8, because a split has few samples"
    assert (note in captured.err) == (shards < 8)
    assert "note: there is only one class, so there is nothing to learn" in captured.err
    assert f"1 class, {shards} shard{'s' * (shards > 1)} each" in captured.out
    assert main([str(folder), str(tmp_path / "given"), *SIZE, "--shards", "9"]) == 2
    assert "--shards 9: the t" in capsys.readouterr().err


def test_no_thread_of_the_pool_is_left_after_decoding(tmp_path: Path) -> None:
    """Found in the field: at its exit, Python wrote to a pipe that this thread had closed, and printed a traceback."""
    folder, threads = write_pictures(tmp_path / "pets", CLASSES), {*threading.enumerate()}
    (folder / "cats" / "3.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="broken pictures"):
        read_images(folder, "--processes", "2")
    assert {*threading.enumerate()} == threads


def test_the_bar_counts_pictures_and_ends_when_all_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    folder = write_pictures(tmp_path / "pets", CLASSES[:50])
    for number in range(50):
        (folder / f"{number}.txt").touch()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", screen := Screen())
    read_images(folder, "--processes", "1")
    assert re.findall(r"(\d+)/(\d+)", screen.getvalue())[-1] == ("50", "50")


def test_when_no_picture_can_be_decoded_it_is_an_error(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pets", [])
    (folder / "cats").mkdir(parents=True)
    for name in ("1.png", "2.png"):
        (folder / "cats" / name).write_bytes(b"")
    with pytest.raises(DataError, match="none of the 2 pictures can be decoded"):
        read_images(folder, "--skip-broken")


def test_copies_between_splits_and_between_classes_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "pets", ["train/cats/1.png", "train/dogs/2.png", "test/cats/3.png"])
    shutil.copy(folder / "train/cats/1.png", folder / "test/cats/4.png")
    shutil.copy(folder / "train/cats/1.png", folder / "train/dogs/5.png")
    assert main([str(folder), str(tmp_path / "out"), *SIZE, "--shards", "1"]) == 0
    notes = capsys.readouterr().err
    assert "note: exact copies of train images in the test split: 1, such as test/cats/4.png and train/" in notes
    assert "note: images in more than one class: 1, such as " in notes


def test_a_table_gives_paths_classes_and_splits(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", ["1.png", "2.png", "deep/3, or so.png", "4.png"])
    table = tmp_path / "table.csv"
    table.write_text(
        'path,label,split\r\n1.png,10,train\r\n2.png,9,train\r\n"deep/3, or so.png",10,test\r\n4.png,9,val\r\n'
    )
    data = read_source("csv", table, tmp_path / "out", "--root", str(folder), *SIZE)
    assert (data.name, list(data.classes)) == ("table", ["9", "10"])
    assert (names_of(data.train), names_of(data.test), names_of(data.validation)) == (
        ["1.png", "2.png"],
        ["deep/3, or so.png"],
        ["4.png"],
    )
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([1, 0], [1])
    right = decode((folder / "2.png").read_bytes(), Form((3, 9, 7)))[0]
    assert np.array_equal(data.train.images[np.array([1])][0], right)


def test_a_table_without_splits_beside_the_pictures_is_enough(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", CLASSES)
    (folder / "labels.csv").write_text("".join(f"{name},{name.split('/')[0]}\n" for name in CLASSES))
    data = read_source("csv", folder / "labels.csv", tmp_path / "out", *SIZE, "--classes", "dogs 🐕,cats")
    assert (list(data.classes), len(data.test.labels)) == (["dogs 🐕", "cats"], 16)
    assert data.test.labels.tolist() == [int(name.startswith("cats")) for name in names_of(data.test)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has no rows of path,label"),
        ("path,label\n", "it has no rows of path,label"),
        ("1.png\n", "line 1 has 1 column, expected path,label or path,label,split"),
        ("1.png,cat\n1.png,dog\n", "line 2: 1.png occurs twice"),
        ("1.png,cat,holdout\n", "line 1: the split is 'holdout', expected train, training, test"),
        ("1.png,cat,train\n2.png,dog\n", "some rows have a split and others have none"),
        ("1.png, \n", "line 1: a path or a label is missing"),
        ('1.png,cat\n2.png,"cat\n3.png,cat\n', "line 2: unexpected end of data; a cell that begins with a quote ends"),
        ("1.png,cat\n".encode("utf-16").decode("latin-1"), "the text is UTF-16, expected UTF-8; save the table as CSV"),
        ("1\0.png,cat\n", "line"),
        ("1.png,cat\r2.png,dog\r", "line 1 has a carriage return alone; save the table with LF line ends"),
    ],
)
def test_a_table_that_is_not_valid_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(text, "latin-1")
    with pytest.raises(DataError) as caught:
        read_source("csv", table, tmp_path / "out")
    assert str(caught.value).startswith(f"{table}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (["test/cats/1.png"], [], "there are no pictures of the split train"),
        (["train/a/1.png", "test/a/2.png"], ["--test-fraction", "0.5"], "there is a test split already"),
        (["train/a/1.png", "val/b/2.png", "test/a/3.png"], [], "the validation split has pictures of b, of which the"),
        (["train/a/1.png", "test/a/2.png"], ["--size", "40000", "40000"], "expected images of at most"),
    ],
)
def test_splits_that_do_not_fit_are_refused(names: list[str], words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, UsageError), match=message):
        read_images(write_pictures(tmp_path / "pets", names), *words)


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (["train/a/1.png", "test/a/2.png"], ["--test-fraction", "0.5"], "--test-fraction: there is a test split"),
        (["train/a/1.png", "val/a/2.png", "test/a/3.png"], ["--validation-fraction", "0.5"], "--validation-fraction: "),
        (["train/a/1.png", "train/a/2.png", "test/a/3.png"], ["--shards", "2"], "the test split has 1 sample and"),
        (["a/1.png", "b/1.png"], [], "the test split has no samples; to draw one, a class needs at least 2"),
        (CLASSES, ["--shards", "17"], "--shards 17: the test split has 16 samples"),
        (CLASSES, ["--limit", "5", "--shards", "6"], "--shards 6: the train split has 5 samples"),
        (CLASSES, ["--validation-fraction", "0.1", "--shards", "10"], "the validation split has 6 samples"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_picture_is_decoded(
    names: list[str], words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(reading, "decode_all")
    with pytest.raises(UsageError, match=message):
        read_images(write_pictures(tmp_path / "pets", names), *words)


def test_a_killed_process_is_an_error_that_names_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(content: bytes, form: Form) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(decoding, "decode_file", killed)
    folder = write_pictures(tmp_path / "pets", ["cats/1.png", "cats/2.png"])
    with pytest.raises(DataError, match=r"a process that decodes pictures was killed at a picture from .*cats/1\.png"):
        read_images(folder, "--processes", "2")


def test_a_disk_that_fills_is_one_error_on_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, content: bytes, offset: int) -> int:
        return 1

    monkeypatch.setattr(os, "pwrite", full)
    folder = write_pictures(tmp_path / "pets", CLASSES)
    for processes in ("1", "2"):
        with pytest.raises(LimitError, match="images cannot be stored there for packing: No space left on device"):
            read_images(folder, "--processes", processes)


@pytest.mark.timeout(20)
def test_an_interrupt_does_not_wait_for_pictures_that_are_being_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, main = multiprocessing.get_context("fork").Event(), threading.main_thread().ident
    assert main is not None

    def slow(content: bytes, form: Form) -> None:
        started.set()
        time.sleep(60)

    def interrupt() -> None:
        started.wait()
        signal.pthread_kill(main, signal.SIGINT)

    monkeypatch.setattr(decoding, "decode_file", slow)
    others = {*multiprocessing.active_children()}  # of earlier tests
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        read_images(write_pictures(tmp_path / "pets", CLASSES), "--processes", "2")
    workers = {*multiprocessing.active_children()} - others
    wait_until(lambda: {worker.exitcode for worker in workers} <= {-signal.SIGKILL})


def test_a_table_with_a_line_of_any_length_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    with table.open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="line 1 has more than 65,536 bytes: not a table of paths"):
            read_source("csv", table, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
