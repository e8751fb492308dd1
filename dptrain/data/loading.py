"""Reads the shards of a rank in parallel, and checks the shards of all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import SPLITS, Manifest
from dptrain.data.shard import Samples, read_shard
from dptrain.system.text import shown


@dataclass(frozen=True)
class LocalShards:
    """Samples of this rank's shards, by shard number, for each split."""

    train: dict[int, Samples]
    test: dict[int, Samples]


NOTHING_LOADED = LocalShards({}, {})


def load_shards(
    folder: Path,
    manifest: Manifest,
    shards: Iterable[int],
    threads: int,
    splits: Sequence[str] = SPLITS,
    loaded: LocalShards = NOTHING_LOADED,
    progress: Callable[[], None] = lambda: None,
) -> LocalShards:
    """Check and read the given shards of the given splits, except those in `loaded`; raises DataError.

    Hashing releases the GIL, so `threads` files are checked at the same time. `progress` is called by any thread after
    each shard.
    """
    wanted = [(split, shard) for split in splits for shard in shards]

    def read_one(part: tuple[str, int]) -> Samples:
        split, shard = part
        known: Samples | None = getattr(loaded, split).get(shard)
        samples = read_shard(folder, manifest, split, shard) if known is None else known
        progress()
        return samples

    by_split: dict[str, dict[int, Samples]] = {split: {} for split in SPLITS}
    with ThreadPoolExecutor(threads) as pool:
        for (split, shard), samples in zip(wanted, pool.map(read_one, wanted), strict=True):
            by_split[split][shard] = samples
    return LocalShards(**by_split)


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
    uneven = np.flatnonzero(np.ptp(counts, axis=0) > 1).tolist()
    if uneven:
        of_class, name = counts[:, uneven[0]], shown(manifest.classes[uneven[0]], 80)
        more = f", and {len(uneven) - 1} more classes are uneven" if len(uneven) > 1 else ""
        problems.append(
            f"{split} shards have {of_class.min()} to {of_class.max()} samples of class {name}, "
            f"expected a difference of at most 1{more}"
        )
    index = np.sort(np.concatenate([shard.index for shard in shards]))
    twice = np.unique(index[1:][index[1:] == index[:-1]])
    if len(twice):
        some = ", ".join(map(str, twice[:5].tolist())) + (", ..." if len(twice) > 5 else "")
        problems.append(f"{split} index has {len(twice)} numbers more than once: {some}")
    return problems
