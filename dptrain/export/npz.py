"""NumPy's .npz: one array for each tensor, by the names of dptrain, and the array "metadata", JSON.

convolution   weight (O, C / groups, KH, KW), bias (O,)
linear        weight (O, F), bias (O,); features of a flattened map in the order of channel, height, width
norm          weight (C,), bias (C,), running_mean (C,), running_var (C,)
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.checkpoint.format import Checkpoint
from dptrain.export.values import exported_tensors, metadata
from dptrain.nn.network import Network


def content(checkpoint: Checkpoint, network: Callable[[], Network]) -> bytes:
    """The bytes of the file; the network is not needed."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {**exported_tensors(checkpoint), "metadata": np.array(json.dumps(metadata(checkpoint)))}
    np.savez(file, **arrays)
    return file.getvalue()
