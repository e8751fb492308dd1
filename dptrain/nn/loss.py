"""Softmax cross-entropy by log-sum-exp."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.functions import exp, log
from dptrain.arrays.memory import Array, Workspace


def softmax_cross_entropy(logits: Array, labels: NDArray[np.int64], workspace: Workspace) -> tuple[Array, Array]:
    """Loss of each sample (N,) for logits (N, K) and labels (N,), and the gradient of their sum (N, K).

        loss = log(sum over k of exp(z_k)) - z_label,    z = logits - max(logits)
        gradient = softmax(logits) - one_hot(label)

    The largest z is 0, so nothing overflows for finite logits. The one division by the number of samples comes after
    all shards are added. The gradient stays in the workspace until the next call.
    """
    shifted = workspace.array("loss", "shifted", logits.shape)
    exponentials = workspace.array("loss", "exponentials", logits.shape)
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=shifted)
    exp(shifted, exponentials, workspace)
    sums = exponentials.sum(axis=1)
    rows = np.arange(len(logits))
    losses = log(sums, workspace=workspace) - shifted[rows, labels]
    exponentials /= sums[:, None]
    exponentials[rows, labels] -= 1
    return losses, exponentials
