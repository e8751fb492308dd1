"""What shows only over all shards of a split: numbers and classes that a sound data set shares out evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import Manifest, Samples
from dptrain.system.text import shown


@dataclass(frozen=True)
class Tally:
    """Of one shard: samples of each class, int64 (K,), and the index, int64 (n,)."""

    classes: NDArray[np.int64]
    index: NDArray[np.int64]


def tally(samples: Samples, manifest: Manifest) -> Tally:
    """What `split_problems` needs to know of a shard."""
    return Tally(np.bincount(samples.labels, minlength=len(manifest.classes)), samples.index)


def split_problems(manifest: Manifest, split: str, shards: Sequence[Tally]) -> list[str]:
    """What is wrong with the given shards of a split together: classes dealt unevenly, samples that are there twice."""
    problems = []
    counts = np.array([shard.classes for shard in shards])
    uneven = np.flatnonzero(np.ptp(counts, axis=0) > 1).tolist()
    if uneven:
        of_class, name = counts[:, uneven[0]], shown(manifest.classes[uneven[0]], 80)
        more = f", and {len(uneven) - 1} more classes are uneven" if len(uneven) > 1 else ""
        problems.append(
            f"{split} shards have {of_class.min()} to {of_class.max()} samples of class {name}, expected +-1{more}"
        )
    index = np.sort(np.concatenate([shard.index for shard in shards]))
    twice = np.unique(index[1:][index[1:] == index[:-1]])
    if len(twice):
        some = ", ".join(map(str, twice[:5].tolist())) + (", ..." if len(twice) > 5 else "")
        problems.append(f"{split} index has {len(twice)} numbers more than once: {some}")
    return problems
