"""dptrain.report.tensorboard: read back by TensorBoard itself, in an environment of its own."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_runs import train_here
from other_environments import python_with
from PIL import Image
from training_runs import packed

READ = """import base64, json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "images": 0, "tensors": 0})
events.Reload()
tags = events.Tags()
json.dump({
    "scalars": {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags["scalars"]},
    "images": {tag: [(one.step, one.width, one.height, base64.b64encode(one.encoded_image_string).decode())
               for one in events.Images(tag)] for tag in tags["images"]},
    "texts": {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]},
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with("tensorboard", tmp_path_factory.mktemp("tensorboard") / "env", "tensorboard")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_tensorboard_reads_what_it_is_given_also_of_a_resumed_run(python: Path, tmp_path: Path) -> None:
    data, run_dir = packed(tmp_path / "set", shape=(3, 8, 8)), tmp_path / "run"
    for steps in (9, 14):
        done = train_here(data, run_dir, "--report-to", "tensorboard", max_steps=steps, report=True)
        assert "failed" not in done.stdout
    command = [str(python), "-c", READ, str(run_dir / "tensorboard")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for curve, event, key in (("train/loss", "step", "loss"), ("test/accuracy", "epoch", "test_accuracy")):
        expected = [[line["step"], float(np.float32(line[key]))] for line in lines if line["event"] == event]
        assert found["scalars"][curve] == expected
    (configuration,) = found["texts"].values()
    assert "batch-size = 16" in configuration
    names = {"test/confusion", "test/mistakes", "network/first_filters"}
    assert {*found["images"]} == names | {"training_images"}
    for name in names:
        assert [step for step, *_ in found["images"][name]] == [9, 14]
        for _, width, height, content in found["images"][name]:
            with Image.open(io.BytesIO(base64.b64decode(content))) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (width, height))
