"""A checkpoint for `dptrain predict`, `eval` and `--init-from`, without what only a resumed run needs."""

from __future__ import annotations

from collections.abc import Callable

from dptrain.checkpoint.format import Checkpoint, checkpoint_bytes
from dptrain.checkpoint.state import BUFFERS, PARAMETERS, TrainingState, evaluated
from dptrain.export.values import exported_tensors
from dptrain.nn.network import Network


def content(checkpoint: Checkpoint, network: Callable[[], Network]) -> bytes:
    """The bytes of the file; the network is not needed. Averages take the place of parameters and buffers."""
    exported_tensors(checkpoint)  # checks the values
    state = TrainingState(evaluated(checkpoint.state.vectors), checkpoint.state.progress)
    return checkpoint_bytes(
        state, checkpoint.origin, {name: checkpoint.layouts[name] for name in (PARAMETERS, BUFFERS)}
    )
