"""The confusion matrix as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dptrain.system.text import shown

MOST_CLASSES = 1000  # of a matrix as a whole
MOST_PAIRS = 20
LONGEST_NAME = 24


def frequent_confusions(confusion: NDArray[np.int64], most: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes of a matrix (K, K): true class, predicted class, samples; at most `most`."""
    wrong = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(int(one), int(other), int(wrong[one, other])) for one, other in pairs if wrong[one, other]]


def confusion_lines(confusion: NDArray[np.int64], names: Sequence[str], width: int) -> list[str]:
    """A matrix (K, K) in lines of at most `width` characters, or its most frequent mistakes if it does not fit."""
    labels = [shown(name, LONGEST_NAME) for name in names]
    numbers = [str(number) for number in range(len(names))]
    cell = max(len(str(confusion.max())), len(numbers[-1])) + 2
    named = [f"{number:>{len(numbers[-1])}} {label}" for number, label in zip(numbers, labels, strict=True)]
    first = max(map(len, named))
    if 2 + first + cell * len(names) > width:
        return _pairs(confusion, labels)
    lines = ["confusion matrix: rows are true classes, columns are predicted classes", "  "]
    lines[1] += " " * first + "".join(f"{number:>{cell}}" for number in numbers)
    for name, row in zip(named, confusion.tolist(), strict=True):
        lines.append(f"  {name:<{first}}" + "".join(f"{count or '.':>{cell}}" for count in row))
    return lines


def _pairs(confusion: NDArray[np.int64], labels: Sequence[str]) -> list[str]:
    pairs = frequent_confusions(confusion, MOST_PAIRS)
    if not pairs:
        return ["no mistakes"]
    first = max(len(labels[true]) for true, _, _ in pairs)
    second = max(len(labels[found]) for _, found, _ in pairs)
    last = len(f"{pairs[0][2]:,}")
    lines = [f"the most frequent mistakes; the matrix of {len(labels)} classes is wider than this terminal, see --json"]
    for true, found, count in pairs:
        lines.append(f"  {labels[true]:<{first}}  predicted as {labels[found]:<{second}}  {count:>{last},}")
    return lines
