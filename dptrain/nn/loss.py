"""Losses: softmax cross-entropy by log-sum-exp, with label smoothing and class weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.functions import exp, log
from dptrain.arrays.memory import Array, Workspace


class CrossEntropy:
    """Cross-entropy of softmax(logits) for labels from 0 to K - 1. PyTorch's `CrossEntropyLoss` has the same arguments.

        loss = - sum over k of target_k log softmax(logits)_k
        target_k = weights_k ((1 - label_smoothing) [k is the label] + label_smoothing / K)

    label_smoothing    from 0 to below 1 (Szegedy et al. 2016)
    weights            of the classes (K,), above 0; None for 1 each

    Losses of samples are summed. The mean of a global batch is their sum over the sum of `sample_weights`.
    """

    def __init__(self, label_smoothing: float = 0.0, weights: Sequence[float] | None = None) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}, expected from 0 to below 1")
        if weights is not None and not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"weights are {list(weights)}, expected numbers above 0, one for each class")
        self.label_smoothing = label_smoothing
        self.weights = None if weights is None else np.array(weights, np.float64)

    def sample_weights(self, labels: NDArray[np.int64]) -> float:
        """The sum of the weights of the labels' classes; without class weights the number of labels."""
        return float(len(labels)) if self.weights is None else float(self.weights[labels].sum())

    def __call__(self, logits: Array, labels: NDArray[np.int64], workspace: Workspace) -> tuple[Array, Array]:
        """The loss of each sample (N,) for logits (N, K) and labels (N,), and the gradient of their sum (N, K).

        The gradient stays in the workspace until the next call.
        """
        if not self.label_smoothing and self.weights is None:
            return softmax_cross_entropy(logits, labels, workspace)
        if self.weights is not None and len(self.weights) != logits.shape[1]:
            raise ValueError(f"there are weights of {len(self.weights)} classes, but {logits.shape[1]} logits")
        shifted, softmax, log_sums = _softmax(logits, workspace)
        targets = self._targets(labels, workspace.array("loss", "targets", logits.shape))
        totals = targets.sum(axis=1)
        losses = totals * log_sums
        shifted *= targets
        losses -= shifted.sum(axis=1)
        softmax *= totals[:, None]
        softmax -= targets
        return losses, softmax

    def _targets(self, labels: NDArray[np.int64], targets: Array) -> Array:
        targets.fill(self.label_smoothing / targets.shape[1])
        targets[np.arange(len(labels)), labels] += 1 - self.label_smoothing
        if self.weights is not None:
            targets *= self.weights.astype(targets.dtype)
        return targets


CROSS_ENTROPY = CrossEntropy()


def softmax_cross_entropy(logits: Array, labels: NDArray[np.int64], workspace: Workspace) -> tuple[Array, Array]:
    """Loss of each sample (N,) for logits (N, K) and labels (N,), and the gradient of their sum (N, K).

        loss = log(sum over k of exp(z_k)) - z_label,    z = logits - max(logits)
        gradient = softmax(logits) - one_hot(label)

    The one division by the number of samples comes after all shards are added. The gradient stays in the workspace
    until the next call.
    """
    shifted, softmax, log_sums = _softmax(logits, workspace)
    rows = np.arange(len(logits))
    losses = log_sums - shifted[rows, labels]
    softmax[rows, labels] -= 1
    return losses, softmax


def softmax(logits: Array, workspace: Workspace) -> Array:
    """The probabilities (N, K) of logits (N, K). They stay in the workspace until the next call."""
    return _softmax(logits, workspace)[1]


def _softmax(logits: Array, workspace: Workspace) -> tuple[Array, Array, Array]:
    """z = logits - max(logits) (N, K), softmax(logits) (N, K), and log(sum over k of exp(z_k)) (N,).

    The largest z is 0, so nothing overflows for finite logits.
    """
    shifted = workspace.array("loss", "shifted", logits.shape)
    exponentials = workspace.array("loss", "exponentials", logits.shape)
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=shifted)
    exp(shifted, exponentials, workspace)
    sums = exponentials.sum(axis=1)
    exponentials /= sums[:, None]
    return shifted, exponentials, log(sums)
