"""dptrain.export.npz: NumPy alone reads names, values and metadata."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from checkpoints import OLD
from exported import CLASSES, checkpoint_of, networks

from dptrain.checkpoint.format import Checkpoint, read_checkpoint
from dptrain.export.npz import content
from dptrain.nn.network import Network


def not_needed() -> Network:
    raise AssertionError("the network is built")


def arrays_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content(checkpoint, not_needed)), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("averaged", [False, True])
def test_the_file_has_the_tensors_of_an_evaluation_and_metadata(averaged: bool) -> None:
    network = networks()["resnet20"]
    checkpoint = checkpoint_of(network, averaged=averaged)
    arrays, vectors = arrays_of(checkpoint), checkpoint.state.vectors
    facts = json.loads(str(arrays.pop("metadata")))
    assert facts["params_sha256"] == checkpoint.state.params_sha256
    assert facts["values"] == ("averages" if averaged else "parameters")
    assert tuple(json.loads(facts["classes"])) == CLASSES
    parameters, buffers = ("average", "average_buffers") if averaged else ("parameters", "buffers")
    expected = network.layout.views(vectors[parameters]) | network.buffer_layout.views(vectors[buffers])
    assert arrays.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values, strict=True)


def test_a_checkpoint_of_format_version_1_can_be_exported() -> None:
    checkpoint = read_checkpoint(OLD)
    arrays = arrays_of(checkpoint)
    assert arrays.keys() - {"metadata"} == checkpoint.layouts["parameters"].shapes.keys()
    assert json.loads(str(arrays["metadata"]))
