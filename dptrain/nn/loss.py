"""Softmax cross-entropy by log-sum-exp."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptrain.nn.workspace import Array, Workspace


def softmax_cross_entropy(
    logits: Array, labels: NDArray[np.int64], workspace: Workspace, *, need_gradient: bool = True
) -> tuple[Array, Array | None]:
    """Loss of each sample (N,) for logits (K, N) and labels (N,), and the gradient of their sum (K, N).

        loss = log(sum over k of exp(z_k)) - z_label,    z = logits - max(logits)
        gradient = softmax(logits) - one_hot(label)

    The largest z is 0, so the sum is at least 1: its logarithm is never that of 0, and no exponential
    overflows, whatever the finite logits. The gradient is of the sum of the losses, not their mean: the
    one division by the sample count comes after all shards are added up.
    """
    shifted = workspace.array("loss", "shifted", logits.shape)
    exponentials = workspace.array("loss", "exponentials", logits.shape)
    np.subtract(logits, logits.max(axis=0), out=shifted)
    np.exp(shifted, out=exponentials)
    sums = exponentials.sum(axis=0)
    columns = np.arange(logits.shape[1])
    losses = np.log(sums) - shifted[labels, columns]
    if not need_gradient:
        return losses, None
    exponentials /= sums
    exponentials[labels, columns] -= 1
    return losses, exponentials
