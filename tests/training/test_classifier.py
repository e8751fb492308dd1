"""dptrain.training.classifier: the probabilities of a checkpoint's network, as an evaluation computes its logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from exported import CLASSES, checkpoint_of, logits, pixels

from dptrain.checkpoint.format import Checkpoint
from dptrain.errors import CheckpointError, UsageError
from dptrain.nn.network import Network
from dptrain.nn.zoo import ARCHITECTURES
from dptrain.training.classifier import Classifier

OPTIONS: dict[str, Any] = {"convnet": {"widths": [8, 16]}, "resnet20": {"width": 8, "blocks": 1}}


def make(name: str = "convnet", **changes: Any) -> tuple[Network, Checkpoint]:
    network = Network(ARCHITECTURES[name]((3, 8, 8), len(CLASSES), **OPTIONS[name]), (3, 8, 8))
    config = tomli_w.dumps({"model": name, "model_options": OPTIONS[name]})
    return network, checkpoint_of(network, **{"config": config, **changes})


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_probabilities_are_the_softmax_of_the_logits_of_an_evaluation(name: str, averaged: bool) -> None:
    network, checkpoint = make(name, averaged=averaged)
    images = pixels(network, 70)
    exact = np.exp(logits(network, checkpoint, images).astype(np.float64))
    classifier = Classifier(checkpoint, Path("a.h5"))
    assert (classifier.classes, classifier.image_shape, classifier.fit) == (CLASSES, (3, 8, 8), "crop")
    for count in (1, 70):
        found = classifier.probabilities(images[:count])
        assert np.allclose(found, (exact / exact.sum(axis=1, keepdims=True))[:count], atol=1e-5)


def test_a_checkpoint_without_mean_and_deviation_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has no mean and deviation to normalise images with"):
        Classifier(make(mean=(), std=())[1], Path("a.h5"))


def test_the_code_of_a_users_model_is_not_run_unasked() -> None:
    checkpoint = make(config='model = "mine.py:build"\n')[1]
    with pytest.raises(
        UsageError, match=r"Refusing to run model code named by a checkpoint; pass --model mine\.py:build"
    ):
        Classifier(checkpoint, Path("a.h5"))
