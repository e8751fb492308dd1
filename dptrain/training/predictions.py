"""What a network predicts for each sample of a split: the confusion matrix, and the samples that it gets wrong."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.memory import Array
from dptrain.errors import UsageError

COLUMNS = ("index", "class", "predicted", "probability")


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Row i of each array belongs to one sample. The arrays are read-only, as reports use them, too.

    index          int64 (N,), the sample's number in its source
    labels         int64 (N,), its class
    predicted      int64 (N,), the class with the largest logit, the first of several
    confidence     float32 (N,), the softmax probability of that class
    probabilities  float32 (N, K), those of all classes, or (N, 0) unless they were asked for: they may need much memory
    """

    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: Array
    probabilities: Array

    def __post_init__(self) -> None:
        for one in fields(self):
            getattr(self, one.name).flags.writeable = False

    def __repr__(self) -> str:
        accuracy = f", accuracy {100 * self.accuracy:.2f} %" if len(self) else ""
        return f"<Predictions: {len(self):,} samples{accuracy}>"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> int:
        return int((self.labels == self.predicted).sum())

    @property
    def accuracy(self) -> float:
        return self.correct / len(self)

    def rows(self, chosen: NDArray[np.int64]) -> Predictions:
        """Some rows, in the order of their numbers int64 (n,)."""
        return Predictions(*(getattr(self, one.name)[chosen] for one in fields(self)))

    def confusion(self, classes: int | None = None) -> NDArray[np.int64]:
        """Samples by true class (row) and predicted class (column), int64 (K, K) for K classes.

        Without `classes`, K is that of the probabilities. UsageError without both, or if a class is beyond K.
        """
        classes = self.probabilities.shape[1] if classes is None else classes
        least = 1 + int(np.concatenate([self.labels, self.predicted]).max(initial=0))
        if classes < least:
            raise UsageError(f"confusion: found {classes} classes, expected at least {least}: pass their number")
        pairs = self.labels * classes + self.predicted
        return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def mistakes(self, most: int) -> Predictions:
        """The wrong predictions with the highest probabilities, at most `most`, from the highest on."""
        wrong = np.flatnonzero(self.labels != self.predicted)
        return self.rows(wrong[np.argsort(-self.confidence[wrong], kind="stable")[:most]])

    def to_csv(self, names: Sequence[str]) -> str:
        """CSV with the `COLUMNS` and one line a sample; `names` are those of the classes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        values = zip(self.index.tolist(), self.labels.tolist(), self.predicted.tolist(), self.confidence, strict=True)
        writer.writerows([index, names[label], names[found], str(share)] for index, label, found, share in values)
        return text.getvalue()


def by_index(parts: Sequence[Predictions]) -> Predictions:
    """All parts together, sorted by the samples' index: the same for any number of shards."""
    joined = Predictions(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Predictions)))
    return joined.rows(np.argsort(joined.index, kind="stable"))
