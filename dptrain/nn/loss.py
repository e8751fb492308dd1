"""Softmax cross-entropy by log-sum-exp."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.memory import Array, Workspace


def softmax_cross_entropy(
    logits: Array, labels: NDArray[np.int64], workspace: Workspace, *, need_gradient: bool = True
) -> tuple[Array, Array | None]:
    """Loss of each sample (N,) for logits (N, K) and labels (N,), and the gradient of their sum (N, K).

        loss = log(sum over k of exp(z_k)) - z_label,    z = logits - max(logits)
        gradient = softmax(logits) - one_hot(label)

    The largest z is 0, so the sum is at least 1: its logarithm is never that of 0, and no exponential
    overflows, whatever the finite logits. The gradient is of the sum of the losses, not their mean: the
    one division by the sample count comes after all shards are added up. It lies in the workspace until
    the next call.
    """
    shifted = workspace.array("loss", "shifted", logits.shape)
    exponentials = workspace.array("loss", "exponentials", logits.shape)
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=shifted)
    np.exp(shifted, out=exponentials)
    sums = exponentials.sum(axis=1)
    rows = np.arange(len(logits))
    losses = np.log(sums) - shifted[rows, labels]
    if not need_gradient:
        return losses, None
    exponentials /= sums[:, None]
    exponentials[rows, labels] -= 1
    return losses, exponentials
