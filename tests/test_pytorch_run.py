"""pytorch_run.py makes the steps of dptrain: otherwise comparisons of both would be unfair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import STEPS_PER_EPOCH, configuration, packed, session_and_state

from dptrain.errors import UsageError


def test_the_parameters_after_an_epoch_are_those_of_dptrain(tmp_path: Path) -> None:
    """With groups of parameters, whose rates and decays are large here, so that a missing one shows."""
    from benchmarks.pytorch_run import Run

    options: dict[str, Any] = {
        "model": "resnet20",
        "model_options": {"width": 3, "blocks": 1},
        "momentum": 0.8,
        "nesterov": False,
        "weight_decay": 0.05,
        "group_decay": {"norm": 1, "head.bias": 5},
        "group_lr": {"head": 2, "conv2": 0},
        "group_epochs": {"conv3": 0.5},
        "flip": True,
        "crop": "zero",
        "schedule": "step",
        "step_epochs": 0.3,
    }
    session, state = session_and_state(configuration(packed(tmp_path / "set"), tmp_path / "run", **options))
    peer = Run(session, 0, by_shard=True, disturb=False)
    start = state.parameters.copy()
    for step in range(STEPS_PER_EPOCH):
        outcome = session.take_step(state, 0, step, session.schedule(step))
        loss, samples = peer.step(step)
        assert loss / samples == pytest.approx(outcome.loss, rel=1e-5)
    session.pool.close()
    before = session.network.layout.views(start)
    for vector, layout in (
        (state.parameters, session.network.layout),
        (state.vectors["buffers"], session.network.buffer_layout),
    ):
        for name, found in layout.views(vector).items():
            expected = peer.network.tensors[name].detach().numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)
            if name in before:
                assert np.array_equal(found, before[name]) == (name == "conv2.weight")


@pytest.mark.parametrize(
    "words", [["--optimizer", "adamw"], ["--clip-norm", "1"], ["--average", "ema"], ["--label-smoothing", "0.1"]]
)
def test_what_only_dptrain_computes_is_refused(words: list[str], tmp_path: Path) -> None:
    from benchmarks.pytorch_run import configuration_of

    with pytest.raises(UsageError, match=f"{words[0]} .*is not known here"):
        configuration_of([str(tmp_path), *words])
