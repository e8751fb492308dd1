"""Reads the shards of a rank in parallel, and checks the shards of all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import SPLITS, Manifest
from dptrain.data.shard import Samples, read_shard
from dptrain.system.text import shown


class LocalShards(NamedTuple):
    """Samples of this rank's shards, by shard number, for each split."""

    train: dict[int, Samples]
    test: dict[int, Samples]
    validation: dict[int, Samples]


NOTHING_LOADED = LocalShards({}, {}, {})


def load_shards(
    folder: Path,
    manifest: Manifest,
    shards: Iterable[int],
    threads: int,
    splits: Sequence[str] | None = None,
    loaded: LocalShards = NOTHING_LOADED,
    progress: Callable[[], None] = lambda: None,
) -> LocalShards:
    """Check and read the given shards of some splits (default: all), except those in `loaded`; raises DataError.

    Hashing releases the GIL, so `threads` files are checked at the same time. `progress` is called by any thread after
    each shard.
    """
    wanted = [(split, shard) for split in splits or manifest.split_names for shard in shards]

    def load(part: tuple[str, int]) -> Samples:
        split, shard = part
        known: dict[int, Samples] = getattr(loaded, split)
        samples = known[shard] if shard in known else read_shard(folder, manifest, split, shard)
        progress()
        return samples

    with ThreadPoolExecutor(threads) as pool:
        found = dict(zip(wanted, pool.map(load, wanted), strict=True))
    return LocalShards(*({shard: one for (name, shard), one in found.items() if name == split} for split in SPLITS))


@dataclass(frozen=True)
class Tally:
    """The number of samples of each class in a shard, int64 (K,), and the shard's index, int64 (n,)."""

    classes: NDArray[np.int64]
    index: NDArray[np.int64]


def tally(samples: Samples, manifest: Manifest) -> Tally:
    """What `split_problems` needs to know about a shard."""
    return Tally(np.bincount(samples.labels, minlength=len(manifest.classes)), samples.index)


def split_problems(manifest: Manifest, split: str, shards: Sequence[Tally]) -> list[str]:
    """Problems across the shards of a split: uneven class counts, samples that occur more than once."""
    problems = []
    counts = np.array([shard.classes for shard in shards])
    uneven = np.flatnonzero(np.ptp(counts, axis=0) > 1)
    if len(uneven):
        samples = counts[:, uneven[0]]
        problems.append(
            f"{split} shards have {samples.min()} to {samples.max()} samples of class "
            f"{shown(manifest.classes[uneven[0]], 80)}, expected a difference of at most 1"
        )
    numbers, times = np.unique(np.concatenate([shard.index for shard in shards]), return_counts=True)
    twice = numbers[times > 1]
    if len(twice):
        problems.append(f"{split} index has {len(twice)} numbers more than once, the first is {twice[0]}")
    return problems
