"""What every format exports: the tensors that an evaluation uses, and metadata."""

from __future__ import annotations

import json

import dptrain
from dptrain.arrays.memory import Array
from dptrain.checkpoint.format import Checkpoint
from dptrain.checkpoint.state import BUFFERS, PARAMETERS, evaluated
from dptrain.errors import CheckpointError
from dptrain.nn.finite import not_finite
from dptrain.optim.average import AVERAGED


def exported_tensors(checkpoint: Checkpoint) -> dict[str, Array]:
    """Parameters and buffers by full name such as "conv1.weight", float32: the averages, if the checkpoint has them.

    CheckpointError for a value that is not finite.
    """
    vectors = evaluated(checkpoint.state.vectors)
    tensors = {
        name: view for of in (PARAMETERS, BUFFERS) for name, view in checkpoint.layouts[of].views(vectors[of]).items()
    }
    for name, values in tensors.items():
        if values.size and (found := not_finite(values)):
            raise CheckpointError(f"{name} holds {found}: this checkpoint cannot be exported; use an earlier one")
    return tensors


def metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Facts by name; values that are no text are JSON.

    `params_sha256` is the checkpoint's, as `dptrain inspect` shows it; `values` says whether averages are exported.
    """
    state, origin = checkpoint.state, checkpoint.origin
    averages = AVERAGED[PARAMETERS] in checkpoint.layouts
    facts = {name: getattr(origin, name) for name in ("classes", "mean", "std", "input_shape", "spec")}
    return {
        **{name: json.dumps(value) for name, value in facts.items()},
        "params_sha256": state.params_sha256,
        "values": "averages" if averages else "parameters",
        "step": str(state.step),
        "data": origin.data_name,
        "dptrain": dptrain.__version__,
    }


def normalisation(checkpoint: Checkpoint) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by channel, of pixels 0..1; CheckpointError if the checkpoint has none."""
    origin = checkpoint.origin
    if not origin.mean:
        raise CheckpointError(
            "dptrain 0.1 wrote this checkpoint, without the mean and deviation of its images: export it as .npz, or "
            "resume its run for a step with this version"
        )
    return origin.mean, origin.std
