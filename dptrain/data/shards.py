"""The shards a rank holds: checked, read and kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dptrain.data.manifest import SPLITS, Manifest, Samples, read_shard


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
    """Check and read the given shards of the given splits, but for those in `loaded`; raises DataError.

    Hashing leaves the GIL, so `threads` files are checked side by side. `progress` is called, by any thread, when one
    has been read.
    """
    wanted = [(split, shard) for split in splits for shard in shards]

    def read_one(part: tuple[str, int]) -> Samples:
        split, shard = part
        there: Samples | None = getattr(loaded, split).get(shard)
        samples = read_shard(folder, manifest, split, shard) if there is None else there
        progress()
        return samples

    with ThreadPoolExecutor(threads) as pool:
        read = list(pool.map(read_one, wanted))
    by_split: dict[str, dict[int, Samples]] = {split: {} for split in SPLITS}
    for (split, shard), samples in zip(wanted, read, strict=True):
        by_split[split][shard] = samples
    return LocalShards(**by_split)
