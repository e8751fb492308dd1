"""dptrain.report.optional: reporters for other tools, chosen by --report-to."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import assert_one_error, train_here
from PIL import Image
from training_runs import LAST_STEP, STEPS_PER_EPOCH, configuration, finished, packed

from dptrain.data.manifest import read_manifest
from dptrain.data.shard import read_shard
from dptrain.report import optional
from dptrain.report.pictures import pictures
from dptrain.report.tensorboard import TensorBoard
from dptrain.training.events import EvaluationFinished, Event, StepFinished

pytestmark = pytest.mark.slow  # tensorboardX imports PyTorch if it is installed


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("reporters") / "set", shape=(3, 8, 8))


def events_of(folder: Path) -> Iterator[Any]:
    """The events in the files of a folder, oldest first; each record is its length, a checksum, content, a checksum."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event as Record

    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            record, (checksum,) = content[12 : 12 + length], struct.unpack("<I", content[12 + length : 16 + length])
            crc = crc32c(record)
            assert checksum == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
            content = content[16 + length :]
            yield Record.FromString(record)


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of each figure, sorted."""
    found = [(event.step, value) for event in events_of(folder) for value in event.summary.value]
    return sorted((one.tag, step, one.simple_value) for step, one in found if one.WhichOneof("value") == "simple_value")


def test_tensorboard_has_the_figures_of_metrics_jsonl_and_the_images(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = train_here(data, run_dir, "--report-to", "tensorboard")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    expected = set()
    for line in lines:
        if line["event"] == "step":
            expected |= {(f"train/{key}", line["step"], np.float32(line[key])) for key in ("loss", "accuracy", "lr")}
            expected |= {(f"seconds/{key}", line["step"], np.float32(one)) for key, one in line["seconds"].items()}
            expected.add(("train/images_per_second", line["step"], np.float32(line["images_per_second"])))
        elif line["event"] == "epoch":
            expected |= {(f"epoch/{key}", line["step"], np.float32(line[key])) for key in ("loss", "accuracy")}
            expected |= {(f"test/{key}", line["step"], np.float32(line[f"test_{key}"])) for key in ("loss", "accuracy")}
            expected.add(("seconds/evaluation", line["step"], np.float32(line["evaluation_seconds"])))
    assert {(tag, step, np.float32(value)) for tag, step, value in scalars(run_dir / "tensorboard")} == expected
    values = [value for event in events_of(run_dir / "tensorboard") for value in event.summary.value]
    (configuration,) = [value.tensor.string_val[0] for value in values if "configuration" in value.tag]
    assert b"batch-size = 16" in configuration
    (picture,) = [value.image for value in values if value.tag == "training_images"]
    assert pixels(picture.encoded_image_string) == pixels_of(data)


def test_tensorboard_has_the_pictures_of_the_last_evaluation(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = train_here(data, run_dir, "--report-to", "tensorboard", report=True)
    assert "failed" not in done.stdout
    found = [(event.step, value) for event in events_of(run_dir / "tensorboard") for value in event.summary.value]
    images = [(one.tag, step, one.image) for step, one in found if one.WhichOneof("value") == "image"]
    expected = pictures(finished(configuration(data, run_dir, report=True)))
    assert [(tag, step) for tag, step, _ in images] == [("training_images", 0), *((tag, LAST_STEP) for tag in expected)]
    for tag, _, image in images[1:]:
        assert (image.height, image.width, image.colorspace) == expected[tag].shape
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), expected[tag])


def pixels(png: bytes) -> set[bytes]:
    """The 8 x 8 tiles of an image."""
    whole = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    rows, columns = whole.shape[0] // 8, whole.shape[1] // 8
    tiles = whole[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8, 3).transpose(0, 2, 1, 3, 4)
    return {tile.tobytes() for tile in tiles.reshape(-1, 8, 8, 3)}


def pixels_of(data: Path) -> set[bytes]:
    images = read_shard(data, read_manifest(data), "train", 0).images[:16]
    return {np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes() for image in images}


def test_a_resumed_run_hides_the_steps_that_it_repeats(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for steps in (9, 14):
        assert train_here(data, run_dir, "--report-to", "tensorboard", max_steps=steps).returncode == 0
    starts = [event.step for event in events_of(run_dir / "tensorboard") if event.session_log.status == 1]
    assert starts == [10]
    steps_of_loss = [step for tag, step, _ in scalars(run_dir / "tensorboard") if tag == "train/loss"]
    assert steps_of_loss == list(range(1, 15))


def test_a_missing_package_is_an_error_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    done = train_here(data, tmp_path / "run", "--report-to", "mlflow")
    assert_one_error(done, "needs the package mlflow", "pip install 'dptrain[mlflow]'", status=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", ["tensorbord", "tensorboard;mlflow", "tensorboard,tensorboard"])
def test_an_unknown_reporter_is_an_error_before_the_run(data: Path, tmp_path: Path, names: str) -> None:
    done = train_here(data, tmp_path / "run", "--report-to", names)
    assert_one_error(done, "--report-to", "tensorboard, mlflow", status=2)
    assert not (tmp_path / "run").exists()


def test_a_reporter_that_fails_is_reported_once_and_training_continues(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Event] = []

    def fail(self: TensorBoard, event: Event) -> None:
        seen.append(event)
        if isinstance(event, StepFinished):
            raise ConnectionError("the server is gone\nand more")

    monkeypatch.setattr(TensorBoard, "handle", fail)
    done = train_here(data, tmp_path / "run", "--report-to", "tensorboard")
    assert done.returncode == 0, done.stderr
    line = "--report-to tensorboard failed and reports no more: the server is gone; training continues"
    assert done.stdout.splitlines().count(line) == 1
    assert len([event for event in seen if isinstance(event, StepFinished)]) == 1
    assert not [event for event in seen if isinstance(event, EvaluationFinished)]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 2 * (STEPS_PER_EPOCH + 1)


def test_tensorboard_images_are_left_out_if_they_are_no_pictures(tmp_path: Path) -> None:
    two_channels = packed(tmp_path / "set")
    done = train_here(two_channels, tmp_path / "run", "--report-to", "tensorboard")
    assert "failed" not in done.stdout
    assert ("test/accuracy", 14) in [(tag, step) for tag, step, _ in scalars(tmp_path / "run" / "tensorboard")]
